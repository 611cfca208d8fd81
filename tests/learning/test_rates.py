"""Learning rates that follow measurements, and Adam-Rel, in whole updates."""

import pytest
import torch
from update_helpers import ACTIONS, OBS, make_batch, make_update

from sfactory.algo.schedule import SCHEDULES, ScheduleState
from sfactory.config import Config, with_settings
from sfactory.envs import EnvSpec
from sfactory.learning.adam import Adam
from sfactory.learning.distributed import SingleLearner
from sfactory.learning.flat import FlatParameters
from sfactory.learning.native_adam import NativeAdam
from sfactory.learning.network import build_model
from sfactory.learning.update import Update

torch.set_num_threads(1)


def updated(settings, learners=None, **shape):
    plain = make_update(**shape)
    changes = {f"optim.{name}": value for name, value in settings.items()}
    return Update(with_settings(plain.config, changes), plain.model, plain.device, learners=learners)


def with_lag(batch, lags):
    """Lags by lane, in turn."""
    row = torch.tensor(lags, dtype=torch.float32).repeat(batch.lag.shape[1])[: batch.lag.shape[1]]
    return batch._replace(lag=row.expand_as(batch.lag).clone())


@pytest.mark.parametrize(
    ("share", "progress", "factor"),
    [(1.0, 0.0, 1), (1.0, 0.25, 0.75), (0.1, 0.25, 1), (0.1, 0.9, 1), (0.1, 0.95, 0.5), (0.1, 1.0, 0), (0.5, 1.2, 0)],
)
def test_linear_rate_falls_in_the_last_share_of_the_run(share, progress, factor):
    update = updated({"schedule": "linear", "decay_share": share})
    update.run(make_batch(update), 0, progress)
    assert update.lr == pytest.approx(1e-2 * factor)


@pytest.mark.parametrize("kernels", ["autograd", "torch", "native"])
@pytest.mark.parametrize(("progress", "coefficient"), [(0.0, 0.4), (0.25, 0.3), (0.5, 0.2), (1.0, 0.0), (1.5, 0.0)])
def test_entropy_bonus_moves_to_its_final_weight(kernels, progress, coefficient):
    def trained(settings, progress):
        plain = make_update(kernels=kernels)
        update = Update(with_settings(plain.config, settings), plain.model, plain.device)
        update.run(make_batch(update), 0, progress)
        return update

    moved = trained({"loss.entropy_coef": 0.4, "loss.entropy_final": 0.0}, progress)
    fixed = trained({"loss.entropy_coef": coefficient}, 0.0)
    for name, x in moved.model.state_dict().items():
        torch.testing.assert_close(x, fixed.model.state_dict()[name], rtol=1e-5, atol=1e-7)
    assert moved.objective.row()["charts/entropy_coef"] == pytest.approx(coefficient)
    assert "charts/entropy_coef" not in fixed.objective.row()


