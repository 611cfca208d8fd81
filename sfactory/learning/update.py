"""One update: a batch of whole slots becomes better weights. No processes, no shared memory, no clock.

Legend: T steps, B lanes of the batch, b lanes of a minibatch, K distribution parameters. The order of things:

    values, log-probabilities and rho of the whole batch under the weights as published (one forward pass)
    trace -> targets and advantages, once per update; advantages normalised once per update
    epochs x minibatches of rows (of whole lanes where the policy has memory, or `batch.shuffle lanes` says so):
        surrogate, value loss, entropy -> gradient step -> proximal.after_step
    normalisers take in the batch, last of all: data of lag 0 have rho = 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfactory.algo.loss import diagnostics, total_loss
from sfactory.algo.normalize import EwmaMoments, Moments, RewardScale, TargetScale, decay_from_span
from sfactory.algo.proximal import PROXIMALS, Proximal, decay_from_center_of_mass
from sfactory.algo.schedule import SCHEDULES, ScheduleState
from sfactory.algo.surrogate import SURROGATES, SurrogateInput, check_weights
from sfactory.algo.trace import TRACES, Trace
from sfactory.config import Config
from sfactory.device.accelerator import Accelerator, Replay, Work
from sfactory.device.selection import precision
from sfactory.learning.batch import Batch, rows_of, shuffled
from sfactory.learning.parallel_network import Network, ThreadPool, pool_size
from sfactory.model.actor_critic import ActorCritic, Output


class Start(NamedTuple):
    """The whole batch under the weights at the start of the update, and what the trace made of it."""

    value: Tensor  # [T, B] as the head says it
    target: Tensor  # [T, B] in the units of the head
    log_prob: Tensor  # [T, B]
    params: Tensor  # [T, B, K]
    log_rho: Tensor  # [T, B], 0 on reset rows
    trace: Trace
    advantage: Tensor  # [T, B] normalised if asked for

    def as_rows(self) -> Start:
        """[1, T x B], as `Batch.as_rows`."""
        tensors = {name: rows_of(value) for name, value in self._asdict().items() if name != "trace"}
        trace = self.trace._replace(
            target=rows_of(self.trace.target), advantage=rows_of(self.trace.advantage),
            weight=rows_of(self.trace.weight),
        )  # fmt: skip
        return Start(**tensors, trace=trace)


class _Unroll(nn.Module):
    """`model.unroll` as a forward, so that `functional_call` can run it with other weights."""

    def __init__(self, model: ActorCritic) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: dict[str, Tensor], first: Tensor, state: Tensor | None) -> Output:
        return self.model.unroll(obs, first, state)


class Update:
    """Everything an update changes: weights, optimizer, proximal policy, normalisers. Nothing here may be lost."""

    def __init__(
        self,
        config: Config,
        model: ActorCritic,
        device: torch.device,
        accelerator: Accelerator | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """accelerator: the passes of an update are recorded there once and replayed. say: gets a line if they cannot
        be."""
        objective = config.surrogate
        check_weights(
            config.trace.estimator, config.proximal.policy, objective.objective, objective.behavior_weight
        )  # fmt: skip
        self.config, self.model, self.device = config, model, device
        self.distribution = model.distribution
        self.autocast = precision(config.run.precision, device)
        self.trace, self.surrogate = TRACES[config.trace.estimator], SURROGATES[config.surrogate.objective]
        self.schedule = SCHEDULES[config.optim.schedule]
        self.parameters = list(model.parameters())
        optim = config.optim
        self.lr = optim.lr
        # What a recording reads it finds in a tensor: a number would be that of the first update for ever.
        self.rate = self.lr if accelerator is None else torch.full((), self.lr, device=device)
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=self.rate, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True,
            capturable=accelerator is not None,
        )  # fmt: skip
        # The first steps are not recorded, and that is no reason for a warning.
        self.optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
        steps = config.optimizer_steps_per_update
        center_of_mass = config.proximal.center_of_mass or float(steps)
        self.decay = decay_from_center_of_mass(center_of_mass) if config.proximal.policy == "ewma" else None
        self.proximal: Proximal = PROXIMALS[config.proximal.policy](
            center_of_mass=center_of_mass, age=config.proximal.snapshot_age, kept=config.proximal.snapshots_kept
        )
        self.proximal.reset(model)
        self.advantages = EwmaMoments(decay_from_span(config.normalize.advantage_span), device=device)
        self.reward_scale = RewardScale(device=device)
        self.target_scale = TargetScale(device=device) if config.normalize.value_targets else None
        self.obs_moments = {name: Moments(shape, device) for name, shape in model.normalized_shapes().items()}
        self._unroll = _Unroll(model)
        threads = pool_size(config.run.learner_threads) if accelerator is None else 1  # one stream, one thread
        self.network = Network(model, ThreadPool(threads), self.autocast)
        # Rows of one lane resemble each other: minibatches of rows have a quieter gradient. Memory needs whole lanes.
        self.by_rows = config.batch.shuffle == "rows" and not model.state_size
        self.kl, self.ess = optim.kl_target, 1.0  # of the last update; what the adaptive schedules look at
        self.passes: Work = self._passes
        if accelerator is not None and self.proximal.recordable:
            self.passes = Replay(accelerator, self._passes, say)

    # -- the update ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch, updates: int, progress: float) -> dict[str, Tensor]:
        """Train on one batch [T, B]. updates: finished before this one; progress: share of the run, 0 to 1.

        Returns metrics as 0-dim tensors, left on the device. `skipped` counts optimizer steps that were not taken
        because a loss or gradient was not finite.
        """
        o = self.config.optim
        self.lr = self.schedule(self.lr, ScheduleState(o.lr, progress, self.kl, self.ess, o.kl_target))
        if isinstance(self.rate, Tensor):
            self.rate.fill_(self.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate if isinstance(self.rate, Tensor) else self.lr
        stats = self.passes(batch, self._order(batch, updates))
        if self.config.optim.schedule in ("kl_adaptive", "ess"):  # the one synchronisation these schedules need
            self.kl, self.ess = float(stats["offpolicy/kl_proximal_policy"]), float(stats["offpolicy/ess"])
        return stats

    def _passes(self, batch: Batch, order: Tensor | None) -> dict[str, Tensor]:
        """Everything the device does for an update. It waits for nothing and decides nothing by a number: what it
        depends on are tensors, what it changes it changes in place."""
        if order is None and self.config.optimizer_steps_per_update == 1:
            stats, targets = self._one_pass(batch)
        else:
            stats, targets = self._many_passes(batch, order)
        self._update_normalizers(batch, targets, stats["skipped"] == 0)
        return stats

    def _one_pass(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """One optimizer step per update: the forward pass of the start is the forward pass of the gradient."""
        out = self.network.forward_train(batch.obs, batch.first, batch.state)
        log_prob, entropy = self.distribution.log_prob_entropy(out.params[:-1], batch.action)
        start = self._start(batch, out, log_prob)
        self.proximal.begin_update(self.model, start.log_prob, start.params)
        stats = self._minibatch(batch, start, None, out.params[:-1], out.value[:-1], log_prob, entropy, report=True)
        return stats, start.trace.target

    def _many_passes(self, batch: Batch, order: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            out = self.network.forward_eval(batch.obs, batch.first, batch.state)
            start = self._start(batch, out, self.distribution.log_prob(out.params[:-1], batch.action))
        inputs = batch._replace(obs={name: x[:-1] for name, x in batch.obs.items()}, first=batch.first[:-1])
        targets = start.trace.target
        if self.by_rows:
            inputs, start = inputs.as_rows(), start.as_rows()
        self.proximal.begin_update(self.model, start.log_prob, start.params)
        last, skipped = self.config.optimizer_steps_per_update - 1, []
        stats: dict[str, Tensor] = {}
        for number, index in enumerate(self._minibatches(order)):
            part = inputs.lanes(index)
            out = self.network.forward_train(part.obs, part.first, part.state)
            log_prob, entropy = self.distribution.log_prob_entropy(out.params, part.action)
            stats = self._minibatch(part, start, index, out.params, out.value, log_prob, entropy, report=number == last)
            skipped.append(stats["skipped"])
        stats["skipped"] = torch.stack(skipped).sum()
        return stats, targets

    def _order(self, batch: Batch, updates: int) -> Tensor | None:
        """[epochs, lanes or rows]: who comes when. None: one minibatch is everybody."""
        if self.config.batch.minibatches == 1:
            return None
        lanes = batch.valid.numel() if self.by_rows else batch.valid.shape[1]
        order = shuffled(lanes, self.config.batch.epochs, self.config.run.seed, updates)
        return torch.from_numpy(order).to(self.device)

    def _minibatches(self, order: Tensor | None) -> Iterator[Tensor | None]:
        """Lanes (or rows) of every minibatch."""
        if order is None:
            yield from (None,) * self.config.batch.epochs
        else:
            for epoch in order.unbind(0):
                yield from epoch.chunk(self.config.batch.minibatches)

    @torch.no_grad()
    def _start(self, batch: Batch, out: Output, log_prob: Tensor) -> Start:
        """Targets and advantages. out of T+1 rows; log_prob [T, B]."""
        said = out.value.detach().float()
        value = said if self.target_scale is None else self.target_scale.value(said)
        log_rho = (log_prob.detach() - batch.log_prob).masked_fill(~batch.valid, 0.0)
        trace = self.trace(
            self._reward(batch),
            value[:-1],
            value[1:],
            batch.terminated,
            batch.truncated,
            batch.valid,
            log_rho,
            gamma=self.config.trace.gamma,
            trace_lambda=self.config.trace.trace_lambda,
            rho_bar=self.config.trace.rho_bar,
            c_bar=self.config.trace.c_bar,
            pg_rho_bar=self.config.trace.pg_rho_bar,
            leak=self.config.trace.leak,
        )
        advantage = trace.advantage
        if self.config.normalize.advantage:
            advantage = self.advantages.normalize(advantage, batch.valid)
        target = trace.target if self.target_scale is None else self.target_scale.output(trace.target)
        return Start(said[:-1], target, log_prob.detach(), out.params[:-1].detach(), log_rho, trace, advantage)

    def _reward(self, batch: Batch) -> Tensor:
        """[T, B] the reward that is learnt from; what is reported stays raw."""
        env = self.config.env
        reward = batch.reward * env.reward_scale if env.reward_scale != 1.0 else batch.reward
        if self.config.normalize.reward:
            reward = self.reward_scale(reward)
        return reward.clamp(-env.reward_clip, env.reward_clip) if env.reward_clip else reward

    def _minibatch(
        self,
        part: Batch,
        start: Start,
        index: Tensor | None,
        params: Tensor,
        value: Tensor,
        log_prob: Tensor,
        entropy: Tensor,
        report: bool,
    ) -> dict[str, Tensor]:
        """One optimizer step on [T, b] rows; full metrics if `report`."""
        old_value, log_rho, advantage, target, weight = (
            x if index is None else x.index_select(1, index)
            for x in (start.value, start.log_rho, start.advantage, start.target, start.trace.weight)
        )
        proximal, proximal_params = self._proximal(part, index, log_prob)
        x = SurrogateInput(
            log_prob, proximal, part.log_prob, advantage, weight, part.valid,
            params, proximal_params, part.params, self.distribution,
        )  # fmt: skip
        surrogate = self.surrogate(
            x,
            behavior_weight=self.config.surrogate.behavior_weight,
            clip=self.config.surrogate.clip,
            dual_clip=self.config.surrogate.dual_clip or None,
            weight_cap=self.config.surrogate.weight_cap,
            kl_coef=self.config.surrogate.kl_coef,
        )
        loss = total_loss(
            surrogate, value.float(), target, entropy, part.valid,
            value_coef=self.config.loss.value_coef, entropy_coef=self.config.loss.entropy_coef,
            old_value=old_value, value_clip=self.config.loss.value_clip or None,
        )  # fmt: skip
        norm, skipped = self._descend(loss.total)
        if not report:
            return {"skipped": skipped}
        d = diagnostics(
            x, surrogate, old_value, target, rho_bar=self.config.trace.rho_bar, c_bar=self.config.trace.c_bar,
            log_rho=log_rho, effective_lambda=start.trace.effective_lambda,
        )  # fmt: skip
        known = {}
        center = self.config.proximal
        if center.policy == "snapshot" and not center.snapshot_age:  # the same weights in two workers: numerics is left
            apart = (proximal - part.log_prob).masked_fill(~part.valid, 0.0).abs()
            known["offpolicy/discrepancy"] = apart.sum() / part.valid.sum().clamp(min=1)
            known["offpolicy/max_discrepancy"] = apart.max()
        return {
            **known,
            "skipped": skipped,
            "losses/policy_loss": loss.policy.detach(),
            "losses/value_loss": loss.value.detach(),
            "losses/entropy": loss.entropy.detach(),
            "losses/grad_norm": norm,
            "losses/approx_kl": d["approx_kl"],
            "losses/clipfrac": d["clipfrac"],
            "losses/explained_variance": d["explained_variance"],
            "offpolicy/ess": d["ess"],
            "offpolicy/kl_behavior_proximal": d["kl_behavior_proximal"],
            "offpolicy/kl_proximal_policy": d["kl_proximal_policy"],
            "offpolicy/rho_clip_fraction": d["rho_clip_fraction"],
            "offpolicy/c_clip_fraction": d["c_clip_fraction"],
            "offpolicy/effective_lambda": start.trace.effective_lambda,
            "offpolicy/max_abs_log_rho": log_rho.abs().max(),
        }

    def _proximal(self, part: Batch, index: Tensor | None, log_prob: Tensor) -> tuple[Tensor, Tensor | None]:
        """log pi_proximal [T, b] of the minibatch's actions and its parameters, detached."""

        def evaluate(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            named = {f"model.{name}": tensor for name, tensor in weights.items()}
            rows = part.valid.shape[0]
            with torch.no_grad(), self.autocast():
                obs, first = {name: x[:rows] for name, x in part.obs.items()}, part.first[:rows]
                out = torch.func.functional_call(self._unroll, named, (obs, first, part.state))
            return self.distribution.log_prob(out.params, part.action), out.params

        return self.proximal.log_prob(evaluate, index, log_prob, part.log_prob, part.lag)

    def _descend(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient step; returns the gradient norm and 1.0 if the step was not taken because it is not finite."""
        loss.backward()  # as far as the network's outputs
        self.network.backward()  # new gradients in the place of the old ones
        limit = self.config.optim.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        # The fused optimizer skips the step on the device when this is 1: no synchronisation to find out.
        skipped = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.proximal.after_step(self.model)
        return norm.detach(), skipped

    @torch.no_grad()
    def _update_normalizers(self, batch: Batch, targets: Tensor, learnt: Tensor) -> None:
        """Last of all: the statistics published with the new weights hold this batch, the ones used on it did not.

        learnt [] bool: no step was skipped. A batch that was not finite leaves no trace in them.
        """
        valid = batch.valid & learnt
        for name, moments in self.obs_moments.items():
            moments.update(batch.obs[name][:-1].float(), valid)
            self.model.set_normalizer(name, moments.mean, moments.var)
        if batch.discounted_return is not None:
            scale = self.config.env.reward_scale
            self.reward_scale.update(batch.discounted_return * scale, valid)
        if self.target_scale is not None:
            self.model.rescale_value(*self.target_scale.update(targets, valid))

    # -- what a checkpoint holds --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by checkpoint part and name."""
        optimizer = {
            f"{i}.{name}": value.float() if name == "step" else value
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        normalizers = {f"obs.{n}.{k}": v for n, m in self.obs_moments.items() for k, v in m.state_dict().items()}
        normalizers |= {f"reward.{k}": v for k, v in self.reward_scale.state_dict().items()}
        if self.target_scale is not None:
            normalizers |= {f"target.{k}": v for k, v in self.target_scale.state_dict().items()}
        normalizers |= {f"advantage.{k}": v for k, v in self.advantages.state_dict().items()}
        return {
            "model": dict(self.model.state_dict()),
            "proximal": self.proximal.state_dict(),
            "optimizer": optimizer,
            "normalizers": normalizers,
        }

    def begin_with(self, weights: Mapping[str, Tensor], normalizers: Mapping[str, Tensor]) -> None:
        """Weights and their normaliser alone; the proximal policy begins with them."""
        self.model.load_state_dict(dict(weights))
        for name, moments in self.obs_moments.items():
            moments.load_state_dict(_under(normalizers, f"obs.{name}."))
        target = _under(normalizers, "target.")
        if target and self.target_scale is not None:
            self.target_scale.load_state_dict(target)
        elif target:  # its head speaks normalised units, ours shall speak those of the reward
            self.model.rescale_value(target["std"].to(self.device), target["mean"].to(self.device))
        self.proximal.reset(self.model)

    def load_state_dict(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(dict(parts["model"]))
        self.proximal.reset(self.model)
        if self.proximal.wants(parts["proximal"]):  # of its kind: the setting may have changed
            self.proximal.load_state_dict({name: x.to(self.device) for name, x in parts["proximal"].items()})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, name = key.split(".", 1)
            if value.dim():  # in the memory order of its parameter: fused Adam takes both for one stretch of memory
                value = torch.empty_like(self.parameters[int(index)]).copy_(value)
            state.setdefault(int(index), {})[name] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
        saved = parts["normalizers"]
        for name, moments in self.obs_moments.items():
            moments.load_state_dict(_under(saved, f"obs.{name}."))
        self.reward_scale.load_state_dict(_under(saved, "reward."))
        self.advantages.load_state_dict(_under(saved, "advantage."))
        if self.target_scale is not None:
            self.target_scale.load_state_dict(_under(saved, "target."))


def _under(saved: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one normaliser, by their own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
