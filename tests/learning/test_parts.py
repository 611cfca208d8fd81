"""Minibatches that are trained part by part: the same gradients and metrics, and the memory of one part."""

import weakref
from itertools import pairwise
from unittest import mock

import pytest
import torch
from fake_accelerator import FakeAccelerator
from test_distributed import CountingLearner
from test_objectives import QObjective
from test_recorded_updates import CASES, UPDATES, empty_batch, moved, trained, update_on
from update_helpers import B, T, divide_into_parts, make_batch, make_update

from sfactory.algo.proximal import PROXIMALS
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.device.accelerator import WARM
from sfactory.envs import ActionLeaf
from sfactory.learning import objectives, parts
from sfactory.learning.batch import BatchLanes
from sfactory.learning.parts import bounds, divided
from sfactory.learning.update import Update

torch.set_num_threads(1)
BOX = {"action": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))}
ROW = 4  # numbers of an observation
DIVISIONS = {  # settings, most numbers of a part, number of parts of each minibatch
    "rows": ({"epochs": 2, "minibatches": 4}, 5 * ROW, 3),
    "lanes": ({"shuffle": "lanes", "minibatches": 2}, 2 * T * ROW, 2),
    "gru": ({"core": "gru", "epochs": 2, "minibatches": 2}, 3 * T * ROW, 2),
    "lstm": ({"core": "lstm", "minibatches": 1, "epochs": 2}, 3 * T * ROW, 3),
    "one pass": ({"minibatches": 1}, 13 * ROW, 4),
    "one pass of a gru": ({"core": "gru", "minibatches": 1}, 3 * T * ROW, 3),
    "whole batches": ({"epochs": 3, "minibatches": 1}, 13 * ROW, 4),
}


def stale_batch(update, seed=1):
    """A batch that is two updates old, with ratios on both sides of the clips; most reset rows are at its beginning."""
    batch = make_batch(update, seed=seed)
    valid = batch.valid.clone()
    valid[:2], valid[:, 0], valid[-1, -1] = False, False, False
    g = torch.Generator().manual_seed(seed)
    log_prob = batch.log_prob + 0.5 * torch.randn(T, B, generator=g)
    return batch._replace(
        valid=valid, log_prob=log_prob.masked_fill(~valid, 0.0), lag=torch.full((T, B), 2.0).to(log_prob.dtype)
    )


def learned(update, batches):
    """The gradient of every optimizer step, and the metrics of every update."""
    gradients = []
    inner = update.optimizer.clip_and_step

    def spy(limit):
        gradients.append(update.flat.gradient.clone())
        return inner(limit)

    with mock.patch.object(update.optimizer, "clip_and_step", spy):
        metrics = [update.run(batch, number, 0.0) for number, batch in enumerate(batches)]
    return gradients, metrics


