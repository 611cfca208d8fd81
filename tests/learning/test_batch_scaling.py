"""`batch.factor`: what is counted in updates or optimizer steps is rescaled, kept as promised, or named."""

import pytest
import torch
from update_helpers import ACTIONS, OBS

from sfactory.config import Config, Normalize, with_settings
from sfactory.learning.batch_scaling import rescale_batch, target_span
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic

BASE = {
    "sampling.num_samplers": 1, "sampling.groups_per_sampler": 2, "sampling.envs_per_group": 16,
    "sampling.rollout_length": 8, "batch.minibatches": 8, "batch.epochs": 1, "optim.eps": 1e-8,
}  # fmt: skip


def rescaled(factor, rule, **settings):
    given = {name.replace("__", "."): value for name, value in settings.items()}
    config = with_settings(Config(), {**BASE, "batch.factor": factor, "batch.rule": rule, **given})
    new, lines = rescale_batch(config)
    return new, "\n".join(lines)


def average_age_in_env_steps(config):
    """Of the weights that the averaged proximal policy holds."""
    steps = config.proximal.center_of_mass or config.optimizer_steps_per_update
    return steps * config.batch_rows / config.optimizer_steps_per_update


@pytest.mark.parametrize("rule", ["hilton", "more_minibatches"])
@pytest.mark.parametrize("factor", [2.0, 4.0, 0.5])
@pytest.mark.parametrize("center_of_mass", [0.0, 8.0, 12.0])
def test_rescale_batch_keeps_the_age_of_the_averaged_policy_in_env_steps(rule, factor, center_of_mass):
    """Also where the setting is 0, the optimizer steps of one update: their number follows the batch."""
    settings = {"proximal__policy": "ewma", "proximal__center_of_mass": center_of_mass}
    before, _ = rescaled(1.0, rule, **settings)
    after, text = rescaled(factor, rule, **settings)
    assert after.batch_rows == before.batch_rows / factor
    assert average_age_in_env_steps(after) == pytest.approx(average_age_in_env_steps(before))
    assert "proximal.center_of_mass" in text


@pytest.mark.parametrize("rule", ["hilton", "more_minibatches"])
def test_rescale_batch_rescales_every_number_of_updates(rule):
    settings = {"normalize__advantage_span": 3.0, "normalize__value_targets": True, "run__mode": "lockstep"}
    snapshot = {"proximal__policy": "snapshot", "proximal__snapshot_age": 2, "batch__forced_lag": 1}
    config, text = rescaled(4.0, rule, **settings, **snapshot)
    assert config.normalize.advantage_span == 12.0
    assert (config.proximal.snapshot_age, config.batch.forced_lag) == (8, 4)
    assert "average of normalize.value_targets 199        -> 796" in text
    config, _ = rescaled(0.25, rule, **settings, proximal__policy="snapshot", proximal__snapshot_age=0)
    assert config.proximal.snapshots_kept == 2
    config, text = rescaled(0.25, rule)
    assert "snapshot" not in text
    assert "value_targets" not in text
    assert "center_of_mass" not in text


@pytest.mark.parametrize("unused", [{"normalize__advantage": False}, {"surrogate__objective": "bpo"}])
def test_rescale_batch_leaves_the_span_of_advantages_that_nothing_normalizes(unused):
    config, text = rescaled(4.0, "hilton", **unused)
    assert config.normalize.advantage_span == 1.0
    assert "advantage_span" not in text


def test_rescale_batch_names_the_limit_of_gradient_norms_where_the_size_of_minibatches_changes():
    """With more minibatches of the same size, norms stay what they were."""
    for rule, named in (("hilton", True), ("none", True), ("more_minibatches", False)):
        assert ("max_grad_norm" in rescaled(4.0, rule)[1]) == named, rule
    assert "max_grad_norm" not in rescaled(4.0, "hilton", optim__max_grad_norm=0.0)[1]


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_rescale_batch_moves_the_bounds_of_an_adaptive_rate_with_it(factor):
    settings = {"optim__schedule": "kl_adaptive", "optim__lr": 8e-3}
    config, text = rescaled(factor, "hilton", **settings)
    expected = (8e-3 / factor**0.5, 1e-6 / factor**0.5, 1e-2 / factor**0.5)
    assert (config.optim.lr, config.optim.lr_min, config.optim.lr_max) == pytest.approx(expected)
    assert "optim.lr_max" in text
    kept, text = rescaled(factor, "more_minibatches", **settings)
    assert (kept.optim.lr, kept.optim.lr_min, kept.optim.lr_max) == (8e-3, 1e-6, 1e-2)


