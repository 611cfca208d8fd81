"""Recorded updates equal updates that are not recorded, on a device that replays only what was recorded."""

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator

from sfactory.algo.surrogates.options import MASK_USES
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.algo.trace import TRACES
from sfactory.config import AlgorithmConfig, Config, Model, Normalize, Optim, Run, Sampling, with_settings
from sfactory.device.accelerator import WARM
from sfactory.device.ranks import Ranks
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning.batch import Batch
from sfactory.learning.distributed import Counts, Vote
from sfactory.learning.objectives.actor_critic import value_bins
from sfactory.learning.process_group import NOTES, ProcessGroup
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.advantage_network import AdvantageNetwork
from sfactory.model.q_network import QNetwork

torch.set_num_threads(1)
T, B = 5, 8
DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
BOX = {"action": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))}
OBS = {"obs": Leaf((4,), "float32")}


def update_on(
    accelerator,
    actions=DISCRETE,
    core="none",
    normalize=None,
    optim=None,
    squash=False,
    lines=None,
    learners=None,
    mask="none",
    algorithm="actor_critic",
    **learning,
):
    config = Config(
        algorithm=AlgorithmConfig(algorithm),
        run=Run(kernels="torch", learner_threads=2 if isinstance(accelerator, FakeAccelerator) else 1),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,), core=core, core_size=8 if core != "none" else Model.core_size, squash=squash),
        normalize=Normalize(**(normalize or {})),
        optim=Optim(**{"lr": 1e-2, "schedule": "linear", **(optim or {})}),
    )
    learning = {"epochs": 2, "minibatches": 4, **learning}
    names = {name: name.replace("__", ".") if "__" in name else f"learning.{name}" for name in learning}
    config = with_settings(config, {names[name]: value for name, value in learning.items()})
    config = with_settings(config, {"surrogate.mask": mask})
    torch.manual_seed(0)
    model = {"pqn": QNetwork, "dae": AdvantageNetwork}.get(algorithm, ActorCritic)(
        OBS, actions, hidden=(16,), core=core, core_size=8 if core != "none" else 0,
        normalize_obs=config.normalize.obs, squash=squash, median=config.surrogate.has_median_head,
        value_bins=value_bins(config),
    )  # fmt: skip
    log = (lambda line: None) if lines is None else lines.append
    device = torch.device("cpu") if accelerator is None else accelerator.device
    return Update(config, model.to(device), device, accelerator, log, learners)


def fill(batch: Batch, update: Update, number: int) -> None:
    """Write another batch into the same tensors."""
    g = torch.Generator().manual_seed(number)

    def drawn(*shape):
        return torch.randn(*shape, generator=g).to(update.device)

    batch.obs["obs"].copy_(drawn(T + 1, B, 4) * (1 + number))
    # Drawn on the host for every device: one sample that rounds the other way would make it another batch.
    params = torch.randn(batch.params.shape, generator=g) / 2
    if isinstance(update.model, QNetwork):
        params[..., -1] = 0.3  # epsilon
    noise = torch.rand(T, B, update.model.distribution.num_noise, generator=g)
    action = update.model.distribution.sample(params, noise)
    batch.action["action"].copy_(action["action"])
    batch.params.copy_(params)
    batch.log_prob.copy_(update.model.distribution.log_prob(params, action).masked_fill(~batch.valid.cpu(), 0.0))
    batch.reward.copy_(drawn(T, B).masked_fill(~batch.valid, 0.0))
    batch.lag.copy_(torch.randint(0, 4, (T, B), generator=g))
    if batch.discounted_return is not None:
        batch.discounted_return.copy_(drawn(T, B))


