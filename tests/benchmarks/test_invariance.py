"""The cells that invariance.py compares: each leaves out one rule and nothing else."""

import json
import math

import numpy as np
import pytest
from grid import Run
from invariance import LARGER, LEFT_OUT, REFERENCE, SMALLER, STEPS, cells, report, share
from scores import Scores

from sfactory.config import to_dict
from sfactory.learning.batch_scaling import rescale_batch
from sfactory.monitor.statistics import bootstrap, iqm

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


def test_share_of_the_reference_is_the_ratio_of_both_means_and_its_interval_knows_both():
    seeds = np.array([8.0, 9.0, 11.0, 12.0])
    middle, low, high = share(2 * seeds, seeds)
    assert middle == 2.0
    assert low < 1.8
    assert high > 2.2
    assert share(seeds, np.full(4, 10.0)) == pytest.approx((1.0, *(x / 10 for x in bootstrap([seeds], iqm))), abs=0.02)


def test_report_shows_every_cell_with_its_own_number_of_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr("invariance.picture", lambda scores: None)
    kept = Scores(tmp_path / "scores.csv")
    for variant, factor, seeds, slope in (("all rules", 1.0, 2, 100.0), ("all rules", 16.0, 1, 90.0)):
        for seed in range(seeds):
            run = Run(cells()[variant, factor], seed, tmp_path / f"{factor}_{seed}")
            run.folder.mkdir()
            rows = [{"env_steps": x * STEPS // 100, "charts/episodic_return": slope, "losses/clipfrac": 0.02}
                    for x in range(1, 101)]  # fmt: skip
            (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            run.keep(kept, 40.0 + seed)
    lines = [line for line in report(kept, 5) if line.startswith("| ")][1:]
    assert lines == [
        "| reference | all rules | 2 | 100 (100 to 100) |  | 100 (100 to 100) | 2.0 % | 40 |",
        "| / 16 | all rules | 1 | 90 (90 to 90) | 0.90 (0.90 to 0.90) | 90 (90 to 90) | 2.0 % | 40 |",
    ]