def optimizer_average_ages(config):
    """Mean age in env steps of what Adam's moments average, (beta / (1 - beta)) steps."""
    per_step = config.batch_rows / config.optimizer_steps_per_update
    return [beta / (1 - beta) * per_step for beta in (config.optim.beta1, config.optim.beta2)]


@pytest.mark.parametrize("factor", [2.0, 4.0, 0.5])
def test_more_minibatches_keeps_every_average_it_says_it_keeps(factor):
    """Averages over optimizer steps, of the same number of rows, keep their setting; those over updates follow."""
    settings = {
        "proximal__policy": "ewma", "normalize__advantage_span": 4.0, "normalize__value_targets": True,
        "run__mode": "lockstep", "batch__forced_lag": 4,
    }  # fmt: skip
    before, _ = rescaled(1.0, "more_minibatches", **settings)
    after, _ = rescaled(factor, "more_minibatches", **settings)
    assert after.batch_rows / after.batch.minibatches == before.batch_rows / before.batch.minibatches
    assert after.optim == before.optim
    assert optimizer_average_ages(after) == pytest.approx(optimizer_average_ages(before))
    assert average_age_in_env_steps(after) == pytest.approx(average_age_in_env_steps(before))
    for of_updates in (
        lambda c: c.normalize.advantage_span, lambda c: c.batch.forced_lag, lambda c: target_span(c, 1)
    ):  # fmt: skip
        assert of_updates(after) * after.batch_rows == pytest.approx(of_updates(before) * before.batch_rows)


def test_rescale_batch_refuses_an_age_that_is_no_number_of_updates():
    with pytest.raises(ValueError, match=r"snapshot_age 1 becomes 0\.5"):
        rescaled(0.5, "hilton", proximal__policy="snapshot", proximal__snapshot_age=1)


def test_rescale_batch_names_what_stays_counted_in_updates():
    _, text = rescaled(2.0, "hilton", optim__schedule="kl_adaptive", proximal__policy="interpolate")
    for words in ("kl_adaptive", "interpolate", "slots_per_group", "nonfinite_budget"):
        assert any(words in line for line in text.splitlines() if "not rescaled:" in line), words
    assert "replay" not in text
    config, text = rescaled(2.0, "hilton", replay__ratio=1.0)
    assert (config.replay.max_age, config.replay.ratio) == (4, 1.0)
    assert "  not rescaled: replay.max_age 4: replayed slots are at most as many updates older" in text
    steps = {"optim__adam_rel": True, "optim__sfpo_steps": 2, "optim__schedule": "staleness"}
    _, text = rescaled(2.0, "hilton", **steps)
    for words in ("adam_rel", "sfpo_window 30", "staleness", "max_grad_norm 0.5"):
        assert any(words in line for line in text.splitlines() if "not rescaled:" in line), words
    _, text = rescaled(2.0, "hilton", surrogate__objective="r2vpo", surrogate__dual_rate=0.5)
    assert "  not rescaled: surrogate.dual_rate 0.5, once per optimizer step" in text
    assert "dual_rate" not in rescaled(2.0, "more_minibatches", surrogate__objective="r2vpo")[1], "as many as before"
    _, text = rescaled(2.0, "hilton", run__mode="lockstep")
    assert "log.every_updates" in text
    assert not any(words in text for words in ("adam_rel", "sfpo", "staleness", "lr_max"))
    assert "slots_per_group" not in text
    assert rescaled(1.0, "hilton")[1] == ""


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_value_target_statistics_of_an_update_span_the_rescaled_number_of_updates(factor):
    config, _ = rescaled(factor, "hilton", normalize__value_targets=True)
    update = Update(config, ActorCritic(OBS, ACTIONS), torch.device("cpu"))
    assert update.normalizers.targets.moments.decay == pytest.approx(1.0 - 2.0 / (1.0 + 199.0 * factor))


