"""Where an update averages over learners, and that two learners with half a batch equal one with the whole batch."""

import sys
import threading

import numpy as np
import pytest
import torch
from forked_processes import run_forked
from update_helpers import ACTIONS, OBS, B, T, divide_into_parts, make_batch, make_update

from sfactory.config import Config, Model, Optim, Sampling, with_settings
from sfactory.envs import EnvSpec
from sfactory.learning.distributed import BatchMoments, Counts, SingleLearner, Vote
from sfactory.learning.network import build_model
from sfactory.learning.update import Update

torch.set_num_threads(1)


class CountingLearner(SingleLearner):
    """Records the calls of an update."""

    def __init__(self):
        self.calls = []

    def average_gradients(self, gradient, valid, metrics, joint):
        self.calls.append("gradients and metrics" if metrics else "gradients")
        self.rows = int(valid.sum())
        return super().average_gradients(gradient, valid, metrics, joint)

    def pool_moments(self, moments):
        self.calls.append(f"moments {len(moments)}")
        return moments

    def average_metric(self, metric, rows):
        self.calls.append("metric")
        return metric


class TwoLearners(SingleLearner):
    """One of two learners in two threads; sums are exchanged at a barrier."""

    world_size = 2

    def __init__(self, rank, exchange):
        self.rank, self.is_leader, self.exchange = rank, rank == 0, exchange

    def sum(self, tensor):
        return self.exchange(self.rank, tensor)

    def average_gradients(self, gradient, valid, metrics, joint):
        rows = valid.sum()
        total = self.sum(torch.cat([gradient * rows, rows[None]]))
        gradient.copy_(total[:-1] / total[-1])
        return {name: self.joined(metric, rows, joint.get(name)) for name, metric in metrics.items()}

    def joined(self, metric, rows, joint):
        if joint is None:
            return self.average_metric(metric, rows)
        own = joint.numbers()
        table = own.new_zeros(2, len(own))
        table[self.rank] = own
        return joint.combine(self.sum(table)).to(metric.dtype)

    def pool_moments(self, moments):
        pooled = []
        for mean, var, rows in moments:
            total = self.sum(torch.stack([rows.expand_as(mean), rows * mean, rows * (var + mean.square())]))
            average = total[1] / total[0]
            pooled.append(BatchMoments(average, total[2] / total[0] - average.square(), total[0].flatten()[0]))
        return pooled

    def average_metric(self, metric, rows):
        total = self.sum(torch.stack([metric.double() * rows, rows.double()]))
        return (total[0] / total[1]).to(metric.dtype)


def exchange_of_two():
    """A function that two threads call with their rank and a tensor; both get the sum."""
    barrier, slots = threading.Barrier(2, timeout=60), [None, None]

    def exchange(rank, tensor):
        slots[rank] = tensor.detach().clone()
        barrier.wait()
        total = slots[0] + slots[1]
        barrier.wait()
        return total

    return exchange


def lanes_of(batch, lanes):
    def cut(name, x):
        if isinstance(x, dict):
            return {key: leaf[:, lanes] for key, leaf in x.items()}
        return x if x is None else x[lanes] if name == "state" else x[:, lanes]

    return type(batch)(**{name: cut(name, x) for name, x in batch._asdict().items()})


def test_update_averages_gradients_once_per_optimizer_step_and_moments_three_times():
    learner = CountingLearner()
    update = make_update(learners=learner, epochs=2, minibatches=4, normalize=True, value_targets=True)
    batch = make_batch(update)
    update.run(batch._replace(discounted_return=torch.ones_like(batch.reward)), 0, 0.0)
    assert learner.calls == ["moments 1", "moments 1", *["gradients"] * 7, "gradients and metrics", "moments 2"]
    assert learner.rows == pytest.approx(int(batch.valid.sum()) / 4, abs=4)


def test_update_with_one_optimizer_step_averages_gradients_once():
    learner = CountingLearner()
    update = make_update(learners=learner, epochs=1, minibatches=1)
    update.run(make_batch(update), 0, 0.0)
    assert learner.calls == ["moments 1", "gradients and metrics"]


