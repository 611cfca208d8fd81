"""Search for faster settings with short runs: `sfactory bench --search` and `--sampling.auto`.

Starting from the given settings, one change at a time is measured in a short real run and kept if it is clearly faster.
Some changes only move work between processes and threads; others (batch size, precision, slots) also change what is
learned and are tried only if requested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from sfactory.config import Config, with_settings
from sfactory.config.toml_file import settings_to_toml
from sfactory.device.machine import cores
from sfactory.supervisor.cores import by_cores, on_gpu
from sfactory.tools.bench import BenchFailed, Trial, trial

MIN_SPEEDUP = 1.04  # smaller differences are noise in a short run on a shared machine
TRIAL_S = 4.0  # of counted training per trial
AUTO_S = 30.0  # for `sampling.auto`
GPU_AUTO_S = 90.0  # a trial also starts CUDA and captures graphs
SPLIT = ("sampling.num_samplers", "sampling.groups_per_sampler", "sampling.envs_per_group")
"""Settings that divide the same environments among processes."""

Measure = Callable[[Config], Trial]
"""A short run at these settings. Raises BenchFailed or ValueError if it does not run."""


def tuned(config: Config, log: Callable[[str], None]) -> Config:
    """Apply `sampling.auto`: the same batch and environments, in the split that is fastest on this machine."""
    config = with_settings(config, {"sampling.auto": False})
    try:
        result = search(config, GPU_AUTO_S if on_gpu(config.run.device) else AUTO_S, log=log)
    except BenchFailed as error:  # the run itself will fail with its own exit code
        log(f"sampling.auto: keeping the given settings, the trial run failed ({error})")
        return config
    if not result.settings:
        log(f"sampling.auto: keeping the given settings, no change was clearly faster ({result.speed(result.before)})")
        return config
    changed = ", ".join(f"{name}={value}" for name, value in result.settings.items())
    log(f"sampling.auto: {changed}; {result.after:,.0f} instead of {result.speed(result.before)}")
    return with_settings(config, result.settings)


class Change(NamedTuple):
    """Settings that are changed together."""

    settings: dict[str, Any]
    """section.field -> value."""
    learns_differently: bool

    @property
    def description(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    def apply(self, config: Config) -> Config:
        """Return the changed configuration. Raises ValueError if it is invalid."""
        return with_settings(config, self.settings)


class TuneResult(NamedTuple):
    """What a search came to."""

    settings: dict[str, Any]
    """Every setting that is not as it was: section.field -> value. Empty: nothing was clearly faster."""
    before: float
    after: float
    """Steps per second of the given settings and of the best, measured again in turn at the end."""
    tried: list[tuple[str, float]]
    learns_differently: bool
    unit: str
    """What the speeds count: "steps", or "agent steps" where there are several agents."""

    def speed(self, steps_per_second: float) -> str:
        """A speed with its unit."""
        return f"{steps_per_second:,.0f} {self.unit}/s"

    def text(self) -> str:
        """Return the result as text."""
        lines = [f"  {speed:10,.0f} {self.unit}/s  {description}" for description, speed in self.tried]
        if not self.settings:
            return "\n".join([*lines, f"no change was clearly faster than {self.speed(self.before)}"])
        lines.append(f"faster: {self.speed(self.after)} instead of {self.before:,.0f}, with")
        lines += ["  " + line for line in settings_to_toml(self.settings).splitlines()]
        if self.learns_differently:
            lines.append(
                "these settings also change what is learned (batch, lag or precision): compare returns, not only speed"
            )
        return "\n".join(lines)


def changes(config: Config, num_cores: int, learning: bool) -> Iterator[Change]:
    """Yield changes to try from a configuration, most promising first."""
    run, s = config.run, config.sampling
    networks = {"learner_threads": run.device, "inference_threads": run.inference_device or run.device}
    on_cpu = [name for name, device in networks.items() if not on_gpu(device)]
    splits = set()
    if not config.batch.slots:  # one slot of each group: the batch stays the same if the environments do
        for samplers in range(1, max(1, num_cores) + 1):
            for groups in (2, 1, 3, 4):
                envs, rest = divmod(s.num_envs, samplers * groups)
                if not rest and envs and (samplers * groups) % len(config.env.tasks) == 0:
                    splits.add((samplers, groups, envs))
    splits.discard((s.samplers, s.groups_per_sampler, s.envs_per_group))

    def distance(split: tuple[int, int, int]) -> tuple[float, int]:
        """Sort key: near two samplers per three cores first, as the other workers need cores too."""
        return abs(split[0] - max(1, round(num_cores * 0.7))) + abs(split[1] - 2) / 2, split[2]

    for split in sorted(splits, key=distance):
        yield Change(dict(zip(SPLIT, split, strict=True)), False)
    if "inference_threads" in on_cpu:
        now = by_cores(config, num_cores).run.inference_workers
        for workers in sorted({1, 2, now + 1} - {now}):
            if workers <= min(s.samplers, num_cores // 2):
                yield Change({"run.inference_workers": workers}, False)
    for kind in on_cpu:
        for threads in {1, 2, num_cores // 2, num_cores} - {getattr(run, kind), 0}:
            if threads <= num_cores:
                yield Change({f"run.{kind}": threads}, False)
    if not learning:
        return
    if config.run.precision != "bf16":
        yield Change({"run.precision": "bf16"}, True)
    for factor in (2, 4):
        yield Change({"sampling.envs_per_group": s.envs_per_group * factor}, True)
    if s.slots_per_group > 1:
        yield Change({"sampling.slots_per_group": s.slots_per_group + 1}, True)


def search(
    config: Config, budget_s: float, learning: bool = False, log: Callable[[str], None] = lambda line: None,
    measure: Measure | None = None, clock: Callable[[], float] = time.monotonic,
) -> TuneResult:  # fmt: skip
    """Hill-climb from the given settings for about `budget_s` seconds.

    learning: also try changes of batch, lag or precision. Raises BenchFailed if the given settings do not run. A number
    of samplers that is left to the cores is settled first and belongs to the result.
    """
    given, config = config, replace(config, sampling=by_cores(config, cores()).sampling)

    def short_run(settings: Config) -> Trial:
        return trial(settings, TRIAL_S)

    measure, start = measure or short_run, clock()
    best, given_run = config, measure(config)
    trial_s, first, unit = clock() - start, given_run.steps_per_second, given_run.unit
    tried, speed, differently, seen = [("as given", first)], first, False, [config]
    log(f"  {first:10,.0f} {unit}/s  as given")
    settings: dict[str, Any] = {}
    climbing = True
    while climbing:
        climbing = False
        for change in changes(best, cores(), learning):
            if clock() - start + 3 * trial_s > budget_s:  # this trial and both final measurements
                break
            try:
                candidate = change.apply(best)
                if candidate in seen:
                    continue
                seen.append(candidate)
                candidate_speed = measure(candidate).steps_per_second
            except (ValueError, BenchFailed):
                continue
            tried.append((change.description, candidate_speed))
            log(f"  {candidate_speed:10,.0f} {unit}/s  {change.description}")
            if candidate_speed > MIN_SPEEDUP * speed:
                best, speed, climbing = candidate, candidate_speed, True
                settings, differently = settings | change.settings, differently or change.learns_differently
                break
    if not settings:
        return TuneResult({}, first, first, tried, False, unit)
    # Both are measured again, and only that counts: the best of many trials was chosen because it was fast, so a mean
    # with its first measurement is too high; and the machine may have been busy when the given settings were measured.
    before, after = measure(config).steps_per_second, measure(best).steps_per_second
    if after <= before:
        return TuneResult({}, before, before, tried, False, unit)
    if config != given:
        settings = {name: getattr(config.sampling, name.partition(".")[2]) for name in SPLIT} | settings
    return TuneResult(settings, before, after, tried, differently, unit)
