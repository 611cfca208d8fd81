"""Updates of which some or all optimizer steps are not finite: what is trained, counted and kept."""

import math

import pytest
import torch
from update_helpers import B, T, make_batch, make_update

from sfactory.algo.normalize import EwmaMoments, Moments

torch.set_num_threads(1)
KERNELS = ["native", "torch", "autograd"]


def state_of(update):
    return {f"{part}/{name}": x.clone() for part, xs in update.state_dict().items() for name, x in xs.items()}


def broken_in(batch, step, lane):
    """The batch with a log-probability of behavior that is not a number in one row."""
    log_prob = batch.log_prob.clone()
    log_prob[step, lane] = math.nan
    return batch._replace(log_prob=log_prob)


@pytest.mark.parametrize("settings", [{}, {"shuffle": "lanes"}, {"core": "gru"}], ids=["rows", "lanes", "gru"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_trained_rows_of_an_update_are_those_of_the_steps_that_were_taken(settings, epochs, monkeypatch):
    """A row counts if one of its minibatches was trained; the row that is not finite is in none of them."""
    update = make_update(epochs=epochs, minibatches=4, advantage=False, **settings)
    batch = make_batch(update)
    seen, loss = [], update.objective.loss
    monkeypatch.setattr(update.objective, "loss", lambda part, *rest: seen.append(part.lanes) or loss(part, *rest))
    skipped = update.run(broken_in(batch, 4, 5), 0, 0.0)["skipped"]
    assert skipped == epochs, "the broken row is in one minibatch of every epoch"
    number = 4 * B + 5 if update.by_rows else 5
    expected = torch.zeros(T * B if update.by_rows else B, dtype=torch.bool)
    for lanes in seen:
        if number not in lanes.tolist():
            expected[lanes] = True
    expected = expected.view(T, B) if update.by_rows else expected.expand(T, B)
    assert torch.equal(update.trained(), expected)
    assert not update.trained()[4, 5]
    assert epochs > 1 or int(expected.sum()) == T * B * 3 // 4
    update.run(batch, 1, 0.0)
    assert update.trained().all()


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (1, 3)])
def test_update_of_whole_batches_trains_all_rows_or_none(minibatches, epochs):
    update = make_update(epochs=epochs, minibatches=minibatches, advantage=False)
    batch = make_batch(update)
    assert update.run(broken_in(batch, 4, 5), 0, 0.0)["skipped"] == epochs
    assert not update.trained().any()
    update.run(batch, 1, 0.0)
    assert update.trained().all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("minibatches", [1, 4])
def test_update_whose_first_batch_was_not_finite_goes_on_as_if_it_had_not_been(kernels, minibatches):
    """Adam's moments, the average of the weights and all statistics are those of an update that never saw it."""
    settings = {"kernels": kernels, "minibatches": minibatches, "proximal": "ewma"}
    settings |= {"normalize": True, "value_targets": True, "span": 5.0}
    one, other = make_update(**settings), make_update(**settings)
    batches = [make_batch(other, seed=seed)._replace(discounted_return=torch.randn(T, B)) for seed in range(3)]
    nothing = torch.full_like(batches[0].reward, math.nan)
    metrics = one.run(batches[0]._replace(reward=nothing, discounted_return=nothing), 0, 0.0)
    assert metrics["skipped"] == minibatches
    found = state_of(one)
    assert all(torch.isfinite(x).all() for x in found.values())
    assert not found["optimizer/0.step"].any()
    for number, batch in enumerate(batches):
        assert one.run(batch, number, 0.0)["skipped"] == other.run(batch, number, 0.0)["skipped"] == 0
    found, expected = state_of(one), state_of(other)
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


@pytest.mark.parametrize("kernels", KERNELS)
def test_update_whose_first_advantages_are_not_all_finite_trains_the_others_as_they_are(kernels):
    """There are no statistics yet: advantages divided by nothing but an epsilon would be of order 1e8."""
    update = make_update(kernels=kernels, gamma=0.0)
    batch = make_batch(update)
    batch.reward[0, 5] = math.inf
    metrics = update.run(batch, 0, 0.0)
    assert metrics["skipped"] == 1
    start = update.objective.start(batch, update.model.unroll(batch.obs, batch.first))
    advantage = start.advantage[batch.valid]
    assert advantage[advantage.isfinite()].abs().max() < 10.0


@pytest.mark.parametrize("kernels", KERNELS)
def test_average_of_the_weights_does_not_step_with_a_skipped_optimizer_step(kernels):
    update = make_update(kernels=kernels, proximal="ewma", advantage=False, epochs=2)
    batch = make_batch(update)
    update.run(batch, 0, 0.0)
    before = {name: x.clone() for name, x in update.objective.state_dict().items()}
    update.run(broken_in(batch, slice(None), slice(None)), 1, 0.0)
    for name, x in update.objective.state_dict().items():
        assert torch.equal(x, before[name]), name
    update.run(broken_in(batch, 4, 5), 2, 0.0)
    weight = before["weight"]
    for _ in range(6):  # of the 8 steps of this update
        weight = weight * update.objective.decay + 1.0
    torch.testing.assert_close(update.objective.state_dict()["weight"], weight)


def test_moments_ignore_a_batch_that_is_not_finite():
    moments = Moments((2,))
    moments.update(torch.tensor([[1.0, math.inf], [2.0, 3.0]]))
    assert moments.count == 0
    moments.update(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    before = {name: x.clone() for name, x in moments.state_dict().items()}
    moments.update(torch.full((3, 2), math.nan))
    assert before["mean"].tolist() == [2.0, 4.0]
    assert all(torch.equal(x, before[name]) for name, x in moments.state_dict().items())


def test_ewma_moments_scale_nothing_before_their_first_finite_batch():
    moments = EwmaMoments(0.5)
    for mean, count in ((math.nan, 3.0), (0.0, 0.0)):
        found = moments.update(*(torch.tensor(x, dtype=torch.float64) for x in (mean, 0.0, count)))
        assert [float(x) for x in found] == [0.0, 1.0]