def empty_batch(update: Update) -> Batch:
    first, ends, valid = (torch.zeros(T + 1, B).bool(), torch.zeros(T, B).bool(), torch.ones(T, B).bool())
    first[3, ::2] = ends[1, ::2] = True
    valid[2, ::2] = False
    part = update.model.distribution.parts[0]
    action = torch.zeros(T, B, dtype=torch.int64) if part.discrete else torch.zeros(T, B, 2)
    state = torch.zeros(B, update.model.state_size) if update.model.state_size else None
    rest = torch.zeros(T, B) if update.config.normalize.reward else None
    batch = Batch(
        {"obs": torch.zeros(T + 1, B, 4)}, first, {"action": action}, torch.zeros(T, B),
        torch.zeros(T, B, update.model.distribution.num_params), torch.zeros(T, B), ends, torch.zeros_like(ends), valid,
        torch.zeros(T, B), state, rest,
    )  # fmt: skip
    return moved(batch, update.device)


def moved(batch: Batch, device) -> Batch:
    def move(value):
        if isinstance(value, dict):
            return {name: move(x) for name, x in value.items()}
        return None if value is None else value.to(device)

    return Batch(**{name: move(value) for name, value in batch._asdict().items()})


UPDATES = WARM + 2  # of which the last two are replays


def trained(update: Update, updates: int = UPDATES):
    """All state of the update and its metrics after a number of updates from different batches."""
    batch, rows = empty_batch(update), []
    for number in range(updates):
        fill(batch, update, number)
        rows.append(update.run(batch, number, number / updates))
    rows = [
        {name: float(x) for name, x in row.items()} for row in rows
    ]  # read at the end: the values must not be overwritten by later updates
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
    "around behavior": {"proximal": "behavior", "surrogate": "ppo"},
    "normalizers": {"normalize": {"obs": True, "reward": True, "value_targets": True, "advantage_span": 8.0}},
    "box": {"actions": BOX},
    "squashed box": {"actions": BOX, "squash": True},
    "bins of the value": {"model__value_head": "hl_gauss", "normalize": {"value_targets": True}},
    "bins of the value, one pass": {"model__value_head": "hl_gauss", "core": "gru", "epochs": 1, "minibatches": 1},
    "gradient limit": {"optim": {"max_grad_norm": 1e-3}},
    "pqn": {"algorithm": "pqn"},
    "dae": {"algorithm": "dae", "normalize": {"value_targets": True}},
    "dae, all actions": {"algorithm": "dae", "dae__advantages": "all", "proximal": "ewma"},
    "dae, actions taken": {"algorithm": "dae", "dae__advantages": "taken", "surrogate": "r2vpo", "core": "gru"},
    "adaptive": {"optim": {"schedule": "kl_adaptive"}},
    "entropy on a line": {"loss__entropy_coef": 0.5, "loss__entropy_final": 0.0},
    "staleness": {"optim": {"schedule": "staleness"}},
    "Adam-Rel": {"optim": {"adam_rel": True}},
    "baseline": {"trace__baseline": "optimal", "behavior_weight": "twice", "trace": "vtrace"},
    "baseline of a box": {"trace__baseline": "optimal", "actions": BOX},
    "impala": {"surrogate": "impala", "behavior_weight": "trace", "trace": "vtrace"},
    **{f"surrogate {name}": {"surrogate": name} for name in SURROGATES if name not in ("ppo", "impala")},
    **{f"mask {name}": {"mask": name} for name in MASK_USES},
    **{f"trace {name}": {"trace": name} for name in TRACES},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES)
def test_recorded_update_equals_the_update_to_the_bit(case):
    """With batches, orders, learning rates and statistics that differ in every update."""
    late, stepwise = FakeAccelerator(), FakeAccelerator(may_record=False)
    recorded, rows = trained(update_on(late, **CASES[case]))
    expected, expected_rows = trained(update_on(stepwise, **CASES[case]))
    assert late.recordings == 1
    assert late.replays == UPDATES - WARM
    assert stepwise.recordings == 0
    assert recorded.keys() == expected.keys()
    for name, x in recorded.items():
        assert torch.equal(x, expected[name]), name
    assert rows == expected_rows
    assert rows[-1] != rows[-2]


