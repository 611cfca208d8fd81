"""`Update.run` in float64 equals an independent reference over random settings, data and faults.

The reference (`reference_update`) is written from the papers; what it takes from sfactory is the type of a batch and
the random order of minibatches.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference_update import MASKED, Policy, Reference

from sfactory.algo.surrogates.options import DISCRETE_ONLY, MASK_USES, USES, Options
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.config import Config, Model, with_settings
from sfactory.config.cross_checks import EFFECTS
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning.batch import Batch, shuffled
from sfactory.learning.native_network import NativeLearnerNetwork
from sfactory.learning.objectives.actor_critic import value_bins
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic

torch.set_num_threads(1)
SET_UPS, UPDATES = 161, 3
T, B, OBS, HIDDEN = 5, 4, 3, 4
BOX = ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))
ACTIONS = {  # kind -> leaves, heads of the reference
    "discrete": ({"action": ActionLeaf((), "int64", "discrete", (3,))}, [("discrete", "action", 0, 3)]),
    "masked": ({"action": ActionLeaf((), "int64", "discrete", (4,))}, [("discrete", "action", 0, 4)]),
    "several": (
        {"action": ActionLeaf((2,), "int64", "discrete", (3, 2))},
        [("discrete", "action", 0, 3), ("discrete", "action", 1, 2)],
    ),
    "box": ({"action": BOX}, [("box", "action", 0, 2)]),
    "squashed": ({"action": BOX}, [("box", "action", 0, 2)]),
    "mixed": (
        {"go": ActionLeaf((), "int64", "discrete", (3,)), "push": BOX},
        [("discrete", "go", 0, 3), ("box", "push", 0, 2)],
    ),
}
CHOICES = {
    "batch.epochs": (1, 1, 2, 3),
    "batch.minibatches": (1, 2, 4),
    "batch.shuffle": ("rows", "lanes"),
    "env.reward_scale": (1.0, 0.3),
    "env.reward_clip": (0.0, 0.8),
    "loss.entropy_coef": (0.0, 0.01, 0.1),
    "loss.value_clip": (0.0, 0.2),
    "loss.value_coef": (0.5, 1.3),
    "loss.value_sigma": (0.75, 2.0),
    "model.core": ("none", "none", "gru", "lstm"),
    "model.separate": (False, False, True),
    "model.value_bins": (9, 16),
    "model.value_head": ("scalar", "scalar", "hl_gauss"),
    "model.value_high": (4.0, 1.2),
    "model.value_low": (-4.0, -1.5),
    "normalize.advantage": (True, True, False),
    "normalize.advantage_span": (1.0, 4.0),
    "normalize.obs": (False, True),
    "normalize.reward": (False, True),
    "normalize.value_targets": (False, True),
    "optim.adam_rel": (False, False, True),
    "optim.beta1": (0.9, 0.0),
    "optim.beta2": (0.999, 0.9),
    "optim.eps": (1e-5, 0.1),
    "optim.kl_target": (0.01, 1e-4),
    "optim.lr": (1e-3, 1e-2),
    "optim.lr_max": (1e-2, 1e-2, 1e-2, 1.2e-2),
    "optim.lr_min": (1e-6, 1e-6, 1e-6, 9e-4),
    "optim.max_grad_norm": (0.0, 0.1, 0.5),
    "optim.schedule": ("constant", "linear", "kl_adaptive", "ess", "staleness"),
    "optim.sfpo_alpha": (0.8, 0.8, 0.3),
    "optim.sfpo_steps": (0, 0, 1, 2),
    "optim.sfpo_threshold": (1.0, 1.0, 0.3),
    "optim.sfpo_window": (30, 30, 2),
    "proximal.center_of_mass": (0.0, 3.0),
    "proximal.policy": ("behavior", "recompute", "ewma", "interpolate", "snapshot"),
    "proximal.snapshot_age": (0, 1, 2),
    "proximal.snapshots_kept": (2, 8),
    "surrogate.behavior_weight": ("surrogate", "trace", "none", "twice"),
    "surrogate.clip": (0.1, 0.3, 1.0),
    "surrogate.dual_clip": (0.0, 1.5),
    "surrogate.kl_coef": (0.5, 1.0),
    "surrogate.objective": tuple(SURROGATES),
    "surrogate.mask": ("none", "none", "none", "m2po", "erc"),
    "surrogate.kl_anneal": (True, False),
    "surrogate.log_ratio_coef": (0.1, 2.0),
    "surrogate.baseline_shift": (0.1, 1.0),
    "surrogate.outer_low": (0.6, 0.4, 1.0),
    "surrogate.outer_high": (2.0, 0.5),
    "surrogate.ratio_weight": (True, False),
    "surrogate.weight_low": (0.8, 0.5),
    "surrogate.weight_high": (11.0, 1.1),
    "surrogate.weight_low_negative": (0.0, 0.9),
    "surrogate.weight_high_negative": (101.0, 1.2),
    "surrogate.gate_temperature": (1.0, 3.0),
    "surrogate.gate_temperature_negative": (1.05, 2.0),
    "surrogate.ratio_bound": (1.5, 0.3),
    "surrogate.hazard_shape": (1.5, 1.0),
    "surrogate.hazard_scale": (1.0, 2.0),
    "surrogate.hazard_shape_negative": (2.0, 1.0),
    "surrogate.hazard_scale_negative": (0.8, 2.0),
    "surrogate.balance": (1.0, 0.7),
    "surrogate.bound_low": (0.6, 0.8),
    "surrogate.bound_low_max": (0.9, 0.7),
    "surrogate.bound_high": (1.2, 1.05),
    "surrogate.bound_high_max": (3.0, 1.3),
    "surrogate.bound_high_step": (0.1, 0.03),
    "surrogate.variance_target": (0.02, 0.5),
    "surrogate.dual_rate": (1.0, 3.0),
    "surrogate.dual_start": (1.0, 0.1),
    "surrogate.target_temperature": (0.001, 0.5),
    "surrogate.median_head": (True, False),
    "surrogate.second_moment": (0.04, 0.5),
    "surrogate.entropy_ratio_low": (0.95, 0.999),
    "surrogate.entropy_ratio_high": (1.05, 1.001),
    "surrogate.weight_cap": (1.5, 100.0),
    "trace.baseline": ("none", "none", "optimal"),
    "trace.c_bar": (0.9, 1.0),
    "trace.estimator": ("gae", "vtrace", "leaky_vtrace", "retrace", "truncated_is", "recursive_retrace", "rbis"),
    "trace.gamma": (0.9, 0.99, 1.0),
    "trace.leak": (0.0, 0.6),
    "trace.pg_rho_bar": (1.0, 1.4),
    "trace.rho_bar": (1.0, 1.3),
    "trace.trace_lambda": (0.0, 0.8, 1.0),
}  # fmt: skip


class SetUp:
    """Settings, actions and faults of a number. `native`: the native kernels know them, and rounding stays small."""

    def __init__(self, number):
        self.draw = np.random.default_rng(number)
        self.number = number
        while True:  # some combinations are refused, as those that count a weight twice
            self.settings = {name: self.choose(values) for name, values in CHOICES.items()}
            # Every objective, estimator, proximal policy and kind of action in turn, so that none is left to chance.
            for name in ("surrogate.objective", "trace.estimator"):
                self.settings[name] = CHOICES[name][number % len(CHOICES[name])]
            self.actions = list(ACTIONS)[number // 3 % len(ACTIONS)]
            self._leave_unused()
            if self.settings["surrogate.objective"] in DISCRETE_ONLY and self.actions in ("box", "squashed", "mixed"):
                self.actions = "several"  # a difference of densities has no meaning
            self.kernels = self.choose(("torch", "autograd"))
            may_break = self.settings["trace.estimator"] == "gae"  # other estimators spread what is not a number
            may_break &= self.settings["surrogate.mask"] != "m2po"  # which rows are the largest is not defined
            self.broken = may_break and self.choose((False, False, True))
            if not self._fits():
                continue
            try:
                self.config = self.make_config("torch")
                self.make_update("torch")
            except ValueError:
                continue
            break
        self.native = (
            self.settings["model.core"] == "none"
            and self.actions not in ("masked", "squashed", "mixed")
            and self.settings["optim.eps"] == 0.1
            and not self.config.surrogate.has_median_head
            and self.settings["model.value_head"] == "scalar"
            and not self._turns_on_rounding()
        )

    def _turns_on_rounding(self):
        """Whether a sample at the edge of a rule may be on the other side of it in float32."""
        s = self.settings
        return s["surrogate.mask"] != "none" or s["surrogate.objective"] in ("bapo", "bpo")

    def choose(self, values):
        return values[int(self.draw.integers(len(values)))]

    def _leave_unused(self):
        """Options that nothing reads stay at their default."""
        s, defaults = self.settings, vars(Config().surrogate)
        used = ("clip", *USES[s["surrogate.objective"]], *MASK_USES[s["surrogate.mask"]])
        for name in Options._fields:
            if name not in used:
                s[f"surrogate.{name}"] = defaults[name]
        sections: dict[str, dict] = {}
        for name, value in s.items():
            section, _, key = name.partition(".")
            sections.setdefault(section, {})[key] = value
        # Not a whole Config, which refuses what is still to be left out; its sections have their properties.
        whole = {section: replace(own, **sections.get(section, {})) for section, own in vars(Config()).items()}
        chosen = SimpleNamespace(**whole)
        for name, (_, applies) in EFFECTS.items():
            if not applies(chosen):
                section, _, key = name.partition(".")
                s[name] = getattr(getattr(Config(), section), key)
        if s["optim.sfpo_steps"]:
            s["batch.epochs"] = 1
        if s["model.value_head"] == "hl_gauss":
            s["loss.value_clip"] = 0.0

    def _fits(self):
        s = self.settings
        if self.actions == "squashed":
            s["loss.entropy_coef"] = 0.0  # the entropy is an approximation
            s["optim.sfpo_window"] = 30  # and nothing is decided by it
            if s["surrogate.mask"] == "erc":
                return False
        return not (s["model.separate"] and s["model.core"] != "none")

    def make_config(self, kernels):
        shape = {
            "run.kernels": kernels, "run.learner_threads": 1, "sampling.num_samplers": 1,
            "sampling.groups_per_sampler": 1, "sampling.envs_per_group": B, "sampling.rollout_length": T,
            "model.hidden": (HIDDEN,), "model.activation": "tanh",
            "model.core_size": 3 if self.settings["model.core"] != "none" else Model.core_size,
            "model.squash": self.actions == "squashed",
        }  # fmt: skip
        return with_settings(Config(), {**self.settings, **shape})

    def make_update(self, kernels):
        """In float64, or in float32 for the native kernels; the initial weights depend on the number alone."""
        native, s, config = kernels == "native", self.settings, self.make_config(kernels)
        leaves = {"obs": Leaf((OBS,), "float32")}
        if self.actions == "masked":
            leaves["mask"] = Leaf((4,), "int8")
        torch.manual_seed(self.number)
        model = ActorCritic(
            leaves, ACTIONS[self.actions][0], encoder="mlp" if native else "reference_encoder:Encoder",
            hidden=(HIDDEN,), activation="tanh", core=s["model.core"],
            core_size=3 if s["model.core"] != "none" else 0, separate=s["model.separate"],
            normalize_obs=s["normalize.obs"], squash=self.actions == "squashed",
            mask="mask" if self.actions == "masked" else "", median=config.surrogate.has_median_head,
            value_bins=value_bins(config),
        ).double()  # fmt: skip
        generator = torch.Generator().manual_seed(self.number)
        for parameter in model.parameters():  # no weight is special at the start
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
        return Update(config, model.float() if native else model, torch.device("cpu"))

    def make_reference(self, update):
        heads = ACTIONS[self.actions][1]
        policy = Policy(heads, half_width=1.0 if self.actions == "squashed" else None)
        weights = {name: x.detach().clone() for name, x in update.model.named_parameters()}
        settings = {f"{section}.{name}": x for section, part in _sections(update.config) for name, x in part.items()}
        return Reference(settings, policy, weights, OBS, "mask" if self.actions == "masked" else ""), policy

    def make_batch(self, policy):
        """Episodes that end in every way, reset rows with rubbish in them, rows of an environment that failed."""
        draw = self.draw
        first, valid = np.zeros((T + 1, B), bool), np.ones((T, B), bool)
        terminated, truncated = np.zeros((T, B), bool), np.zeros((T, B), bool)
        first[0] = draw.random(B) < 0.3
        for b in range(B):
            for t in range(T):
                ended = t and (terminated[t - 1, b] or truncated[t - 1, b])
                if (ended and draw.random() < 0.8) or draw.random() < 0.05:  # the rest is a life lost: no reset row
                    valid[t, b] = False
                    first[t + 1, b] = True
                    continue
                first[t, b] |= bool(ended)
                terminated[t, b], truncated[t, b] = draw.random() < 0.15, draw.random() < 0.15
        obs = {"obs": torch.from_numpy(draw.normal(size=(T + 1, B, OBS)) * 3 + 1)}
        raw = torch.from_numpy(draw.normal(size=(T, B, sum(h[3] * (1 + (h[0] == "box")) for h in policy.heads))) / 2)
        if self.actions == "masked":
            allowed = draw.random((T + 1, B, 4)) < 0.6
            allowed[..., 0] |= ~allowed.any(-1)
            obs["mask"] = torch.from_numpy(allowed.astype(np.int8))
            raw = torch.where(obs["mask"][:-1] != 0, raw, MASKED)
        action = {}
        for (kind, leaf, _, size), part in zip(policy.heads, policy.split(raw), strict=True):
            if kind == "discrete":
                chosen = torch.from_numpy((part.numpy() + draw.gumbel(size=part.shape)).argmax(-1))
                action.setdefault(leaf, []).append(chosen)
            else:
                noise = torch.from_numpy(draw.normal(size=(T, B, size)))
                action[leaf] = part[..., :size] + part[..., size:].exp() * noise
        for leaf, shape in ((n, x.shape) for n, x in ACTIONS[self.actions][0].items() if x.kind == "discrete"):
            action[leaf] = torch.stack(action[leaf], -1) if shape else action[leaf][0]
        valid = torch.from_numpy(valid)
        state = self.settings["model.core"]
        rubbish = torch.from_numpy(draw.choice([1e6, math.inf, math.nan], size=(T, B)))
        reward = torch.where(valid, torch.from_numpy(draw.normal(size=(T, B)) * 2), rubbish)
        log_prob = policy.log_prob(raw, action)
        if self.broken:
            log_prob[2, 1] = math.nan
        return Batch(
            obs=obs,
            first=torch.from_numpy(first),
            action=action,
            log_prob=log_prob.masked_fill(~valid, 0.0),
            params=raw,
            reward=reward,
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=valid,
            lag=torch.from_numpy(draw.integers(0, 4, size=(T, B))).double(),
            state=None if state == "none" else torch.from_numpy(draw.normal(size=(B, 3 * (1 + (state == "lstm"))))),
            discounted_return=torch.where(valid, torch.from_numpy(draw.normal(size=(T, B)) * 3), rubbish),
        )

    def minibatches(self, update, number):
        """For every epoch the minibatches as the reference takes them: index, and whether it is one of rows."""
        epochs, count = self.settings["batch.epochs"], self.settings["batch.minibatches"]
        epochs += self.settings["optim.sfpo_steps"]
        by_rows = self.settings["batch.shuffle"] == "rows" and self.settings["model.core"] == "none"
        if count == 1:
            return [[(None, False)]] * epochs
        order = torch.from_numpy(shuffled(T * B if by_rows else B, epochs, update.config.run.seed, number))
        return [[(index, by_rows) for index in epoch.chunk(count)] for epoch in order]


def _sections(config):
    return ((name, vars(section)) for name, section in vars(config).items())


def single(batch):
    """The batch in float32, as the native kernels read it."""

    def convert(x):
        if isinstance(x, dict):
            return {name: convert(leaf) for name, leaf in x.items()}
        return x.float() if x is not None and x.dtype == torch.float64 else x

    return Batch(**{name: convert(x) for name, x in batch._asdict().items()})


def state_of(update):
    """Everything that an update changed, under the names that `state_of_reference` has."""
    names = [name for name, _ in update.model.named_parameters()]
    state = {f"weight {name}": x for name, x in update.model.state_dict().items()}
    for name, exp_avg, exp_avg_sq, step in zip(names, *update.optimizer.moments.values(), strict=True):
        state |= {f"m {name}": exp_avg, f"v {name}": exp_avg_sq, f"steps {name}": step}
    if update.config.surrogate.objective == "r2vpo":
        state["dual"] = update.objective.dual.value
    if update.config.proximal.policy == "ewma":
        state |= {f"average {name}": x for name, x in update.objective.proximal.weights.items()}
    normalizers = update.normalizers
    state["reward scale"] = normalizers.rewards.scale
    if normalizers.targets is not None:
        state |= {"target mean": normalizers.targets.mean, "target std": normalizers.targets.std}
    state |= {"lr": update.lr, "kl": update.kl if update.config.optim.schedule == "kl_adaptive" else 0.0}
    if update.slow_fast is not None:
        state["slow only"] = update.slow_fast.stopped
    return {name: torch.as_tensor(x).double() for name, x in state.items()}


def state_of_reference(reference):
    s = reference.s
    state = {f"weight {name}": x for name, x in reference.theta.items()}
    state |= {f"m {name}": x for name, x in reference.m.items()} | {f"v {name}": x for name, x in reference.v.items()}
    state |= {f"steps {name}": reference.steps for name in reference.theta}
    if s["normalize.obs"]:
        state["weight obs_mean_obs"], state["weight obs_inv_std_obs"] = reference.obs_statistics()
    if s["surrogate.objective"] == "r2vpo":
        state["dual"] = reference.dual
    if s["proximal.policy"] == "ewma":
        state |= {f"average {name}": x for name, x in reference.average().items()}
    counted = s["normalize.reward"] and len(reference.returns)
    var = float(reference.returns.var(correction=0)) if counted else 1.0
    state["reward scale"] = 1 / math.sqrt(var + 1e-8)
    if s["normalize.value_targets"]:
        state |= {"target mean": reference.target_mean, "target std": reference.target_std}
    state |= {"lr": reference.lr, "kl": reference.kl if s["optim.schedule"] == "kl_adaptive" else 0.0}
    if s["optim.sfpo_steps"]:
        state["slow only"] = reference.slow_only
    return {name: torch.as_tensor(x).double() for name, x in state.items()}


@pytest.mark.sampled(5)  # 33 set-ups in turn have every objective, estimator and kind of action
@pytest.mark.parametrize("number", range(SET_UPS))
def test_update_in_float64_equals_the_reference(number):
    """Weights, Adam's moments, the averaged policy and all statistics after three updates."""
    setup = SetUp(number)
    update = setup.make_update(setup.kernels)
    opmd = setup.settings["surrogate.objective"] == "opmd"  # its gradient is a difference of log-probabilities
    updates = {"float64": (update, 1e-6 if opmd else 1e-7)}
    if setup.native:
        updates["native"] = setup.make_update("native"), 1e-3
        assert isinstance(updates["native"][0].network, NativeLearnerNetwork)
    reference, policy = setup.make_reference(update)
    for step in range(UPDATES):
        batch = setup.make_batch(policy)
        if not setup.settings["normalize.reward"]:
            batch = batch._replace(discounted_return=None)
        progress = step / UPDATES
        skipped = reference.run(
            batch if batch.discounted_return is not None else batch._replace(discounted_return=batch.reward),
            setup.minibatches(update, step), progress,
        )  # fmt: skip
        for one, _ in updates.values():
            given = batch if one is update else single(batch)
            assert int(one.run(given, step, progress)["skipped"]) == skipped
    expected = state_of_reference(reference)
    for kernels, (one, tolerance) in updates.items():
        found = state_of(one)
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            torch.testing.assert_close(
                found[name], x, rtol=tolerance, atol=tolerance * 3e-2, equal_nan=True, check_dtype=False,
                msg=lambda text, name=name, kernels=kernels: f"{kernels} {name}: {text} {setup.settings}",
            )  # fmt: skip


def test_reference_set_ups_cover_every_choice():
    """A choice that no set-up makes, or that only refused ones make, would not be compared."""
    setups = [SetUp(number) for number in range(SET_UPS)]
    for name, values in CHOICES.items():
        section, _, key = name.partition(".")
        unused = {getattr(getattr(Config(), section), key)} if name in EFFECTS else set()
        assert {setup.settings[name] for setup in setups} | unused == {*values, *unused}, name
    assert {setup.actions for setup in setups} == set(ACTIONS)
    assert {setup.broken for setup in setups} == {setup.native for setup in setups} == {False, True}