def compare(monkeypatch, most, num_parts, rtol, atol, **settings):
    """Train undivided and in parts; gradients and metrics of every step and update must be equal."""
    whole, by_parts = make_update(**settings), make_update(**settings)
    batches = [stale_batch(whole, seed) for seed in range(2)]
    gradients, metrics = learned(whole, batches)
    with monkeypatch.context() as context:
        divide_into_parts(context, most)
        forward_train = mock.Mock(wraps=by_parts.network.forward_train)
        context.setattr(by_parts.network, "forward_train", forward_train)
        divided_gradients, divided_metrics = learned(by_parts, batches)
    assert forward_train.call_count == num_parts * len(gradients)
    for expected, actual in zip(gradients, divided_gradients, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    for expected, actual in zip(metrics, divided_metrics, strict=True):
        assert list(expected) == list(actual)
        for name, x in expected.items():
            torch.testing.assert_close(actual[name], x, rtol=rtol, atol=atol, msg=name)
        assert expected["skipped"] == 0
        assert 0.0 < expected["losses/clipfrac"] < 1.0 or settings.get("proximal") != "behavior"
        assert 0.0 < expected["offpolicy/ess"] < 1.0


@pytest.fixture
def float64(monkeypatch):
    """Compute in float64 what is float32, flat parameters and Adam included: another order of sums changes 1e-15."""
    before, single, adam = torch.get_default_dtype(), torch.float32, torch._fused_adam_

    def adam_of_double(*columns, found_inf, **options):  # the kernel reads two of its arguments as float32
        steps = [step.to(single) for step in columns[-1]]
        return adam(*columns[:-1], steps, found_inf=found_inf.to(single), **options)

    monkeypatch.setattr(torch, "_fused_adam_", adam_of_double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.sampled(3)  # two or three combinations of every division; what is combined does not know of parts
@pytest.mark.parametrize("kernels", ["torch", "autograd"])
@pytest.mark.parametrize("surrogate", ["decoupled", "ppo"])
@pytest.mark.parametrize("actions", ["categorical", "box"])
@pytest.mark.parametrize("division", DIVISIONS)
def test_update_in_parts_has_the_gradients_and_metrics_of_the_undivided_update(
    division, actions, surrogate, kernels, monkeypatch, float64
):
    settings, most, num_parts = DIVISIONS[division]
    if actions == "box":
        settings = {**settings, "actions": BOX}
    proximal = "recompute" if surrogate == "decoupled" else "behavior"
    compare(
        monkeypatch, most, num_parts, 1e-12, 1e-12, surrogate=surrogate, proximal=proximal, kernels=kernels, **settings
    )


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_can_be_trained_in_parts(surrogate, monkeypatch, float64):
    weight = "trace" if surrogate == "impala" else "surrogate"
    proximal = "behavior" if surrogate == "ppo" else "recompute"
    settings = {"surrogate": surrogate, "behavior_weight": weight, "proximal": proximal, "trace": "vtrace"}
    num_parts = 1 if SURROGATES[surrogate].whole_minibatch else 3  # where samples depend on each other
    compare(monkeypatch, 5 * ROW, num_parts, 1e-12, 1e-12, epochs=2, kernels="autograd", **settings)


@pytest.mark.parametrize("core", ["none", "gru"])
@pytest.mark.parametrize("proximal", PROXIMALS)
def test_every_proximal_policy_can_be_used_in_parts(proximal, core, monkeypatch, float64):
    most = 5 * ROW if core == "none" else 2 * T * ROW
    num_parts = 5 if core == "none" else 2
    settings = {"proximal": proximal, "snapshot_age": 0, "core": core, "minibatches": 2, "epochs": 2}
    compare(monkeypatch, most, num_parts, 1e-12, 1e-12, value_clip=0.1, value_targets=True, **settings)


@pytest.mark.parametrize("division", DIVISIONS)
def test_value_with_bins_can_be_trained_in_parts(division, monkeypatch, float64):
    settings, most, num_parts = DIVISIONS[division]
    compare(monkeypatch, most, num_parts, 1e-12, 1e-12, value_head="hl_gauss", value_targets=True, **settings)


@pytest.mark.parametrize("division", DIVISIONS)
def test_update_in_parts_learns_what_the_undivided_update_learns_in_float32(division, monkeypatch):
    settings, most, num_parts = DIVISIONS[division]
    compare(monkeypatch, most, num_parts, 1e-3, 1e-5, **settings)


# -- memory --------------------------------------------------------------------------------------------------------


class Saved:
    """A tensor that autograd saved for a backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


class Memory:
    """What the passes of one update keep for their backward passes: activations, and observations of minibatches."""

    def __init__(self, update, batch, monkeypatch):
        """most: numbers of activations at the same time. left_over: at the start of every pass with gradient, how many
        activations and observations of earlier passes are still there."""
        self.alive, self.most, self.left_over, self.rows = weakref.WeakSet(), 0, [], []
        self.weights = update.flat.values.untyped_storage().data_ptr()  # saved too, whatever the number of rows
        self.forward_train = update.network.forward_train
        monkeypatch.setattr(update.network, "forward_train", self.start_pass)
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda saved: saved.tensor):
            update.run(batch, 0, 0.0)

    def pack(self, tensor):
        saved = Saved(tensor)
        if tensor.untyped_storage().data_ptr() != self.weights:
            self.alive.add(saved)
            self.most = max(self.most, sum(x.tensor.numel() for x in self.alive))
        return saved

    def start_pass(self, rows):
        self.left_over.append(len(self.alive) + sum(earlier() is not None for earlier in self.rows))
        if isinstance(rows, BatchLanes):
            self.rows.append(weakref.ref(rows))
        return self.forward_train(rows)


@pytest.mark.parametrize("kernels", ["torch", "autograd"])
@pytest.mark.parametrize(("core", "epochs"), [("none", 1), ("none", 2), ("gru", 1), ("gru", 2)])
def test_one_part_at_a_time_keeps_activations_and_observations(core, epochs, kernels, monkeypatch):
    """Of one optimizer step (`epochs` 1) and of several: four parts need a quarter of the memory."""
    settings = {"core": core, "epochs": epochs, "minibatches": 1, "kernels": kernels, "hidden": (64,)}
    whole = make_update(**settings)
    batch = make_batch(whole)
    undivided = Memory(whole, batch, monkeypatch)
    divide_into_parts(monkeypatch, T * B * ROW // 4)
    by_parts = Memory(make_update(**settings), batch, monkeypatch)
    assert by_parts.left_over == [0] * 4 * epochs
    assert by_parts.most < 0.27 * undivided.most


def test_proximal_policy_with_weights_of_its_own_is_evaluated_part_by_part(monkeypatch):
    update = make_update(proximal="ewma", epochs=2, minibatches=1)
    batch, unroll = make_batch(update), mock.Mock(wraps=update.model.unroll)
    monkeypatch.setattr(update.model, "unroll", unroll)
    divide_into_parts(monkeypatch, 12 * ROW)
    update.run(batch, 0, 0.0)
    rows = [call.args[0]["obs"].shape[1] for call in unroll.call_args_list]
    assert rows == [12] * 4 * 4  # for two epochs, for the report, and for the gradient that comes with the report


def test_objective_that_cannot_be_divided_keeps_its_minibatches_whole(monkeypatch):
    """`QObjective` takes plain means: its loss and that of its auxiliary phase are computed from all rows."""
    assert not QObjective.divisible
    monkeypatch.setitem(objectives.OBJECTIVES, "actor_critic", QObjective)
    whole, other = make_update(minibatches=2, gamma=0.1), make_update(minibatches=2, gamma=0.1)
    batches = [make_batch(whole, seed=seed) for seed in range(2)]  # the second has the auxiliary phase
    gradients, metrics = learned(whole, batches)
    divide_into_parts(monkeypatch, 5 * ROW)
    forward_train = mock.Mock(wraps=other.network.forward_train)
    monkeypatch.setattr(other.network, "forward_train", forward_train)
    other_gradients, other_metrics = learned(other, batches)
    assert forward_train.call_count == len(gradients) == 2 + 2 + 1
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(other_metrics, metrics, rtol=1e-3, atol=1e-6)


# -- what surrounds the gradient --------------------------------------------------------------------------------------


def test_gradients_of_all_parts_are_averaged_over_learners_once_with_the_rows_of_the_minibatch(monkeypatch):
    learner, other = CountingLearner(), CountingLearner()
    batch = stale_batch(make_update())
    make_update(learners=learner, epochs=2, minibatches=1).run(batch, 0, 0.0)
    divide_into_parts(monkeypatch, 13 * ROW)
    make_update(learners=other, epochs=2, minibatches=1).run(batch, 0, 0.0)
    assert other.calls == learner.calls == ["moments 1", "gradients", "gradients and metrics"]
    assert other.rows == learner.rows == int(batch.valid.sum())


@pytest.mark.parametrize("epochs", [1, 2])
def test_step_is_skipped_if_the_gradient_of_one_part_is_not_finite(epochs, monkeypatch):
    update = make_update(core="gru", minibatches=1, epochs=epochs, advantage=False)
    batch, before = make_batch(update), update.flat.values.clone()
    batch.obs["obs"][:, 0] = torch.nan  # a lane of the first part
    divide_into_parts(monkeypatch, 3 * T * ROW)
    seen, inner = [], update.network.backward

    def backward(*given):
        inner(*given)
        seen.append(bool(update.flat.gradient.isfinite().all()))

    monkeypatch.setattr(update.network, "backward", backward)
    assert update.run(batch, 0, 0.0)["skipped"] == epochs
    assert seen == [False, True, True] * epochs
    assert torch.equal(update.flat.values, before)


@pytest.mark.sampled(2)  # undivided, `test_recorded_updates` has the others; the division of "lanes" is that of "gru"
@pytest.mark.parametrize(
    "case", ["one pass", "whole batches", "rows", "lanes", "gru", "squashed box", "normalizers", "adaptive", "ewma"]
)
def test_recorded_update_in_parts_equals_the_update_in_parts_to_the_bit(case, monkeypatch):
    lanes = case in ("lanes", "gru")  # minibatches of 2 lanes
    expected, _ = trained(update_on(FakeAccelerator(may_record=False), **CASES[case]), updates=2)
    divide_into_parts(monkeypatch, 5 * ROW if lanes else 4 * ROW)
    late, stepwise = FakeAccelerator(), FakeAccelerator(may_record=False)
    recorded, rows = trained(update_on(late, **CASES[case]))
    direct, direct_rows = trained(update_on(stepwise, **CASES[case]))
    assert (late.recordings, late.replays) == (1, UPDATES - WARM)
    for name, x in recorded.items():
        assert torch.equal(x, direct[name]), name
    assert rows == direct_rows
    by_parts, _ = trained(update_on(stepwise, **CASES[case]), updates=2)
    for name, x in expected.items():
        torch.testing.assert_close(by_parts[name], x, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.parametrize("case", ["one pass", "rows", "gru", "ewma"])
def test_update_in_parts_runs_on_the_device_alone(case, monkeypatch):
    """On torch's meta device, operations with CPU tensors and reading a value are errors, as in a recording."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *unused: False)  # does not know the meta device
    monkeypatch.setattr(parts, "GPU_NUMBERS", 4 * ROW)
    on_host = update_on(None, **CASES[case])
    update = Update(on_host.config, on_host.model.to("meta"), torch.device("meta"))
    monkeypatch.setattr(update.optimizer, "step", lambda skipped: None)  # the fused optimizer needs a real device
    forward_train = mock.Mock(wraps=update.network.forward_train)
    monkeypatch.setattr(update.network, "forward_train", forward_train)
    batch = moved(empty_batch(on_host), update.device)
    stats = update._device_work(batch, update._order(batch, 0))
    assert {x.device.type for x in stats.values()} == {"meta"}
    assert forward_train.call_count == {"one pass": 10, "gru": 16}.get(case, 24)


# -- the division --------------------------------------------------------------------------------------------------


def test_bounds_divide_into_the_fewest_parts_that_hold_at_most_the_given_numbers():
    for items in range(1, 40):
        for most in range(1, 90):
            cuts = bounds(items, 7, most)
            sizes = [end - start for start, end in pairwise(cuts)]
            held = max(1, most // 7)  # an item is not divided
            assert (cuts[0], cuts[-1]) == (0, items)
            assert max(sizes) <= held
            assert max(sizes) - min(sizes) <= 1
            assert len(sizes) == -(-items // held)


def test_divided_gives_the_lanes_of_the_parts_in_their_order(monkeypatch):
    update = make_update()
    batch = make_batch(update).without_last_row()
    lanes = torch.tensor([7, 0, 3, 5, 2])
    assert divided(batch) == divided(batch.lanes(lanes)) == []
    divide_into_parts(monkeypatch, 2 * T * ROW)
    assert [part.tolist() for part in divided(batch)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [part.tolist() for part in divided(batch.lanes(lanes))] == [[7], [0, 3], [5, 2]]
    assert [part.tolist() for part in divided(batch.as_rows().lanes(lanes))] == []
    divide_into_parts(monkeypatch, 1)
    assert len(divided(batch)) == B


def test_minibatch_on_a_gpu_is_divided_only_if_it_needs_much_memory():
    """On a CPU never: its results and its speed do not depend on parts."""

    def num_parts(rows, shape, device):
        batch = make_batch(make_update())
        obs = {"obs": torch.empty(1, rows, *shape, dtype=torch.uint8, device="meta")}
        return len(divided(batch._replace(obs=obs, first=torch.empty(1, rows, dtype=torch.bool, device=device))))

    assert num_parts(65536, (4, 84, 84), "meta") == 4
    assert num_parts(16384, (4, 84, 84), "meta") == num_parts(1 << 20, (10, 10, 4), "meta") == 0
    assert num_parts(65536, (4, 84, 84), "cpu") == 0