@pytest.mark.parametrize(
    "algorithm",
    [
        {"algorithm.name": "ppg", "ppg.policy_updates": 1},
        {"algorithm.name": "dae", "dae.advantages": "all"},
    ],
)
def test_entropy_bonus_moves_with_ppg_and_with_dae_for_all_actions(algorithm):
    def trained(settings, progress):
        config = with_settings(make_update().config, {**algorithm, **settings})
        update = Update(config, build_model(config, EnvSpec("test", OBS, ACTIONS)), torch.device("cpu"))
        update.run(make_batch(update), 0, progress)
        return update.flat.values

    moved = trained({"loss.entropy_coef": 0.4, "loss.entropy_final": 0.0}, 0.75)
    torch.testing.assert_close(moved, trained({"loss.entropy_coef": 0.1}, 0.0), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(moved, trained({"loss.entropy_coef": 0.4}, 0.0), atol=1e-4)


@pytest.mark.parametrize(("lags", "factor"), [([0], 1), ([1], 1), ([4], 4), ([2, 4], 2.9), ([0, 1], 1)])
def test_staleness_divides_the_rate_by_the_mean_lag_of_the_batch_it_is_used_for(lags, factor):
    update = updated({"schedule": "staleness"})
    batch = with_lag(make_batch(update), lags)  # lanes 0, 2, ... have five valid rows, the others six
    if lags == [2, 4]:
        factor = (5 * 2 + 6 * 4) / 11
    update.run(batch, 0, 0.0)
    assert update.lr == pytest.approx(1e-2 / factor)
    assert update.optimizer.lr == update.lr
    update.run(with_lag(batch, [0]), 1, 0.0)
    assert update.lr == 1e-2, "the rate does not remember"


def test_staleness_ignores_the_lag_of_reset_rows_and_of_no_rows():
    update = updated({"schedule": "staleness"})
    batch = with_lag(make_batch(update), [2])
    update.run(batch._replace(lag=torch.where(batch.valid, batch.lag, 1e6)), 0, 0.0)
    assert update.lr == pytest.approx(5e-3)
    update.run(batch._replace(valid=torch.zeros_like(batch.valid)), 1, 0.0)
    assert update.lr == 1e-2


def test_staleness_uses_the_mean_over_learners():
    class Other(SingleLearner):
        def average_metric(self, metric, rows):
            return torch.tensor(8.0)

    update = updated({"schedule": "staleness"}, Other())
    update.run(make_batch(update), 0, 0.0)
    assert update.lr == pytest.approx(1e-2 / 8)


def test_ess_rate_is_that_of_vcpo_with_base_one():
    for ess in (0.0, 0.04, 0.5, 1.0):
        scale = min(1.0, ess / 1.0) ** 0.5  # `_optimizer_step_with_buffer` of the authors, scaling_rule sqrt
        assert SCHEDULES["ess"](1.0, ScheduleState(2e-3, ess=ess)) == pytest.approx(2e-3 * scale)


def test_ess_rate_is_one_per_update_by_the_weights_of_the_last_minibatch_before():
    update = updated({"schedule": "ess"}, kernels="autograd", minibatches=1)
    batch = make_batch(update)
    batch = batch._replace(log_prob=batch.log_prob + 0.5 * torch.randn_like(batch.log_prob))
    with torch.no_grad():
        params = update.model.unroll(batch.obs, batch.first, batch.state).params[:-1]
    w = (update.model.distribution.log_prob(params, batch.action) - batch.log_prob)[batch.valid].double().exp()
    update.run(batch, 0, 0.0)
    assert update.lr == 1e-2, "the first update has no measurement"
    ess = float(w.sum() ** 2 / (len(w) * (w**2).sum()))
    update.run(batch, 1, 0.0)
    assert update.lr == pytest.approx(1e-2 * ess**0.5, rel=1e-4)


@pytest.mark.parametrize("rows", ["not finite", "reset rows"])
def test_ess_rate_is_not_zero_after_an_update_that_measured_nothing(rows):
    update = updated({"schedule": "ess"}, minibatches=1)
    batch = make_batch(update)
    stale = batch._replace(log_prob=batch.log_prob + torch.linspace(-1, 1, batch.valid.numel()).view_as(batch.valid))
    update.run(stale, 0, 0.0)
    measured = update.ess
    assert 0.1 < measured < 0.95
    broken = {
        "not finite": batch._replace(log_prob=torch.full_like(batch.log_prob, float("nan"))),
        "reset rows": batch._replace(valid=torch.zeros_like(batch.valid)),
    }
    update.run(broken[rows], 1, 0.0)
    update.run(batch, 2, 0.0)
    assert update.lr == pytest.approx(1e-2 * measured**0.5)


def test_kl_adaptive_stays_within_the_bounds_that_are_set():
    rates = {}
    for target in (1e-6, 1e3):
        settings = {"schedule": "kl_adaptive", "kl_target": target, "lr_min": 8e-3, "lr_max": 1.2e-2}
        update = updated(settings, minibatches=1)
        for number in range(4):
            update.run(make_batch(update), number, 0.0)
        rates[target] = update.lr
    assert rates == {1e-6: 8e-3, 1e3: 1.2e-2}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "kl_adaptive", "lr": 2e-2}, "optim.lr 0.02 is outside optim.lr-min 1e-06 to optim.lr-max 0.01"),
        ({"schedule": "kl_adaptive", "lr": 1e-7}, "optim.lr 1e-07 is outside"),
        ({"schedule": "kl_adaptive", "lr_min": 5e-2}, "optim.lr 0.001 is outside optim.lr-min 0.05"),
        ({"lr_max": 5e-3}, "optim.lr-max 0.005 has no effect without optim.schedule kl_adaptive"),
        ({"schedule": "ess", "lr_min": 1e-4}, "optim.lr-min 0.0001 has no effect"),
    ],
)
def test_rates_outside_their_bounds_and_bounds_without_effect_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        with_settings(Config(), {f"optim.{name}": value for name, value in settings.items()})