def test_rescale_batch_for_several_learners_scales_by_their_number_and_keeps_the_environments():
    config = Config(normalize=Normalize(value_targets=True, advantage_span=8.0))
    four, lines = rescale_batch(config, 4)
    assert lines[0] == "4 learners (hilton), a batch for each:"
    assert four.sampling == config.sampling
    assert four.optim.lr == pytest.approx(2.0 * config.optim.lr)
    assert four.optim.beta1 == pytest.approx(config.optim.beta1**4)
    assert four.normalize.advantage_span == 2.0
    assert target_span(config, 4) == 199.0 / 4
    assert rescale_batch(config, 1) == (config, [])


def test_rescale_batch_counts_the_rows_of_all_learners_and_agents_for_the_critical_batch_size():
    config = with_settings(Config(), {"batch.factor": 0.5})
    _, one = rescale_batch(config)
    _, many = rescale_batch(config, agents=6)
    _, more = rescale_batch(Config(), 2, 6)
    assert config.batch_rows == 4096, "8,192 with the factor"
    assert not any("probably above" in line for line in one)
    assert many[-1] == "  warning: 49,152 rows per update are probably above the critical batch size"
    assert more[-1] == many[-1]


def test_rescale_batch_with_a_factor_and_several_learners_is_the_product_of_both():
    config = with_settings(Config(), {"batch.factor": 2.0, "sampling.envs_per_group": 8})
    both, lines = rescale_batch(config, 2)
    assert (both.sampling.envs_per_group, both.optim.lr) == (4, pytest.approx(config.optim.lr))
    assert sum(line.startswith("  optim.lr") for line in lines) == 2


def test_rescale_batch_with_rule_none_changes_nothing_for_several_learners_and_only_the_batch_for_a_factor():
    config = with_settings(Config(), {"batch.rule": "none", "sampling.envs_per_group": 8})
    assert rescale_batch(config, 4)[0] == config
    assert target_span(config, 4) == 199.0
    halved, _ = rescale_batch(with_settings(config, {"batch.factor": 2.0}))
    assert (halved.sampling.envs_per_group, halved.optim) == (4, config.optim)


def test_rescale_batch_with_more_minibatches_keeps_their_size_over_all_learners():
    config = with_settings(Config(), {"batch.rule": "more_minibatches", "batch.minibatches": 2})
    two, _ = rescale_batch(config, 2)
    assert (two.batch.minibatches, two.optim) == (4, config.optim)


def test_rescale_batch_leaves_alone_what_the_algorithm_does_not_use():
    after, text = rescaled(2.0, "hilton", algorithm__name="pqn", optim__schedule="linear")
    assert after.normalize.advantage_span == 1.0
    assert "advantage_span" not in text
    assert after.optim.lr == pytest.approx(Config().optim.lr / 2**0.5)


@pytest.mark.parametrize("rule", ["hilton", "more_minibatches"])
def test_rescale_batch_keeps_the_rows_of_an_auxiliary_phase(rule):
    before = with_settings(Config(), {**BASE, "algorithm.name": "ppg"})
    after, text = rescaled(0.5, rule, algorithm__name="ppg")
    assert after.ppg.policy_updates == 16
    assert after.ppg.policy_updates * after.batch_rows == before.ppg.policy_updates * before.batch_rows
    assert "ppg.policy_updates" in text
    assert rescaled(0.5, rule)[0].ppg == Config().ppg


@pytest.mark.parametrize("learners", [1, 2])
@pytest.mark.parametrize("minibatches", [0, 4])
def test_more_minibatches_keeps_the_size_of_those_of_an_auxiliary_phase_over_all_learners(learners, minibatches):
    def rows(config, learners):
        of_update = config.ppg.phase_minibatches or config.batch.minibatches
        return learners * config.batch_rows / of_update

    settings = {**BASE, "algorithm.name": "ppg", "ppg.phase_minibatches": minibatches}
    before = with_settings(Config(), settings)
    factor = {"batch.factor": 1.0 if learners > 1 else 0.5, "batch.rule": "more_minibatches"}
    after, lines = rescale_batch(with_settings(before, factor), learners)
    assert rows(after, learners) == rows(before, 1)
    assert ("ppg.phase_minibatches" in "".join(lines)) == bool(minibatches)
    assert rescaled(0.5, "hilton", algorithm__name="ppg", ppg__phase_minibatches=4)[0].ppg.phase_minibatches == 4