def test_gradients_are_averaged_after_the_backward_pass_and_before_clipping(monkeypatch):
    order = []

    class Learner(SingleLearner):
        def average_gradients(self, gradient, valid, metrics, joint):
            order.append("average")
            for view in update.flat.gradients:
                view.fill_(100.0)
            return dict(metrics)

    update = make_update(learners=Learner(), minibatches=1, max_grad_norm=0.5)
    inner = update.network.backward
    monkeypatch.setattr(update.network, "backward", lambda *given: (order.append("backward"), inner(*given)))
    metrics = update.run(make_batch(update), 0, 0.0)
    assert order == ["backward", "average"]
    assert metrics["losses/grad_norm"] > 100.0  # of the average
    norm = torch.cat([p.grad.flatten() for p in update.parameters]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)


def test_single_learner_returns_its_arguments_and_leaves_gradients():
    learner, gradient = SingleLearner(), torch.full((3,), 2.0)
    metrics = {"loss": torch.ones(())}
    assert learner.average_gradients(gradient, torch.ones(2, 2).bool(), metrics, {}) == metrics
    assert gradient.tolist() == [2.0] * 3
    moments = [BatchMoments(*torch.zeros(3))]
    assert learner.pool_moments(moments) is moments
    assert learner.average_metric(metrics["loss"], torch.ones(())) is metrics["loss"]
    vote = Vote(3, True)
    numbers = np.ones(3)
    learner.propose(Vote(0, False), Counts(5, 2), numbers)
    assert (learner.total_counts(Counts(7, 3), True), learner.agree(vote)) == (Counts(7, 3), vote)
    assert learner.numbers() is learner.exchange(numbers) is numbers
    assert (learner.world_size, learner.is_leader) == (1, True)
    assert not learner.copy_from_leader({})


def test_update_of_a_single_learner_equals_one_without_learners_to_the_bit():
    weights = []
    for learners in (None, SingleLearner(), CountingLearner()):
        update = make_update(learners=learners, epochs=2, normalize=True, value_targets=True)
        update.run(make_batch(update), 0, 0.0)
        weights.append(torch.cat([x.flatten() for x in update.model.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("core", ["none", "gru"])
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("most", [None, 2 * T * 4])
def test_two_learners_with_half_a_batch_equal_one_with_the_whole_batch(core, epochs, most, monkeypatch):
    """Also where each of them divides its minibatches into parts of two lanes or twelve rows (`most` numbers)."""
    divide_into_parts(monkeypatch, most)
    one, two = trained_by_one_and_by_two(core=core, epochs=epochs, normalize=True, value_targets=True)
    for part, tensors in one.state_dict().items():
        for name, x in tensors.items():
            first, second = (update.state_dict()[part][name] for update in two)
            assert torch.equal(first, second), name
            torch.testing.assert_close(first, x, rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "settings",
    [
        {"optim__schedule": "staleness"},
        {"optim__schedule": "kl_adaptive"},
        {"optim__schedule": "ess"},
        {"optim__sfpo_steps": 1},
        {"surrogate": "r2vpo", "surrogate__dual_rate": 1e3, "surrogate__variance_target": 1e-6},
    ],
)
def test_rates_of_two_learners_are_those_of_one_with_the_whole_batch(settings):
    """What they are computed from is a mean over all rows: the learners have unequal numbers of them."""
    epochs = 1 if "optim__sfpo_steps" in settings else 2
    one, two = trained_by_one_and_by_two(epochs=epochs, stale=settings == {"optim__schedule": "ess"}, **settings)

    def numbers(update):
        dual = update.objective.dual
        found = [
            update.lr,
            update.kl,
            update.ess,
            update.lag,
            *(update.slow_fast.entropies if update.slow_fast else ()),
        ]
        return [*found, 0.0 if dual is None else float(dual.value)]

    assert numbers(two[0]) == numbers(two[1]) == pytest.approx(numbers(one), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "further"),
    [
        ({"trace": "vtrace", "proximal": "snapshot", "snapshot_age": 0}, ("offpolicy/max_discrepancy",)),
        ({"value_head": "hl_gauss", "model__value_low": -1.0, "model__value_high": 1.0}, ("losses/value_outside",)),
        ({"algorithm__name": "dae"}, ("losses/advantage",)),
        ({"algorithm__name": "pqn"}, ("losses/q",)),
    ],
)
def test_metrics_of_two_learners_are_those_of_one_with_the_whole_batch(settings, further):
    """Also those that are no mean over rows. The data is stale, and staler on one learner."""
    reports = [[], [], []]
    trained_by_one_and_by_two(reports, stale=True, epochs=2, **settings)
    one, *two = reports
    assert {"losses/explained_variance", *further} <= one[0].keys()
    for expected, *found in zip(one, *two, strict=True):
        for name, value in expected.items():
            first, second = (report[name] for report in found)
            assert torch.equal(first, second), name
            assert float(first) == pytest.approx(float(value), rel=2e-3, abs=1e-4), name


def make(**settings):
    """An update of any algorithm."""
    if "algorithm__name" not in settings:
        return make_update(**settings)
    learners = settings.pop("learners", None)
    config = Config(
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,)),
        optim=Optim(lr=1e-2, eps=1e-3),
    )
    names = {"batch_rule": "batch.rule", "minibatches": "batch.minibatches", "epochs": "batch.epochs"}
    config = with_settings(config, {names.get(name, name.replace("__", ".")): x for name, x in settings.items()})
    return Update(config, build_model(config, EnvSpec("test", OBS, ACTIONS)), torch.device("cpu"), learners=learners)


