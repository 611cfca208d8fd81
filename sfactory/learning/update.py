"""One update of the weights from one batch. No processes, no shared memory, no clock.

    outputs of the whole batch under the weights as published (one forward pass)
    objective.start: targets and whatever else is computed once per update; the statistics of value targets and the
        value head move here, before the targets are normalized
    epochs x minibatches of rows (of whole lanes for a recurrent policy, a loss over trajectories, or `batch.shuffle
        lanes`):
        objective.loss -> gradient, averaged over learners -> optimizer step, unless it is not finite
        (a minibatch too large for a GPU: the gradients of its parts, one after the other, are added up)
    with optim.sfpo_steps: as many passes before them, after which the weights are pulled back (`slow_fast`)
    objective.further_phases: now and then epochs of another loss, as the auxiliary phase of PPG
    with optim.schedule kl_adaptive: one more forward pass, for the KL of the whole update
    normalizers of observations and rewards are updated last: data of lag 0 have rho = 1

Legend: T steps, B lanes of the batch, b lanes of a minibatch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sfactory.algo import joint
from sfactory.algo.schedule import SCHEDULES, ScheduleState
from sfactory.config import Config
from sfactory.config.algorithms import rules_of
from sfactory.device.accelerator import Accelerator, Replay, Work
from sfactory.device.selection import precision
from sfactory.device.thread_pool import ThreadPool, pool_size
from sfactory.learning.adam import Adam
from sfactory.learning.batch import Batch, shuffled
from sfactory.learning.distributed import Joint, Learners, SingleLearner
from sfactory.learning.flat import FlatParameters
from sfactory.learning.native_adam import NativeAdam
from sfactory.learning.native_network import NativeLearnerNetwork
from sfactory.learning.normalizers import Normalizers
from sfactory.learning.objectives import Loss, Minibatch, Objective, Phase, Start, objective_class
from sfactory.learning.objectives.base import ESS_METRIC, KL_METRIC
from sfactory.learning.parallel_network import ParallelNetwork
from sfactory.learning.parts import divided, joined
from sfactory.learning.slow_fast import SlowFast
from sfactory.model.actor_critic import ActorCritic, Output
from sfactory.native.choice import why_not_native
from sfactory.native.library import identity

OBJECTIVE_PART = "proximal"  # checkpoint part of the objective's state, under the name of format 1


class Update:
    """Everything that an update changes: weights, optimizer, objective, normalizers. A checkpoint holds all of it."""

    def __init__(
        self,
        config: Config,
        model: ActorCritic,
        device: torch.device,
        accelerator: Accelerator | None = None,
        log: Callable[[str], None] = lambda line: None,
        learners: Learners | None = None,
    ) -> None:
        """accelerator: the device work of an update is recorded there once and replayed; log gets a line if that fails.
        learners: the learners of the job; None: this one alone.
        """
        self.config, self.model, self.device = config, model, device
        self.learners = SingleLearner() if learners is None else learners
        self.normalizers = Normalizers(config, model, device, self.learners)
        autocast = precision(config.run.precision, device)
        self.objective: Objective[Any] = objective_class(config)(config, model, self.normalizers, autocast)
        for line in self.objective.warnings():
            log(line)
        threads = pool_size(config.run.learner_threads) if accelerator is None else 1  # one stream, one thread
        self.flat = FlatParameters(list(model.parameters()))
        reason = why_not_native(config, model, device, config.run.precision)
        if accelerator is not None:
            reason = reason or "an accelerator records the update"
        self.kernels = (
            f"native {identity()}" if not reason else "autograd" if config.run.kernels == "autograd" else "torch"
        )
        """What computes the network, for the checkpoint: equal names give equal bits."""
        self.kernels_line = f"kernels: torch ({reason})" if reason else "kernels: native"
        self.network = self._make_network(not reason, ThreadPool(threads), autocast)
        self.objective.use_network(self.network.forward_eval)
        self.parameters = self.flat.parameters
        self.schedule = SCHEDULES[config.optim.schedule]
        self.lr = config.optim.lr
        # A recording reads the learning rate from a tensor: a number would stay that of the first update.
        lr = self.lr if accelerator is None else torch.full((), self.lr, device=device)
        betas = config.optim.beta1, config.optim.beta2
        adam = NativeAdam if isinstance(self.network, NativeLearnerNetwork) else Adam
        self.optimizer = adam(self.flat, lr, betas, config.optim.eps, exact=config.run.kernels == "autograd")
        # Rows of one lane are correlated: minibatches of rows have a less noisy gradient. Memory needs whole lanes.
        # So does a loss over trajectories.
        self.by_rows = config.batch.shuffle == "rows" and not model.state_size and not rules_of(config).whole_lanes
        self.kl, self.ess = config.optim.kl_target, 1.0  # of the last update, for the adaptive schedules
        self.lag = 0.0  # of the batch, with the schedule staleness
        self.adaptive = config.optim.schedule == "kl_adaptive"
        o = config.optim
        self.slow_fast = SlowFast(o.sfpo_window, o.sfpo_threshold) if o.sfpo_steps else None
        if o.sfpo_steps and type(self.objective).entropy_at_start is Objective.entropy_at_start:
            raise ValueError(
                f"optim.sfpo-steps needs the entropy of a policy, which {type(self.objective).__name__} lacks"
            )
        self._skipped = torch.zeros(config.optimizer_steps_per_update, device=device)  # 1.0: the step was not taken
        self._last: tuple[Batch, Tensor | None] | None = None
        self.on_optimizer_step: Callable[[], None] = lambda: None
        """Called after every optimizer step that is not replayed from a recording."""
        self.device_work: Work = self._device_work
        if accelerator is not None and self.slow_fast is not None:
            log("updates are not recorded: optim.sfpo-steps reads the entropy of every batch before its passes")
        elif accelerator is not None and self.objective.recordable and self.learners.recordable:
            self.device_work = Replay(accelerator, self._device_work, log)

    def _make_network(
        self, native: bool, pool: ThreadPool, autocast: Callable[[], AbstractContextManager[object]]
    ) -> ParallelNetwork | NativeLearnerNetwork:
        if not native:
            return ParallelNetwork(self.model, pool, autocast, self.flat)
        network = NativeLearnerNetwork(self.model, pool, self.flat)
        self.objective.use_native(network)
        return network

    # -- the update ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch, updates: int, progress: float) -> dict[str, Tensor]:
        """Train on one batch [T, B]. updates: finished before this one; progress: share of the run, 0 to 1.

        Returns metrics as 0-dim tensors, left on the device. `skipped` counts optimizer steps that were not taken
        because a loss or gradient was not finite; `trained` tells which rows were trained on nevertheless.
        """
        o = self.config.optim
        if o.schedule == "staleness":
            self.lag = float(self.learners.average_metric(_mean_lag(batch), batch.valid.sum()))
        now = ScheduleState(o.lr, progress, self.kl, self.ess, o.kl_target, o.lr_min, o.lr_max, self.lag, o.decay_share)
        self.lr = self.schedule(self.lr, now)
        self.objective.set_progress(progress)
        if isinstance(self.optimizer.lr, Tensor):
            self.optimizer.lr.fill_(self.lr)
        else:
            self.optimizer.lr = self.lr
        order = self._order(batch, updates)
        self._last = batch, order if order is None else order[-self.config.batch.epochs :]
        # With replay a batch without replayed lanes is smaller than the one that is recorded.
        recorded = batch.fresh is not None or not self.config.replay.ratio
        metrics = (self.device_work if recorded else self._device_work)(batch, order)
        if self.adaptive:  # the one synchronization that this schedule needs, and the next
            self.kl = float(metrics[KL_METRIC])
        if o.schedule == "ess":
            found = float(metrics[ESS_METRIC])
            if found > 0.0:  # NaN: the minibatch was not finite; 0: it had no valid row. A rate of 0 trains nothing.
                self.ess = found
        return metrics

    def trained(self) -> Tensor:
        """[T, B] bool: the rows of the last batch that an optimizer step was taken with; reset rows are among them."""
        assert self._last is not None, "trained() follows run()"
        batch, order = self._last
        taken = self._skipped == 0
        if order is None:
            return taken.any().expand_as(batch.valid)
        # Rows in no minibatch have no agent that acts: they count as trained with the whole update.
        lanes = taken.any().repeat(batch.valid.numel() if self.by_rows else order.shape[1])
        lanes[order.flatten()] = False
        of_epoch = taken.view(self.config.batch.epochs, -1)
        for lanes_of_epoch, steps in zip(order, of_epoch, strict=True):
            for number, one in enumerate(lanes_of_epoch.tensor_split(self.config.batch.minibatches)):
                lanes[one] |= steps[number]
        return lanes.view_as(batch.valid) if self.by_rows else lanes.expand_as(batch.valid)

    def _order(self, batch: Batch, updates: int) -> Tensor | None:
        """[fast passes + epochs, lanes or rows]: the order of each. None: one minibatch is the whole batch."""
        if self.config.batch.minibatches == 1:
            return None
        rows = self._acting_rows(batch)
        lanes = len(rows) if rows is not None else batch.valid.numel() if self.by_rows else batch.valid.shape[1]
        passes = self.config.optim.sfpo_steps + self.config.batch.epochs
        order = torch.from_numpy(shuffled(lanes, passes, self.config.run.seed, updates))
        return (order if rows is None else rows[order]).to(self.device)

    def _acting_rows(self, batch: Batch) -> Tensor | None:
        """[rows] int64: the rows that can be learned from, where agents take turns or are opponents; None: all rows.

        In a game of two players the other half of the rows would only cost time. A recording needs a fixed number of
        rows.
        """
        if batch.order is None or not self.by_rows or isinstance(self.device_work, Replay):
            return None
        rows = batch.valid.flatten().nonzero().squeeze(1).cpu()
        return rows if len(rows) >= self.config.batch.minibatches else None

    def _device_work(self, batch: Batch, order: Tensor | None) -> dict[str, Tensor]:
        """Everything that the device does for an update.

        Recordable: it never waits for the device, no decision depends on a value, and state changes in place.
        """
        if self.config.optim.adam_rel:
            self.optimizer.restart_count()
        one_step = order is None and not self.config.starts_with_forward_pass
        # One pass is not enough where the start needs the outputs of all parts, or changes the value head.
        by_parts = self.objective.divisible and divided(batch)
        if one_step and not by_parts and not self.normalizers.moves_value_head:
            metrics, start = self._single_step(batch)
        else:
            metrics, start = self._epochs(batch, order)
        for phase in self.objective.further_phases(batch):
            if self.config.optim.adam_rel:  # another objective
                self.optimizer.restart_count()
            further, _ = self._run_phase(phase)
            metrics = {**further, **metrics, "skipped": metrics["skipped"] + further["skipped"]}
        if self.adaptive:
            own = self._kl_of_update(batch, start, metrics["skipped"])
            metrics[KL_METRIC] = self.learners.average_metric(own, batch.valid.sum())
        finite = metrics["skipped"] == 0  # a batch that was not finite, in whole or in part, is not added
        self.normalizers.update(batch, batch.valid & finite)
        return metrics

    def _kl_of_update(self, batch: Batch, start: Start, skipped: Tensor) -> Tensor:
        """[] KL of the policy before all optimizer steps to the present one, over the whole batch.

        NaN if a step was skipped: weights that stayed where they were do not show that the rate is too low.
        """
        out = self.network.forward_eval(batch.without_last_row())
        return self.objective.kl_of_update(batch, start, out).masked_fill(skipped > 0, math.nan)

    def _single_step(self, batch: Batch) -> tuple[dict[str, Tensor], Start]:
        """One optimizer step per update: one forward pass gives the start and the gradient."""
        out = self.network.forward_train(batch)
        start = self.objective.start(batch, out)
        self.objective.begin_epochs(start)
        part = Minibatch(batch, None, _without_last_row(out))
        loss = self.objective.loss(part, start, True)
        if loss.gradient is not None:
            loss = loss._replace(gradient=_with_last_row(loss.gradient))
        metrics = self._optimizer_step(loss, batch.valid)
        self._skipped.copy_(metrics["skipped"])
        return metrics, start

    def _epochs(self, batch: Batch, order: Tensor | None) -> tuple[dict[str, Tensor], Start]:
        """Several optimizer steps per update, after a forward pass for the start."""
        with torch.no_grad():
            start = self.objective.start(batch, self.network.forward_eval(batch))
        inputs, inputs_start = batch.without_last_row(), start
        if self.by_rows:
            inputs, inputs_start = inputs.as_rows(), start.as_rows()
        self.objective.begin_epochs(inputs_start)
        phase = Phase(
            inputs,
            inputs_start,
            self.objective.loss,
            order,
            epochs=self.config.batch.epochs,
            minibatches=self.config.batch.minibatches,
            divisible=self.objective.divisible,
        )
        skipped_fast = None
        if self.slow_fast is not None:
            skipped_fast = self._fast_passes(phase, batch, start)
            phase = phase._replace(order=order if order is None else order[-phase.epochs :])
        metrics, skipped = self._run_phase(phase)
        self._skipped.copy_(skipped)
        if skipped_fast is not None:
            metrics["skipped"] = metrics["skipped"] + skipped_fast
        return metrics, start

    def _fast_passes(self, phase: Phase, batch: Batch, start: Start) -> Tensor | None:
        """The fast passes of SFPO, and the way back; [] steps that were not taken, or None after the last such update.

        They are not part of the averaged policy: nothing acts with their weights.
        """
        assert self.slow_fast is not None
        entropy, o = self.objective.entropy_at_start(batch, start), self.config.optim
        if not self.slow_fast.add(float(self.learners.average_metric(entropy, batch.valid.sum()))):
            return None
        before = self.flat.values.clone()
        order = phase.order if phase.order is None else phase.order[: o.sfpo_steps]
        metrics, _ = self._run_phase(phase._replace(order=order, epochs=o.sfpo_steps), fast=True)
        with torch.no_grad():
            self.flat.values.copy_(torch.lerp(before, self.flat.values, o.sfpo_alpha))
        return metrics["skipped"]

    def _run_phase(self, phase: Phase, fast: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """All optimizer steps of a phase; metrics with `skipped` of all, and of each [steps].

        fast: passes that are taken back: there is no report, and the objective does not count their steps.

        A report costs more than the step itself, so only the last minibatch has one; the table of metrics says so. The
        norm of the gradient is the mean of all steps.
        """
        last, skipped, norms = phase.epochs * phase.minibatches - 1, [], []
        metrics: dict[str, Tensor] = {}
        for number, lanes in enumerate(_minibatches(phase)):
            rows, report = phase.batch.lanes(lanes), number == last and not fast
            parts = divided(rows) if phase.divisible else []
            if parts:
                out = self._backward_by_parts(phase, parts, rows.valid.sum())
                # One report from all outputs: reports of the parts could not be combined (ess, explained_variance).
                loss = phase.loss(Minibatch(rows, lanes, out), phase.start, True) if report else Loss(None, {}, {})
                metrics = self._step(loss, rows.valid, fast)
            else:
                out = self.network.forward_train(rows)
                loss = phase.loss(Minibatch(rows, lanes, out), phase.start, report)
                metrics = self._optimizer_step(loss, rows.valid, fast)
            skipped.append(metrics["skipped"])
            norms.append(metrics["losses/grad_norm"])
        of_steps = torch.stack(skipped)
        metrics["skipped"] = of_steps.sum()
        metrics["losses/grad_norm"] = _mean_norm(norms, skipped)
        return metrics, of_steps

    def _backward_by_parts(self, phase: Phase, parts: list[Tensor], num_valid: Tensor) -> Output:
        """Write the gradient of a minibatch, the sum of those of its parts; the detached outputs of all parts.

        One part's graph is alive at a time. parts: lanes of each. num_valid: [] valid rows of the minibatch.
        """
        gradient, outputs = self.flat.zeros(), []
        for lanes in parts:
            rows = phase.batch.lanes(lanes)
            out = self.network.forward_train(rows)
            self._backward(phase.loss(Minibatch(rows, lanes, out, num_valid), phase.start, False))
            gradient += self.flat.gradient
            outputs.append(out)
        self.flat.gradient.copy_(gradient)
        return joined(outputs)

    def _optimizer_step(self, loss: Loss, valid: Tensor, fast: bool = False) -> dict[str, Tensor]:
        """One optimizer step; its metrics, and `skipped`: 1.0 if it was not taken because it is not finite."""
        self._backward(loss)
        return self._step(loss, valid, fast)

    def _backward(self, loss: Loss) -> None:
        """Write the gradient of the last `forward_train`; it replaces the old one."""
        if loss.gradient is None:
            assert loss.total is not None, "a loss without a gradient has a total"
            loss.total.backward()  # as far as the network's outputs
        self.network.backward(loss.gradient)
        if loss.total is not None:  # clamp and where have finite gradients where the loss is NaN, as in sapo
            self.flat.gradient[:1].masked_fill_(~loss.total.detach().isfinite(), math.inf)

    def _step(self, loss: Loss, valid: Tensor, fast: bool = False) -> dict[str, Tensor]:
        """As `_optimizer_step`, with the gradient that was written. loss: its metrics."""
        report = {**loss.losses, **loss.diagnostics}
        most = {name: _largest(report[name]) for name in self.objective.largest_metrics if name in report}
        report = self.learners.average_gradients(self.flat.gradient, valid, report, {**most, **loss.joint})
        norm, skipped = self.optimizer.clip_and_step(self.config.optim.max_grad_norm)
        if not fast:
            self.objective.after_step(skipped)
        self.on_optimizer_step()
        losses = {name: report.pop(name) for name in loss.losses}
        return {"skipped": skipped, **losses, "losses/grad_norm": norm, **report}

    def digest(self) -> int:
        """63 bits that depend on every bit of the weights and of all statistics."""
        found = hashlib.blake2b(digest_size=8)
        for part in (dict(self.model.state_dict()), self.normalizers.state_dict()):
            for name in sorted(part):
                found.update(part[name].detach().cpu().contiguous().numpy().tobytes())
        return int.from_bytes(found.digest(), "little") >> 1

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by checkpoint part and name."""
        return {
            "model": dict(self.model.state_dict()),
            OBJECTIVE_PART: self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "normalizers": self.normalizers.state_dict(),
        }

    def load_state_dict(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(dict(parts["model"]))
        self.objective.reset()
        self.objective.load_state_dict(parts[OBJECTIVE_PART])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.normalizers.load_state_dict(parts["normalizers"])

    def initialize_from(self, weights: Mapping[str, Tensor], normalizers: Mapping[str, Tensor]) -> None:
        """Take weights and their statistics from another run; the objective starts from them."""
        self.model.load_state_dict(dict(weights))
        self.normalizers.initialize_from(normalizers)
        self.objective.reset()
        self.objective.set_progress(0.0)


def _largest(metric: Tensor) -> Joint:
    """The largest value of a metric [] that a learner has."""
    return Joint(lambda: metric.view(1), joint.largest)


def _mean_lag(batch: Batch) -> Tensor:
    """[] mean lag of the valid rows, in updates."""
    return batch.lag.masked_fill(~batch.valid, 0.0).sum() / batch.valid.sum().clamp(min=1)


def _with_last_row(gradient: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients [T, B, ...] of outputs -> [T + 1, B, ...]: the loss does not depend on the outputs of the last row."""
    params, value = (torch.cat([x, torch.zeros_like(x[:1])]) for x in gradient)
    return params, value


def _without_last_row(out: Output) -> Output:
    """Outputs of T + 1 rows -> of T."""
    return out._replace(**{name: x[:-1] for name, x in out.of_rows().items()})


def _mean_norm(norms: list[Tensor], skipped: list[Tensor]) -> Tensor:
    """[] mean norm of the steps that were taken; NaN if none was. norms, skipped: [] of every step, 1.0: not taken."""
    return torch.where(torch.stack(skipped) > 0, math.nan, torch.stack(norms)).nanmean()


def _minibatches(phase: Phase) -> Iterator[Tensor | None]:
    """Lanes [b] of every minibatch; None: the whole batch."""
    if phase.order is None:
        yield from (None,) * phase.epochs
    else:
        for epoch in phase.order.unbind(0):
            yield from epoch.tensor_split(phase.minibatches)
