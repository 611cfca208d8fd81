"""Faster settings, found by trying them: `sfactory bench --search` and `--sampling.auto`.

From the given settings one change at a time is tried in a short real run and kept if it is clearly faster. Some changes
move only work between processes and threads; others (batch size, precision, slots) also change what is learnt, and are
tried only where that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sfactory.config import Config, with_settings
from sfactory.config.toml_file import settings_to_toml
from sfactory.device.machine import cores, shows_gpu
from sfactory.tools.bench import BenchFailed, trial

CLEARLY = 1.04  # times as fast: below that a short run on a shared machine says nothing
TRIAL_S = 4.0  # of training that count, per try
AUTO_S = 30.0  # for `sampling.auto`
GPU_AUTO_S = 90.0  # where a try also starts CUDA and records

Measure = Callable[[Config], float]
"""Steps per second of a run at these settings. BenchFailed or ValueError if there is no such run."""


def tuned(config: Config, say: Callable[[str], None]) -> Config:
    """`sampling.auto`: the same batch of the same environments, split as was fastest here."""
    config = with_settings(config, {"sampling.auto": False})
    try:
        found = search(config, GPU_AUTO_S if _on_gpu(config.run.device) else AUTO_S, say=say)
    except BenchFailed as error:  # the run itself will say so, with its own exit code
        say(f"sampling.auto: the settings as given, as none could be tried ({error})")
        return config
    if not found.settings:
        say(f"sampling.auto: nothing was clearly faster than the settings as given ({found.before:,.0f} steps/s)")
        return config
    said = ", ".join(f"{name}={value}" for name, value in found.settings.items())
    say(f"sampling.auto: {said}; {found.after:,.0f} instead of {found.before:,.0f} steps/s")
    return with_settings(config, found.settings)


def _on_gpu(device: str) -> bool:
    return device != "cpu" and shows_gpu()


class Change(NamedTuple):
    """Some settings that go together."""

    settings: dict[str, Any]
    """section.field -> value."""
    learns_differently: bool

    @property
    def words(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    def apply(self, config: Config) -> Config:
        """ValueError where the settings do not go together."""
        return with_settings(config, self.settings)


class Found(NamedTuple):
    """What a search came to."""

    settings: dict[str, Any]
    """Every setting that is not as it was: section.field -> value. Empty: nothing was clearly faster."""
    before: float
    after: float
    """Steps per second of the given settings and of the best, measured again in turn at the end."""
    tried: list[tuple[str, float]]
    learns_differently: bool

    def text(self) -> str:
        """For people."""
        lines = [f"  {speed:10,.0f} steps/s  {words}" for words, speed in self.tried]
        if not self.settings:
            return "\n".join([*lines, f"no change was clearly faster than {self.before:,.0f} steps/s"])
        lines.append(f"better: {self.after:,.0f} steps/s instead of {self.before:,.0f}, with")
        lines += ["  " + line for line in settings_to_toml(self.settings).splitlines()]
        if self.learns_differently:
            lines.append("this also changes what is learnt (batch, lag or precision): compare returns, not only speed")
        return "\n".join(lines)


def changes(config: Config, num_cores: int, learning: bool) -> Iterator[Change]:
    """What is worth a try from here, most promising first."""
    run, s = config.run, config.sampling
    splits = set()
    if not config.batch.slots:  # one slot of each group: the batch stays as it is while the environments do
        for samplers in range(1, max(1, num_cores) + 1):
            for groups in (2, 1, 3, 4):
                envs, rest = divmod(s.num_envs, samplers * groups)
                if not rest and envs and (samplers * groups) % len(config.env.tasks) == 0:
                    splits.add((samplers, groups, envs))
    splits.discard((s.num_samplers, s.groups_per_sampler, s.envs_per_group))

    def distance(split: tuple[int, int, int]) -> tuple[float, int]:
        """Near ones first; of samplers up to two per three cores, as the others have work too."""
        return abs(split[0] - max(1, round(num_cores * 0.7))) + abs(split[1] - 2) / 2, split[2]

    names = ("sampling.num_samplers", "sampling.groups_per_sampler", "sampling.envs_per_group")
    for split in sorted(splits, key=distance):
        yield Change(dict(zip(names, split, strict=True)), False)
    devices = {"learner_threads": run.device, "inference_threads": run.inference_device or run.device}
    for kind in (kind for kind, device in devices.items() if not _on_gpu(device)):
        for threads in {1, 2, num_cores // 2, num_cores} - {getattr(run, kind), 0}:
            if threads <= num_cores:
                yield Change({f"run.{kind}": threads}, False)
    if not learning:
        return
    if config.run.precision == "fp32":
        yield Change({"run.precision": "bf16"}, True)
    for factor in (2, 4):
        yield Change({"sampling.envs_per_group": s.envs_per_group * factor}, True)
    if s.slots_per_group > 1:
        yield Change({"sampling.slots_per_group": s.slots_per_group + 1}, True)


def search(
    config: Config, budget_s: float, learning: bool = False, say: Callable[[str], None] = lambda line: None,
    measure: Measure | None = None, clock: Callable[[], float] = time.monotonic,
) -> Found:  # fmt: skip
    """Climb from the given settings for about `budget_s` seconds.

    learning: also try what changes the batch, the lag or the precision. Raises BenchFailed if the given settings do not
    run at all.
    """
    def short_run(settings: Config) -> float:
        return trial(settings, TRIAL_S).steps_per_second

    measure, began = measure or short_run, clock()
    best, first = config, measure(config)
    one_try = clock() - began
    tried, speed, differently, seen = [("as given", first)], first, False, [config]
    say(f"  {first:10,.0f} steps/s  as given")
    settings: dict[str, Any] = {}
    climbing = True
    while climbing:
        climbing = False
        for change in changes(best, cores(), learning):
            if clock() - began + 3 * one_try > budget_s:  # this try, and both again in the end
                break
            try:
                candidate = change.apply(best)
                if candidate in seen:
                    continue
                seen.append(candidate)
                now = measure(candidate)
            except (ValueError, BenchFailed):
                continue
            tried.append((change.words, now))
            say(f"  {now:10,.0f} steps/s  {change.words}")
            if now > CLEARLY * speed:
                best, speed, climbing = candidate, now, True
                settings, differently = settings | change.settings, differently or change.learns_differently
                break
    if not settings:
        return Found({}, first, first, tried, False)
    again, after = measure(config), measure(best)  # the machine may have been busy when the first one ran
    before, after = (first + again) / 2, (speed + after) / 2
    if after <= before:
        return Found({}, before, before, tried, False)
    return Found(settings, before, after, tried, differently)
