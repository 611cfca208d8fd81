"""Where an update averages over learners, and that two learners with half a batch equal one with the whole batch."""

import threading

import pytest
import torch
from update_helpers import B, T, divide_into_parts, make_batch, make_update

from sfactory.learning.distributed import BatchMoments, SingleLearner

torch.set_num_threads(1)


class CountingLearner(SingleLearner):
    """Records the calls of an update."""

    def __init__(self):
        self.calls = []

    def average_gradients(self, parameters, valid):
        self.calls.append("gradients")
        self.rows = int(valid.sum())

    def pool_moments(self, moments):
        self.calls.append(f"moments {len(moments)}")
        return moments

    def average_metrics(self, metrics):
        self.calls.append("metrics")
        return metrics


class TwoLearners(SingleLearner):
    """One of two learners in two threads; sums are exchanged at a barrier."""

    world_size = 2

    def __init__(self, rank, exchange):
        self.rank, self.is_leader, self.exchange = rank, rank == 0, exchange

    def sum(self, tensor):
        return self.exchange(self.rank, tensor)

    def average_gradients(self, parameters, valid):
        rows = valid.sum()
        flat = torch.cat([*(p.grad.flatten() * rows for p in parameters), rows[None]])
        total = self.sum(flat)
        for p, mean in zip(parameters, (total[:-1] / total[-1]).split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(mean.view_as(p))

    def pool_moments(self, moments):
        pooled = []
        for mean, var, rows in moments:
            total = self.sum(torch.stack([rows.expand_as(mean), rows * mean, rows * (var + mean.square())]))
            average = total[1] / total[0]
            pooled.append(BatchMoments(average, total[2] / total[0] - average.square(), total[0].flatten()[0]))
        return pooled


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
    assert learner.calls == ["moments 1", "moments 1", *["gradients"] * 8, "moments 2", "metrics"]
    assert learner.rows == pytest.approx(int(batch.valid.sum()) / 4, abs=4)


def test_update_with_one_optimizer_step_averages_gradients_once():
    learner = CountingLearner()
    update = make_update(learners=learner, epochs=1, minibatches=1)
    update.run(make_batch(update), 0, 0.0)
    assert learner.calls == ["moments 1", "gradients", "metrics"]


def test_gradients_are_averaged_after_the_backward_pass_and_before_clipping(monkeypatch):
    order = []

    class Learner(SingleLearner):
        def average_gradients(self, parameters, valid):
            order.append("average")
            for p in parameters:
                p.grad.fill_(100.0)

    update = make_update(learners=Learner(), minibatches=1, max_grad_norm=0.5)
    inner = update.network.backward
    monkeypatch.setattr(update.network, "backward", lambda *given: (order.append("backward"), inner(*given)))
    metrics = update.run(make_batch(update), 0, 0.0)
    assert order == ["backward", "average"]
    assert metrics["losses/grad_norm"] > 100.0  # of the average
    norm = torch.cat([p.grad.flatten() for p in update.parameters]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)


def test_single_learner_returns_its_arguments_and_leaves_gradients():
    learner, parameter = SingleLearner(), torch.nn.Parameter(torch.ones(3))
    parameter.grad = gradient = torch.full((3,), 2.0)
    learner.average_gradients([parameter], torch.ones(2, 2).bool())
    assert parameter.grad is gradient
    assert gradient.tolist() == [2.0] * 3
    moments, metrics = [BatchMoments(*torch.zeros(3))], {"loss": torch.ones(())}
    assert learner.pool_moments(moments) is moments
    assert learner.average_metrics(metrics) is metrics
    assert (learner.total_rows(7), learner.agree(3), learner.world_size, learner.is_leader) == (7, 3, 1, True)


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
    settings = {"core": core, "epochs": epochs, "minibatches": 1, "normalize": True, "value_targets": True}
    one = make_update(**settings)
    batches = [make_batch(one, seed=seed) for seed in range(3)]
    # Unequal halves, with unequal numbers of valid rows.
    halves = [slice(0, 3), slice(3, B)]
    exchange = exchange_of_two()
    two = [make_update(learners=TwoLearners(rank, exchange), **settings) for rank in range(2)]
    errors = []

    def train(rank):
        torch.set_num_threads(1)
        try:
            for number, batch in enumerate(batches):
                two[rank].run(lanes_of(batch, halves[rank]), number, 0.0)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for number, batch in enumerate(batches):
        one.run(batch, number, 0.0)
    for thread in threads:
        thread.join(60)
    assert not errors
    for part, tensors in one.state_dict().items():
        for name, x in tensors.items():
            first, second = (update.state_dict()[part][name] for update in two)
            assert torch.equal(first, second), name
            torch.testing.assert_close(first, x, rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
