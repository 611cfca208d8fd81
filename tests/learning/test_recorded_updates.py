"""An update that was recorded once is the update: on a device that replays nothing but what was recorded (late.py)."""

import pytest
import torch
from fake_accelerator import Late

from sfactory.algo.surrogate import SURROGATES
from sfactory.algo.trace import TRACES
from sfactory.config import Config, Model, Normalize, Optim, Run, Sampling, with_settings
from sfactory.device.accelerator import WARM
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning.batch import Batch
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic

torch.set_num_threads(1)
T, B = 5, 8
DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
BOX = {"action": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))}
OBS = {"obs": Leaf((4,), "float32")}


def update_on(
    accelerator, actions=DISCRETE, core="none", normalize=None, optim=None, squash=False, said=None, **learning
):
    config = Config(
        run=Run(learner_threads=2 if isinstance(accelerator, Late) else 1),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,), core=core, core_size=8, squash=squash),
        normalize=Normalize(**(normalize or {})),
        optim=Optim(**{"lr": 1e-2, "schedule": "linear", **(optim or {})}),
    )
    learning = {"epochs": 2, "minibatches": 4, **learning}
    config = with_settings(config, {f"learning.{name}": value for name, value in learning.items()})
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
    assert update_on(Late()).network.pool.inboxes == []  # two threads were asked for