def test_a_rate_at_a_bound_is_allowed():
    config = with_settings(Config(), {"optim.schedule": "kl_adaptive", "optim.lr": 1e-2})
    assert config.optim.lr == 1e-2


def paper(gradients, updates, lr, beta1, beta2, eps):
    """The optimizer of arXiv 2412.17113 for one number: t begins again with every update, the moments do not."""
    x, m, v, trail = 0.0, 0.0, 0.0, []
    for update in range(updates):
        for t, g in enumerate(gradients[update], 1):
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            x -= lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps)
        trail.append(x)
    return trail


@pytest.mark.parametrize("kind", [Adam, NativeAdam])
def test_adam_rel_counts_the_steps_of_every_update_anew(kind):
    draw = torch.Generator().manual_seed(1)
    gradients = torch.randn(3, 4, generator=draw).tolist()
    flat = FlatParameters([torch.nn.Parameter(torch.zeros(1))])
    optimizer = kind(flat, 1e-2, (0.9, 0.99), 1e-5)
    trail = []
    for of_update in gradients:
        optimizer.restart_count()
        for g in of_update:
            flat.set_gradients([[torch.tensor([g])]])
            optimizer.clip_and_step(0.0)
        trail.append(float(flat.values[0]))
    assert trail == pytest.approx(paper(gradients, 3, 1e-2, 0.9, 0.99, 1e-5), rel=1e-4)
    assert float(optimizer.state_dict()["0.step"]) == 4


@pytest.mark.parametrize("kernels", ["native", "torch", "autograd"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_update_with_adam_rel_restarts_the_count_and_keeps_the_moments(kernels, shape):
    epochs, minibatches = shape
    update = updated({"adam_rel": True}, kernels=kernels, epochs=epochs, minibatches=minibatches)
    plain = make_update(kernels=kernels, epochs=epochs, minibatches=minibatches)
    for number in range(3):
        batch = make_batch(plain, seed=number)
        moments = update.optimizer.buffers[2].clone()
        update.run(batch, number, 0.0)
        plain.run(batch, number, 0.0)
        assert update.optimizer.steps.unique().tolist() == [float(epochs * minibatches)]
        if number == 0:
            assert torch.equal(update.flat.values, plain.flat.values), "the first update is Adam's"
        else:
            assert moments.any()
    assert plain.optimizer.steps.unique().tolist() == [3.0 * epochs * minibatches]
    assert not torch.allclose(update.flat.values, plain.flat.values)


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_update_with_adam_rel_resumes_to_the_bit(kernels):
    update, resumed = (updated({"adam_rel": True}, kernels=kernels) for _ in range(2))
    for number in range(2):
        update.run(make_batch(update, seed=number), number, 0.0)
    resumed.load_state_dict({part: {n: x.clone() for n, x in d.items()} for part, d in update.state_dict().items()})
    batch = make_batch(make_update(), seed=5)
    for one in (update, resumed):
        one.run(batch, 2, 0.0)
    assert torch.equal(update.flat.values, resumed.flat.values)