@pytest.mark.sampled(2)  # from the second on: `make test` runs the cases that it leaves out of the test above
@pytest.mark.parametrize("case", [*CASES][1:] + [*CASES][:1])
def test_update_runs_on_the_device_alone(case, monkeypatch):
    """On torch's meta device, operations with CPU tensors and reading a value are errors, as in a recording."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *unused: False)  # does not know the meta device
    on_host = update_on(None, **CASES[case])
    update = Update(on_host.config, on_host.model.to("meta"), torch.device("meta"))
    monkeypatch.setattr(update.optimizer, "step", lambda skipped: None)  # the fused optimizer needs a real device
    batch = moved(empty_batch(on_host), update.device)
    order = update._order(batch, 0)
    assert order is None or order.device.type == "meta"
    stats = update._device_work(batch, order)
    assert {x.device.type for x in stats.values()} == {"meta"}
    out = update.model({"obs": batch.obs["obs"][0]}, batch.state, batch.first[0])
    noise = torch.zeros(B, update.model.distribution.num_noise, device="meta")
    action, log_prob = update.model.distribution.sample_and_log_prob(out.params, noise)
    assert {x.device.type for x in (*action.values(), log_prob, out.value)} == {"meta"}


def test_update_that_cannot_be_recorded_runs_step_by_step():
    late, lines = FakeAccelerator(), []
    update = update_on(late, proximal="snapshot", lines=lines)
    trained(update)
    assert (late.recordings, lines) == (0, [])  # the objective is not recordable: no line
    refused = FakeAccelerator(may_record=False)
    trained(update_on(refused, lines=lines))
    assert lines == ["updates are not recorded: not here"]


def test_update_on_an_accelerator_uses_one_thread():
    assert update_on(FakeAccelerator()).network.pool.inboxes == []  # although two are configured


class Twins(ProcessGroup):
    """One of two learners with the same data, as over NCCL: its collectives are part of a recording."""

    def __init__(self, recordable=True):
        self.ranks, self.world_size, self.is_leader = Ranks(0, 2, 0, 2), 2, True
        self.device, self.recordable, self._messages = torch.device("cpu"), recordable, {}
        self._notes, self._agreed = torch.zeros(NOTES, dtype=torch.float64), torch.zeros(NOTES, dtype=torch.float64)
        self._numbers = self._all_numbers = torch.zeros(0)

    def _sum(self, message):
        message.mul_(2.0)

    def _gather(self, own):
        return torch.stack([own, own])


ALL_NORMALIZERS = {"obs": True, "reward": True, "value_targets": True}


def test_recorded_update_with_learners_whose_collectives_can_be_recorded_sends_the_votes_of_every_update():
    late, agreed = FakeAccelerator(), []
    twins = Twins()
    update = update_on(late, learners=twins, normalize=ALL_NORMALIZERS)
    plain = update_on(FakeAccelerator(may_record=False), learners=Twins(), normalize=ALL_NORMALIZERS)
    batch, other = empty_batch(update), empty_batch(plain)
    for number in range(6):
        fill(batch, update, number)
        fill(other, plain, number)
        twins.propose(Vote(number % 3, number == 4), Counts(10 * number, number), np.zeros(0))
        update.run(batch, number, 0.0)
        late.wait()
        agreed.append((*twins.agree(Vote()), *twins.total_counts(Counts(), False)))
        plain.run(other, number, 0.0)
    assert late.replays == 6 - WARM
    assert agreed == [(number % 3, number == 4, 20 * number, 2 * number) for number in range(6)]
    for one, two in zip(update.flat.values, plain.flat.values, strict=True):
        assert torch.equal(one, two)


def test_update_with_learners_whose_collectives_cannot_be_recorded_is_not_recorded():
    late = FakeAccelerator()
    trained(update_on(late, learners=Twins(recordable=False)))
    assert late.recordings == 0
