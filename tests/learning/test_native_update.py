"""Updates by the native kernels equal those by torch's operators and autograd, but for rounding."""

import pytest
import torch

from sfactory.config import Config, Model, Normalize, Optim, Run, Sampling, with_settings
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning.batch import Batch
from sfactory.learning.native_network import NativeLearnerNetwork
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.distributions import MASKED_LOGIT

T, B = 5, 8
DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
BOX = {"action": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))}


VECTOR = Leaf((4,), "float32")


def make_update(kernels, actions, obs, threads, settings, mask=False):
    config = Config(
        run=Run(kernels=kernels, learner_threads=threads),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,), activation="tanh"),
        normalize=Normalize(obs=settings.pop("normalize.obs", False)),
        optim=Optim(lr=1e-2, eps=0.1, max_grad_norm=0.5),  # a large epsilon: Adam enlarges rounding errors else
    )
    config = with_settings(config, {"batch.epochs": 2, "batch.minibatches": 4, **settings})
    torch.manual_seed(0)
    leaves = {"obs": obs, "mask": Leaf((3,), "bool")} if mask else {"obs": obs}
    model = ActorCritic(
        leaves, actions, hidden=(16,), activation="tanh", separate=config.model.separate,
        normalize_obs=config.normalize.obs, mask="mask" if mask else "",
    )  # fmt: skip
    return Update(config, model, torch.device("cpu"))


def make_batch(update, obs, number):
    g = torch.Generator().manual_seed(number)
    first, ends, valid = torch.zeros(T + 1, B).bool(), torch.zeros(T, B).bool(), torch.ones(T, B).bool()
    first[3, ::2] = ends[1, ::2] = True
    valid[2, ::2] = False
    distribution = update.model.distribution
    leaf = torch.randn(T + 1, B, *obs.shape, generator=g)
    leaf = leaf > 1.0 if obs.dtype == "bool" else leaf
    leaves = {"obs": leaf}
    params = torch.randn(T, B, distribution.num_params, generator=g) / 2
    if update.model.mask:
        leaves["mask"] = torch.rand(T + 1, B, 3, generator=g) < 0.6
        leaves["mask"][..., 1] |= ~leaves["mask"].any(-1)
        leaves["mask"][T, 0] = leaves["mask"][2, 0] = False  # the last observation, and a row that is not trained
        params = params.masked_fill(~leaves["mask"][:T], MASKED_LOGIT)
    action = distribution.sample(params, torch.rand(T, B, distribution.num_noise, generator=g))
    log_prob = distribution.log_prob(params, action).masked_fill(~valid, 0.0)
    reward = torch.randn(T, B, generator=g).masked_fill(~valid, 0.0)
    lag = torch.randint(0, 4, (T, B), generator=g).float()
    return Batch(
        leaves, first, action, log_prob, params, reward, ends, torch.zeros_like(ends), valid, lag, None,
        torch.randn(T, B, generator=g),
    )  # fmt: skip


def trained(kernels, actions=DISCRETE, obs=VECTOR, threads=1, mask=False, **settings):
    """State and metrics after three updates."""
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    update = make_update(kernels, actions, obs, threads, settings, mask)
    assert isinstance(update.network, NativeLearnerNetwork) == (kernels == "native")
    metrics = [update.run(make_batch(update, obs, number), number, number / 4) for number in range(3)]
    update.network.pool.close()
    state = {f"{part}/{name}": x for part, xs in update.state_dict().items() for name, x in xs.items()}
    return state, metrics


CASES = {
    "rows": {},
    "lanes": {"batch__shuffle": "lanes"},
    "one pass": {"batch__epochs": 1, "batch__minibatches": 1},
    "whole batches": {"batch__minibatches": 1},
    "grid": {"obs": Leaf((5, 6, 3), "bool")},
    "box": {"actions": BOX},
    "separate, normalized": {"actions": BOX, "model__separate": True, "normalize.obs": True, "normalize__reward": True},
    "value targets": {"normalize__value_targets": True},
    "entropy on a line": {"loss__entropy_coef": 0.5, "loss__entropy_final": 0.0},
    "value clip": {"loss__value_clip": 0.1},
    "dual clip": {"surrogate__dual_clip": 2.0},
    "ewma": {"proximal__policy": "ewma"},
    "one pass, ewma": {"proximal__policy": "ewma", "batch__epochs": 1, "batch__minibatches": 1},
    "one pass, interpolate": {"proximal__policy": "interpolate", "batch__epochs": 1, "batch__minibatches": 1},
    "interpolate": {"proximal__policy": "interpolate"},
    "behavior": {"proximal__policy": "behavior"},
    "snapshot": {"proximal__policy": "snapshot"},
    "snapshot by step": {"proximal__policy": "snapshot", "proximal__snapshot_age": 0, "normalize.obs": True},
    "ppo": {"surrogate__objective": "ppo", "proximal__policy": "behavior"},
    "vtrace": {"trace__estimator": "vtrace", "surrogate__behavior_weight": "trace"},
    "cispo": {"surrogate__objective": "cispo"},
    "decoupled_kl": {"surrogate__objective": "decoupled_kl"},
    "mask": {"mask": True, "loss__entropy_coef": 0.1},
    "mask, lanes, ewma": {"mask": True, "batch__shuffle": "lanes", "proximal__policy": "ewma"},
    "mask, exact KL": {"mask": True, "surrogate__objective": "decoupled_kl", "proximal__policy": "behavior"},
}


@pytest.mark.parametrize("case", CASES)
def test_native_update_equals_the_update_of_autograd_but_for_rounding(case):
    expected, expected_metrics = trained("autograd", **CASES[case])
    found, found_metrics = trained("native", **CASES[case])
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
    for one, other in zip(found_metrics, expected_metrics, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            torch.testing.assert_close(one[name], other[name], rtol=2e-3, atol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023


def test_threads_of_a_native_update_do_not_change_a_bit():
    one, three = (trained("native", threads=threads, batch__minibatches=1)[0] for threads in (1, 3))
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_native_update_skips_a_step_whose_gradient_is_not_finite():
    update = make_update("native", DISCRETE, Leaf((4,), "float32"), 1, {})
    batch = make_batch(update, Leaf((4,), "float32"), 0)
    batch.obs["obs"][:] = torch.nan
    before = {name: x.clone() for name, x in update.model.state_dict().items()}
    metrics = update.run(batch, 0, 0.0)
    assert metrics["skipped"] == 8
    assert all(torch.equal(x, before[name]) for name, x in update.model.state_dict().items())


def test_update_with_native_kernels_refuses_what_they_do_not_know():
    config = Config(run=Run(kernels="native"), model=Model(hidden=(16,), squash=True))
    model = ActorCritic({"obs": Leaf((4,), "float32")}, BOX, hidden=(16,), squash=True)
    with pytest.raises(ValueError, match=r"^run\.kernels native: the native kernels do not support squashed actions"):
        Update(config, model, torch.device("cpu"))
