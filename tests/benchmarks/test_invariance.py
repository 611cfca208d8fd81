"""The cells that invariance.py compares: each leaves out one rule and nothing else."""

import math

import pytest
from grid import Run
from invariance import LARGER, LEFT_OUT, REFERENCE, SMALLER, STEPS, cells

from sfactory.config import to_dict
from sfactory.learning.batch_scaling import rescale_batch

SMALLEST = max(SMALLER)


def rescaled(variant, factor):
    """The settings that a cell trains with."""
    new, _ = rescale_batch(Run(cells()[variant, factor], 0, None).config())
    values = {f"{section}.{name}": x for section, of in to_dict(new).items() for name, x in of.items()}
    del values["batch.factor"], values["batch.rule"], values["log.every_updates"]
    return values


def differences(first, second):
    return {name for name in first if first[name] != second[name]}


def test_the_reference_takes_the_updates_that_the_theory_asks_for_without_a_limit_on_norms():
    rows = REFERENCE["sampling.envs_per_group"] * REFERENCE["sampling.rollout_length"]
    assert STEPS / rows >= 2000
    assert rescaled("all rules", 1)["optim.max_grad_norm"] == 0


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("without the learning rate", {"optim.lr"}),
        ("learning rate divided by c, not its root", {"optim.lr"}),
        ("without Adam's betas", {"optim.beta1", "optim.beta2"}),
        ("without the proximal average", {"proximal.center_of_mass"}),
        ("without the advantage span", {"normalize.advantage_span"}),
    ],
)
def test_a_rule_that_is_left_out_changes_its_own_setting_alone(variant, changed):
    assert variant in LEFT_OUT
    reference, of_all, without = (rescaled(v, f) for v, f in
                                  (("all rules", 1), ("all rules", SMALLEST), (variant, SMALLEST)))  # fmt: skip
    assert differences(of_all, without) == changed
    for name in changed:
        expected = reference[name] / SMALLEST if "divided" in variant else reference[name]
        assert without[name] == pytest.approx(expected)


def test_without_any_rule_only_the_environments_change():
    for factor in (*SMALLER, LARGER):
        assert differences(rescaled("all rules", 1), rescaled("no rule at all", factor)) == {"sampling.envs_per_group"}


def test_more_minibatches_keep_their_size_and_the_learning_rate():
    reference, larger = rescaled("all rules", 1), rescaled("more minibatches", LARGER)
    assert larger["batch.minibatches"] == reference["batch.minibatches"] / LARGER
    assert larger["optim.lr"] == reference["optim.lr"]
    assert rescaled("all rules", LARGER)["optim.lr"] == pytest.approx(reference["optim.lr"] / math.sqrt(LARGER))
