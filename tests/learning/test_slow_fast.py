"""SFPO: fast passes, the way back and a slow pass; and when the fast passes stop."""

import json
import math

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator
from update_helpers import make_batch, make_update

from sfactory.config import Config, with_settings
from sfactory.learning.distributed import SingleLearner
from sfactory.learning.slow_fast import SlowFast, z_score
from sfactory.learning.update import Update

torch.set_num_threads(1)


def sfpo(accelerator=None, learners=None, lines=None, optim=None, **settings):
    plain = make_update(**settings)
    changes = {f"optim.{name}": value for name, value in {"sfpo_steps": 2, **(optim or {})}.items()}
    log = (lambda line: None) if lines is None else lines.append
    return Update(with_settings(plain.config, changes), plain.model, plain.device, accelerator, log, learners)


def authors_rule(entropies, window, threshold):
    """Number of updates with fast passes, as `fit` of the authors' ray_trainer.py decides, from the list alone."""
    container = []
    for update, entropy in enumerate(entropies):
        container.append(entropy)
        if len(container) >= window:
            u, std = float(np.mean(container[-window:])), float(np.std(container[-window:])) + 1e-9
            if (container[-1] - u) / std >= threshold:
                return update
    return len(entropies)


@pytest.mark.parametrize("window", [2, 5, 30])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.5])
def test_fast_passes_stop_when_the_authors_rule_says_so_and_for_good(window, threshold):
    draw = np.random.default_rng(window)
    for _ in range(5):
        entropies = (1.0 - 0.01 * np.arange(60) + 0.02 * draw.normal(size=60)).tolist()
        state = SlowFast(window, threshold)
        made = [state.add(entropy) for entropy in entropies]
        stop = authors_rule(entropies, window, threshold)
        assert made == [number < stop for number in range(60)]


def test_z_score_counts_the_newest_value_in_the_mean():
    assert z_score([1.0, 3.0]) == pytest.approx(1.0)
    assert z_score([2.0, 2.0]) == 0.0


def test_fast_passes_go_on_after_an_entropy_that_is_not_finite():
    state = SlowFast(2, 0.5)
    assert state.add(2.0)
    assert state.add(math.nan)
    assert state.add(1.0), "it fell"
    assert not state.add(1.5)


@pytest.mark.parametrize("window", [3, 4, 6])
def test_entropies_survive_a_resume_with_another_window(window):
    state, resumed = SlowFast(4, 9.0), SlowFast(window, 9.0)
    for entropy in (1.0, 2.0, 3.0, 4.0, 5.0):
        state.add(entropy)
    resumed.set_state(json.loads(json.dumps(state.state())))
    assert list(resumed.entropies) == [2.0, 3.0, 4.0, 5.0][-window:]


def weights(update):
    return update.flat.values.clone()


def one_pass(update, batch, number, order):
    """A pass of an ordinary update with this order, by the steps of the update itself."""
    plain = update._order
    update._order = lambda *unused: order
    try:
        update.run(batch, number, 0.0)
    finally:
        update._order = plain


@pytest.mark.parametrize("kernels", ["native", "torch", "autograd"])
def test_update_with_sfpo_is_two_passes_a_step_back_and_a_third_pass(kernels):
    """Fixed targets: without a value function that learns, passes of ordinary updates see the same batch."""
    shape = dict(kernels=kernels, minibatches=2, trace_lambda=1.0, gamma=0.0, value_coef=0.0, proximal="behavior")
    shape |= dict(surrogate="ppo", advantage=False, entropy_coef=0.0)
    update, plain = sfpo(optim={"sfpo_alpha": 0.7}, **shape), make_update(**shape)
    batch = make_batch(plain)
    batch = batch._replace(obs={"obs": batch.obs["obs"]})
    with torch.no_grad():
        for one in (update, plain):  # a value of 0 everywhere, so that advantages are rewards in every pass
            one.model.value_head.weight.zero_()
            one.model.value_head.bias.zero_()
    order, before = update._order(batch, 0), weights(plain)
    assert order.shape[0] == 3
    for number in range(2):
        one_pass(plain, batch, 0, order[number : number + 1])
    plain.flat.values.copy_(before + 0.7 * (weights(plain) - before))
    one_pass(plain, batch, 0, order[2:])
    update.run(batch, 0, 0.0)
    torch.testing.assert_close(weights(update), weights(plain), rtol=1e-5, atol=1e-6)
    assert float(update.optimizer.steps[0]) == float(plain.optimizer.steps[0]) == 6


