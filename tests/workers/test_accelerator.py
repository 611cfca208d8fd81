"""Copies, padding, recordings: what a GPU worker does around its arithmetic, on a device that does all as late as it
may and replays nothing but what was recorded (late.py)."""

import contextlib
import gc

import numpy as np
import pytest
import torch
from late import Late, everything_on
from torch import nn

from sfactory.algo.surrogate import SURROGATES
from sfactory.algo.trace import TRACES
from sfactory.config import Config, Env, Learning, Model, Normalize, Optim, Run, Sampling, Stop
from sfactory.envs import ActionLeaf, Leaf, make_spec
from sfactory.model.actor_critic import ActorCritic
from sfactory.workers.accelerator import WARM, Cuda, NotRecordable, Replay, accelerator_of, register
from sfactory.workers.answers import DIRECT_BYTES, DeviceAnswers, HostAnswers, buckets
from sfactory.workers.lockstep import Lockstep
from sfactory.workers.network import pick_device
from sfactory.workers.staging import Staging
from sfactory.workers.training_batch import Batch
from sfactory.workers.update import Update
from sfactory.workers.wiring import Plan, Shared

torch.set_num_threads(1)
T, B, E = 5, 8, 4
DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
BOX = {"action": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))}
OBS = {"obs": Leaf((4,), "float32")}


# -- updates -----------------------------------------------------------------------------------------------------


def update_on(
    accelerator, actions=DISCRETE, core="none", normalize=None, optim=None, squash=False, said=None, **learning
):
    config = Config(
        run=Run(learner_threads=2 if isinstance(accelerator, Late) else 1),
        learning=Learning(**{"epochs": 2, "minibatches": 4, **learning}),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,), core=core, core_size=8, squash=squash),
        normalize=Normalize(**(normalize or {})),
        optim=Optim(**{"lr": 1e-2, "schedule": "linear", **(optim or {})}),
    )
    torch.manual_seed(0)
    model = ActorCritic(
        OBS, actions, hidden=(16,), core=core, core_size=8 if core != "none" else 0,
        normalize_obs=config.normalize.obs, squash=squash,
    )  # fmt: skip
    say = (lambda line: None) if said is None else said.append
    device = torch.device("cpu") if accelerator is None else accelerator.device
    return Update(config, model.to(device), device, accelerator, say)


def fill(batch: Batch, update: Update, number: int) -> None:
    """Another batch into the same tensors."""
    g = torch.Generator().manual_seed(number)

    def drawn(*shape):
        return torch.randn(*shape, generator=g).to(update.device)

    batch.obs["obs"].copy_(drawn(T + 1, B, 4) * (1 + number))
    # Drawn on the host whatever the device: one draw that falls the other way would make it another batch.
    params = torch.randn(batch.params.shape, generator=g) / 2
    action = update.distribution.sample(params, torch.rand(T, B, update.distribution.num_noise, generator=g))
    batch.action["action"].copy_(action["action"])
    batch.params.copy_(params)
    batch.log_prob.copy_(update.distribution.log_prob(params, action).masked_fill(~batch.valid.cpu(), 0.0))
    batch.reward.copy_(drawn(T, B).masked_fill(~batch.valid, 0.0))
    batch.lag.copy_(torch.randint(0, 4, (T, B), generator=g))
    if batch.discounted_return is not None:
        batch.discounted_return.copy_(drawn(T, B))


def empty_batch(update: Update) -> Batch:
    first, ends, valid = (torch.zeros(T + 1, B).bool(), torch.zeros(T, B).bool(), torch.ones(T, B).bool())
    first[3, ::2] = ends[1, ::2] = True
    valid[2, ::2] = False
    part = update.distribution.parts[0]
    action = torch.zeros(T, B, dtype=torch.int64) if part.discrete else torch.zeros(T, B, 2)
    state = torch.zeros(B, update.model.state_size) if update.model.state_size else None
    rest = torch.zeros(T, B) if update.config.normalize.reward else None
    batch = Batch(
        {"obs": torch.zeros(T + 1, B, 4)}, first, {"action": action}, torch.zeros(T, B),
        torch.zeros(T, B, update.distribution.num_params), torch.zeros(T, B), ends, torch.zeros_like(ends), valid,
        torch.zeros(T, B), state, rest,
    )  # fmt: skip
    return moved(batch, update.device)