def trained_by_one_and_by_two(reports=None, stale=False, **settings):
    """An update that was run three times with the whole batch, and two of which each had a part of its lanes.

    reports: get the metrics of all updates, of one and of two. stale: of another policy, more so in later lanes.
    """
    reports = reports or [[], [], []]
    settings |= {"minibatches": 1, "batch_rule": "none"}  # else averages of two learners span half as many updates
    one = make(**settings)
    batches = [make_batch(one, seed=seed) for seed in range(3)]
    batches = [batch._replace(lag=torch.arange(2.0, 2.0 + B).expand(T, B)) for batch in batches]
    if stale:
        noise = torch.randn(T, B, generator=torch.Generator().manual_seed(5)) * torch.linspace(0.0, 1.0, B)
        batches = [batch._replace(log_prob=batch.log_prob + noise * batch.valid) for batch in batches]
    # Unequal halves, with unequal numbers of valid rows.
    halves = [slice(0, 3), slice(3, B)]
    exchange = exchange_of_two()
    two = [make(learners=TwoLearners(rank, exchange), **settings) for rank in range(2)]
    errors = []

    def train(rank):
        torch.set_num_threads(1)
        try:
            for number, batch in enumerate(batches):
                reports[1 + rank].append(two[rank].run(lanes_of(batch, halves[rank]), number, 0.0))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for number, batch in enumerate(batches):
        reports[0].append(one.run(batch, number, 0.0))
    for thread in threads:
        thread.join(60)
    assert not errors
    return one, two


def test_a_single_learner_does_not_import_the_process_group(tmp_path):
    (tmp_path / "single.py").write_text(
        "import sys, torch\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] == 'sfactory']:\n"
        "    del sys.modules[name]\n"  # as in a new process
        "from sfactory.device.ranks import Ranks\n"
        "from sfactory.learning.join import join\n"
        "import sfactory.workers.learner\n"
        "print(type(join(Ranks.from_env({}), torch.device('cpu'), 1.0, print, print)).__name__)\n"
        "assert 'sfactory.learning.process_group' not in sys.modules\n"
    )
    done = run_forked([sys.executable, "single.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "SingleLearner\n", done.stderr