def test_update_after_the_last_fast_pass_is_an_ordinary_one():
    update, plain = sfpo(), make_update()
    update.slow_fast.stopped = True
    batch = make_batch(plain)
    order = update._order(batch, 0)
    one_pass(plain, batch, 0, order[2:])
    update.run(batch, 0, 0.0)
    assert torch.equal(weights(update), weights(plain))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_sfpo_at_the_ends_of_alpha(alpha):
    """0: the slow pass starts where the update began, with the moments of the fast passes. 1: three epochs."""
    update, plain = sfpo(optim={"sfpo_alpha": alpha}), make_update(epochs=3)
    batch, before = make_batch(plain), weights(plain)
    seen = []
    run_phase = update._run_phase
    update._run_phase = lambda phase, fast=False: seen.append((fast, weights(update))) or run_phase(phase, fast)
    update.run(batch, 0, 0.0)
    assert [fast for fast, _ in seen] == [True, False]
    if alpha:
        plain.run(batch, 0, 0.0)
        torch.testing.assert_close(weights(update), weights(plain), rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(seen[1][1], before)


def test_the_averaged_policy_has_only_the_weights_of_the_slow_pass():
    update = sfpo(proximal="ewma", minibatches=4)
    update.run(make_batch(update), 0, 0.0)
    ewma = update.objective.proximal._average
    beta = ewma.decay
    assert float(ewma.weight) == pytest.approx(sum(beta**age for age in range(5))), "the initial ones and four"


def test_rows_of_an_update_with_sfpo_are_trained_where_the_slow_pass_took_a_step():
    update = sfpo(minibatches=4)
    batch = make_batch(update)
    run_phase = update._run_phase
    steps = []

    def spy(phase, fast=False):
        metrics, skipped = run_phase(phase, fast)
        steps.append((fast, len(skipped)))
        return metrics, skipped

    update._run_phase = spy
    metrics = update.run(batch, 0, 0.0)
    assert steps == [(True, 8), (False, 4)]
    assert int(metrics["skipped"]) == 0
    assert bool(update.trained().all())
    update._skipped[1] = 1.0  # as if the second step of the slow pass had not been taken
    expected = torch.ones(batch.valid.numel(), dtype=torch.bool)
    expected[update._order(batch, 0)[-1].tensor_split(4)[1]] = False
    assert torch.equal(update.trained().flatten(), expected)
    broken = update.run(batch._replace(reward=torch.full_like(batch.reward, math.nan)), 1, 0.0)
    assert int(broken["skipped"]) == 12
    assert not bool(update.trained().any())


def test_sfpo_reads_the_mean_entropy_over_learners():
    class Other(SingleLearner):
        def average_metric(self, metric, rows):
            return torch.tensor(0.25)

    update = sfpo(learners=Other())
    update.run(make_batch(update), 0, 0.0)
    assert update.slow_fast.entropies[-1] == 0.25


def test_sfpo_reads_the_entropy_of_the_whole_batch_before_the_update():
    update = sfpo()
    batch = make_batch(update)
    log_p = batch.params.double().log_softmax(-1)  # of the same weights
    expected = -(log_p.exp() * log_p).sum(-1)[batch.valid].mean()
    update.run(batch, 0, 0.0)
    assert update.slow_fast.entropies[-1] == pytest.approx(float(expected), rel=1e-5)


def test_update_with_sfpo_is_not_recorded_and_says_so():
    late, lines = FakeAccelerator(), []
    update = sfpo(accelerator=late, lines=lines, kernels="torch")
    for number in range(4):
        update.run(make_batch(update, seed=number), number, 0.0)
    assert late.recordings == 0
    assert lines == ["updates are not recorded: optim.sfpo-steps reads the entropy of every batch before its passes"]


def test_update_with_sfpo_resumes_from_its_state():
    update, resumed = sfpo(optim={"sfpo_window": 3}), sfpo(optim={"sfpo_window": 3})
    for number in range(4):
        update.run(make_batch(update, seed=number), number, 0.0)
    resumed.load_state_dict(update.state_dict())
    resumed.slow_fast.set_state(update.slow_fast.state())
    for one in (update, resumed):
        one.run(make_batch(make_update(), seed=9), 4, 0.0)
    assert torch.equal(weights(resumed), weights(update))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim.sfpo_steps": 3, "batch.epochs": 4}, "set batch.epochs 1"),
        ({"optim.sfpo_alpha": 0.5}, "optim.sfpo-alpha 0.5 has no effect without optim.sfpo-steps above 0"),
        ({"optim.sfpo_window": 10}, "optim.sfpo-window 10 has no effect"),
        ({"optim.sfpo_threshold": 2.0}, "optim.sfpo-threshold 2 has no effect"),
    ],
)
def test_settings_of_sfpo_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        with_settings(Config(), settings)