def moved(batch: Batch, device) -> Batch:
    def there(value):
        if isinstance(value, dict):
            return {name: there(x) for name, x in value.items()}
        return None if value is None else value.to(device)

    return Batch(**{name: there(value) for name, value in batch._asdict().items()})


def trained(update: Update, updates: int = 6):
    """Every number the update holds, and its metrics, after so many updates from ever other batches."""
    batch, rows = empty_batch(update), []
    for number in range(updates):
        fill(batch, update, number)
        rows.append(update.run(batch, number, number / updates))
    rows = [{name: float(x) for name, x in row.items()} for row in rows]  # read late: each is its own update's
    parts = update.state_dict()
    return {f"{part}/{name}": x.clone() for part, tensors in parts.items() for name, x in tensors.items()}, rows


CASES = {
    "one pass": {"epochs": 1, "minibatches": 1},
    "whole batches": {"epochs": 3, "minibatches": 1},
    "rows": {},
    "lanes": {"shuffle": "lanes"},
    "gru": {"core": "gru"},
    "lstm": {"core": "lstm"},
    "ewma": {"proximal": "ewma", "trace": "vtrace"},
    "A-3PO": {"proximal": "interpolate"},
    "around behaviour": {"proximal": "behavior", "surrogate": "ppo"},
    "normalisers": {"normalize": {"obs": True, "reward": True, "value_targets": True, "advantage_span": 8.0}},
    "box": {"actions": BOX},
    "squashed box": {"actions": BOX, "squash": True},
    "gradient limit": {"optim": {"max_grad_norm": 1e-3}},
    "adaptive": {"optim": {"schedule": "kl_adaptive"}},
    "impala": {"surrogate": "impala", "behavior_weight": "trace", "trace": "vtrace"},
    **{f"surrogate {name}": {"surrogate": name} for name in SURROGATES if name not in ("ppo", "impala")},
    **{f"trace {name}": {"trace": name} for name in TRACES},
}


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_update_is_the_update(case):
    """Bit for bit, with batches, orders, learning rates and statistics that are other ones every time."""
    late, stepwise = Late(), Late(may_record=False)
    ours, rows = trained(update_on(late, **CASES[case]))
    theirs, other_rows = trained(update_on(stepwise, **CASES[case]))
    assert late.recordings == 1
    assert late.replays == 6 - WARM
    assert stepwise.recordings == 0
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name
    assert rows == other_rows
    assert rows[-1] != rows[-2]


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_an_update_is_left_on_the_host(case, monkeypatch):
    """On torch's device without memory an operation with a tensor of the CPU, or a value somebody asks for, is an
    error: as on a GPU."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *unused: False)  # knows no such device
    here = update_on(None, **CASES[case])
    update = Update(here.config, here.model.to("meta"), torch.device("meta"))
    monkeypatch.setattr(update.optimizer, "step", lambda: None)  # the fused one asks for a real device
    batch = moved(empty_batch(here), update.device)
    order = update._order(batch, 0)
    assert order is None or order.device.type == "meta"
    stats = update._passes(batch, order)
    assert {x.device.type for x in stats.values()} == {"meta"}
    out = update.model({"obs": batch.obs["obs"][0]}, batch.state, batch.first[0])
    noise = torch.zeros(B, update.distribution.num_noise, device="meta")
    action, log_prob = update.distribution.sample_and_log_prob(out.params, noise)
    assert {x.device.type for x in (*action.values(), log_prob, out.value)} == {"meta"}


def test_what_cannot_be_recorded_is_done_step_by_step():
    late, said = Late(), []
    update = update_on(late, proximal="snapshot", said=said)
    trained(update)
    assert (late.recordings, said) == (0, [])  # known beforehand: its ring turns
    refused = Late(may_record=False)
    trained(update_on(refused, said=said))
    assert said == ["updates are not recorded: not here"]


def test_one_stream_has_one_thread():
    assert update_on(Late()).network.crew.inboxes == []  # two threads were asked for


def test_a_recording_refuses_what_asks_the_host():
    """Else none of the tests here would say anything of a GPU."""
    x = torch.arange(4.0)
    waiting = (lambda: x.tolist(), lambda: x.cpu(), lambda: x.numpy())
    asking = (lambda: x.sum().item(), lambda: x[x > 1].sum(), lambda: x.nonzero(), lambda: torch.unique(x))
    for work in (*waiting, *asking, lambda: torch.as_tensor(np.ones(4)), lambda: x + torch.tensor(1.0)):
        with pytest.raises(NotRecordable):
            Late().record(work)
    Late().record(lambda: x.add_(1.0))
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]  # the recording itself does nothing


def test_a_number_from_outside_would_be_that_of_the_recording():
    """The mistake that tensors for the learning rate and the moments avoid shows here."""
    state = {"lr": 1.0}
    replay = Replay(Late(), lambda batch, order: {"lr": batch * state["lr"]}, print)
    one, seen = torch.ones(()), []
    for number in range(5):
        state["lr"] = float(number)
        seen.append(float(replay(one, None)["lr"]))
    assert seen == [0.0, 1.0, 2.0, 2.0, 2.0]
    with pytest.raises(AssertionError, match="where it was"):
        replay(torch.ones(()), None)


# -- answers -----------------------------------------------------------------------------------------------------

WIDE = DIRECT_BYTES // 4 // E  # floats of a row, so that a group's rows are just large enough for a copy of their own


class Doubling:
    """A forward pass that remembers what it was given."""

    def __init__(self):
        self.linear = nn.Linear(WIDE, 2)
        self.seen = []

    @torch.inference_mode()
    def __call__(self, inputs):
        self.seen.append({name: x.clone() for name, x in inputs.items()})
        return {"value": self.linear(inputs["wide"]) + inputs["small"], "twice": inputs["small"].long() * 2}


def answers_on(late, groups=5, **settings):
    inputs = {"wide": np.zeros((groups * E, WIDE), np.float32), "small": np.zeros((groups * E, 1), np.float32)}
    forward, plain = Doubling(), Doubling()
    plain.linear.load_state_dict(forward.linear.state_dict())
    forward.linear.to(late.device)
    device = DeviceAnswers(forward, inputs, E, late, **{"direct": getattr(late, "may_register", True), **settings})
    host = HostAnswers(plain, {name: x.copy() for name, x in inputs.items()}, E)
    return device, host, forward


@pytest.mark.parametrize("may_record", [True, False])
@pytest.mark.parametrize("may_register", [True, False])
def test_answers_of_a_device_are_those_of_the_host(may_register, may_record):
    """Whatever number of groups waits, and whatever the batch before left behind."""
    said = []
    late = Late(may_register, may_record)
    device, host, _ = answers_on(late, say=said.append)
    assert ("wide" in device.staged) is not may_register
    assert "small" in device.staged
    draws = np.random.default_rng(0)
    for groups in (5, 1, 3, 2, 5, 4, 1):
        for place in range(groups):
            rows = {"wide": draws.random((E, WIDE), np.float32), "small": draws.random((E, 1), np.float32)}
            for name, x in rows.items():
                device.put(name, place, x)
                host.put(name, place, x)
        ours, theirs = device.of(groups), host.of(groups)
        for name, x in theirs.items():
            assert x.shape == ours[name].shape
            assert x.dtype == ours[name].dtype
            np.testing.assert_allclose(ours[name], x, rtol=1e-5, atol=1e-6)
    assert late.recordings == (4 if may_record else 0)
    assert said == ([] if may_record else ["inference is not recorded: not here"])


@pytest.mark.parametrize("may_register", [True, False])
def test_padding_is_zero(may_register):
    device, _, forward = answers_on(Late(may_register, may_record=False))
    ones = {"wide": np.ones((E, WIDE), np.float32), "small": np.ones((E, 1), np.float32)}
    for groups, bucket in ((5, 5), (3, 4), (1, 1), (2, 2)):
        for place in range(groups):
            for name, x in ones.items():
                device.put(name, place, x)
        device.of(groups)
        for x in forward.seen[-1].values():
            assert len(x) == bucket * E
            assert bool((x[: groups * E] == 1).all())
            assert bool((x[groups * E :] == 0).all())


def test_new_weights_are_in_the_next_answers():
    """A recording reads the weights where they are, so they have to be changed in place."""
    device, _, forward = answers_on(Late())
    device.put("wide", 0, np.ones((E, WIDE), np.float32))
    before = device.of(1)["value"].copy()
    with torch.no_grad():
        forward.linear.weight.mul_(2.0)
        forward.linear.bias.mul_(2.0)
    device.put("wide", 0, np.ones((E, WIDE), np.float32))
    np.testing.assert_allclose(device.of(1)["value"], 2 * before, rtol=1e-5)


def test_few_shapes_occur():
    assert buckets(1) == [1]
    assert buckets(2) == [1, 2]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(12) == [1, 2, 4, 8, 12]
    device, _, _ = answers_on(Late(), groups=6, whole=True)
    assert device.buckets == [6]


# -- whole runs --------------------------------------------------------------------------------------------------


def run_on(late, tmp_path, monkeypatch, **model):
    """Weights after a short lockstep run of a game with pictures of 64 KiB a group. Slots are free, and then poisoned,
    before an update begins."""
    device = "cpu" if late is None else late.device.type
    config = Config(
        run=Run(mode="lockstep", learner_threads=1, debug=True, device=device),
        env=Env(name="minatar/breakout"),
        sampling=Sampling(2, 2, 192, 4, 2),
        learning=Learning(epochs=2, minibatches=2, trace="vtrace", proximal="ewma"),
        model=Model(hidden=(16,), **model),
        stop=Stop(env_steps=10**6),
    )
    everything_on(late, monkeypatch)
    run = Lockstep(Plan(config, make_spec(config.env.name, {}), str(tmp_path), 0))
    try:
        while run.learner.updates < 5:
            run.turn()
        said = [message[2] for message in run.post.take() if message[0] == "log"]
        flat = torch.empty(run.learner.model.flat_size())
        run.learner.model.write_flat(flat)
        return flat, run.learner.env_steps, said
    finally:
        run.close()


@pytest.mark.parametrize("model", [{}, {"core": "gru", "core_size": 8}])
def test_a_run_on_a_device_is_the_run_on_the_host(tmp_path, monkeypatch, model):
    """Games, batches, weights: through pinned memory or past it, recorded or step by step, it is the same run."""
    late = Late()
    weights, steps, said = run_on(late, tmp_path, monkeypatch, **model)
    assert late.ever_registered > 4 * 192 * 400
    assert late.registered == 0  # given back with the run
    assert late.recordings == 2  # one shape of inference, one update
    assert late.replays > 4 * 5
    assert said == []
    poor = Late(may_register=False, may_record=False)
    others, same_steps, said = run_on(poor, tmp_path, monkeypatch, **model)
    assert torch.equal(weights, others)
    assert steps == same_steps > 0
    assert [line.split(":")[0] for line in said] == [
        "the GPU may not read the shared memory by itself",
        "the GPU may not read the shared memory by itself",
        "inference is not recorded",
        "updates are not recorded",
    ]
    monkeypatch.undo()
    plain, same_steps, said = run_on(None, tmp_path, monkeypatch, **model)
    assert (steps, said) == (same_steps, [])
    torch.testing.assert_close(weights, plain, rtol=1e-3, atol=1e-4)  # its learning rate is a float64


@pytest.mark.parametrize("kind", [lambda: None, Late])
def test_a_batch_says_nothing_of_reset_rows_and_counts_its_lag(tmp_path, kind):
    late = kind()
    config = Config(
        env=Env(name="faults/count", settings={"length": 5}), sampling=Sampling(1, 2, E, T, 2), learning=Learning()
    )
    plan = Plan(config, make_spec("faults/count", {"length": 5}), str(tmp_path), 0)
    shared = Shared.create(plan)
    fields = shared.trajectories
    for name in (*fields.names, "policy_version"):
        fields[name][...] = 1
    fields["valid"][1, 0, 2] = False
    fields["log_prob"][1, 0, 2] = np.nan  # what an environment left behind that failed
    fields["policy_version"][1, 0] = np.arange(T)
    staging = Staging(plan, late, direct=False)
    staging.copy([(0, 1), (1, 0)], fields, updates=3)
    batch = staging.batch
    assert bool((batch.log_prob[:, :E] == 1).all())
    assert batch.log_prob[:, E].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert batch.lag[:, 0].tolist() == [2.0] * T
    assert batch.lag[:, E].tolist() == [3.0, 2.0, 1.0, 0.0, 0.0]
    assert staging.valid_rows == 2 * T * E - E
    assert [sorted(set(lag.tolist())) for lag in staging.lags(3)] == [[2], [-1, 0, 2, 3]]
    assert {name: tuple(x.shape) for name, x in staging.whole().items()}["reward"] == (T, 2 * E)
    shared.close()


class NoDriver:
    """torch.cuda without a device: what is called and in which order, and what fails."""

    def __init__(self, refuses=()):
        self.refuses, self.calls = refuses, []
        self.Event = self.Stream = lambda *args, **also: self
        self.CUDAGraph = object

    def cudart(self):
        return self

    def cudaHostRegister(self, address, size, flags):
        self.calls.append("register")
        return 1 if "register" in self.refuses else 0

    def cudaHostUnregister(self, address):
        self.calls.append("unregister")

    def graph_pool_handle(self):
        self.calls.append("pool")
        return (0, len(self.calls))

    @contextlib.contextmanager
    def graph(self, graph, **settings):
        try:
            yield
        finally:
            if "capture" in self.refuses:
                raise RuntimeError("operation failed due to a previous error during capture")

    def synchronize(self, device=None):
        self.calls.append("synchronize")


@pytest.fixture
def no_driver(monkeypatch):
    driver = NoDriver()
    monkeypatch.setattr(torch, "cuda", driver)
    monkeypatch.setattr(Cuda, "registered", {})
    return driver


def test_memory_is_registered_once_and_given_back(no_driver, monkeypatch):
    """In lockstep two workers ask for the same memory; a refusal leaves an error with CUDA that must not be the next
    kernel's."""
    cuda, memory = Cuda(torch.device("cpu"), spin=False), np.zeros(64, np.uint8)
    other = Cuda(torch.device("cpu"), spin=True)
    no_driver.calls.clear()
    assert cuda.register(memory)
    assert other.register(memory)
    assert no_driver.calls == ["register"]
    cuda.release()
    other.release()
    assert no_driver.calls == ["register", "synchronize", "unregister", "synchronize"]
    no_driver.refuses = ("register",)
    assert not cuda.register(memory)
    cuda.release()
    assert no_driver.calls.count("unregister") == 1


def test_a_recording_that_fails_says_why_and_leaves_the_collector_on(no_driver):
    cuda = Cuda(torch.device("cpu"), spin=False)
    no_driver.refuses = ("capture",)

    def work():
        assert not gc.isenabled()
        raise RuntimeError("this copy waits for the host\nand a long story")

    with pytest.raises(NotRecordable, match=r"^this copy waits for the host$"):
        cuda.record(work)
    assert gc.isenabled()
    with pytest.raises(NotRecordable, match=r"^operation failed"):
        cuda.record(lambda: None)


def test_a_device_of_cuda_has_a_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("cpu") == torch.device("cpu")


def test_the_cpu_has_no_accelerator():
    assert accelerator_of(torch.device("cpu"), spin=True) is None
    assert register(None, None, print) is False
