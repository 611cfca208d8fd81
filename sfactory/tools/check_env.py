"""Check an environment against the rules of the group interface by stepping it with random actions.

`random_rollout.record` steps a group; each rule of `env_rules` is a pure function of that rollout. Then the network of
the suggested command acts and trains for two updates on the data. The report has the findings and this command.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from sfactory.config import parsing, presets
from sfactory.config.flags import split_flags
from sfactory.config.parsing import ConfigLayer, RawValue, flag_name
from sfactory.config.schema import Env
from sfactory.config.values import as_text
from sfactory.envs import EnvError, EnvOptions, EnvSpec, Group, make_group
from sfactory.errors import NoPictures
from sfactory.model.treatment import obs_lines, obs_treatments
from sfactory.play.watched_group import NO_CLOCK, EnvClock, WatchedGroup
from sfactory.run.reader import format_value
from sfactory.tools.env_rules import RULES, Plan, network, outside_mask, seeds
from sfactory.tools.random_rollout import RandomRollout, record

ENVS, STEPS, SECONDS = 4, 2000, 3.0
FIX_FIRST = "before it can train: correct what is marked bad, and check again"
RENDERING = "rendering"  # title of the finding about pictures
REPLAY = 200  # steps that are repeated with the same seeds and with others

Make = Callable[[int, Sequence[int]], Group]


class RuleFinding(NamedTuple):
    """The result of one rule."""

    level: str  # "ok", "warn" or "bad"
    title: str
    sentence: str


# -- the suggested command -----------------------------------------------------------------------------------


def nearest(name: str, spec: EnvSpec, target: str = "") -> tuple[list[str], str, dict[str, Any]]:
    """Return a command that trains the environment, the origin of its settings, and the settings."""
    own_presets = [preset.name for preset in presets.presets() if preset.env == name]
    if own_presets:
        chosen, why = target if target in own_presets else own_presets[0], "its preset"
    else:
        chosen = presets.target_of_agents(name) if spec.agents else name
        why = f"the defaults of {presets.default_file(chosen).parent.name}"
    settings = {key: value.value for layer in presets.target_layers(chosen) for key, value in layer.items()}
    return ["sfactory", "train", chosen], why, settings


def flags_of(texts: Sequence[str]) -> ConfigLayer:
    """Flags as they are typed, `--section.field value`, as a layer of settings."""
    return split_flags([word for text in texts for word in text.split()])[0]


def plan_of(spec: EnvSpec, settings: Mapping[str, Any], flags: ConfigLayer, suggested: Sequence[str] = ()) -> Plan:
    """The plan of a command: its settings, flags that were given, and flags that rules suggest."""
    layer = {name: RawValue(value) for name, value in settings.items()}
    config = parsing.build(layer, flags, flags_of(suggested))
    try:
        return Plan(config, obs_treatments(spec, config))
    except ValueError:  # `network` reports it
        return Plan(config, {})


def env_flags(options: EnvOptions) -> dict[str, Any]:
    """Return what was said about an environment as settings by dotted name."""
    others = {
        "env.protocol": options.protocol,
        "env.wrappers": ",".join(options.wrappers),
        "env.wrapper-settings": dict(options.wrapper_settings),
        "env.drop": ",".join(options.drop),
        "env.agent-id": options.agent_id,
        "env.pad-spaces": options.pad_spaces,
        "env.info-keys": ",".join(options.info_keys),
    }
    flags = {f"env.settings.{name}": value for name, value in options.settings.items()}
    return flags | {name: value for name, value in others.items() if value}


# -- the report ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnvReport:
    """The findings about an environment, and a command that trains it."""

    spec: EnvSpec
    findings: tuple[RuleFinding, ...]
    steps: int
    steps_per_second: float
    train: str  # a command
    settings_from: str
    reading: tuple[str, ...] = ()
    """How the network reads the observations, a line each."""

    @property
    def bad(self) -> bool:
        """Whether any finding is `bad`."""
        return any(finding.level == "bad" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report, for --json."""
        spec = asdict(self.spec)
        for leaf in (*spec["obs"].values(), *spec["actions"].values()):  # JSON has no infinity
            leaf |= {side: [x if np.isfinite(x) else None for x in leaf[side]] for side in ("low", "high")}
        return {**vars(self), "spec": spec, "findings": [f._asdict() for f in self.findings], "bad": self.bad}

    def text(self) -> str:
        """Return the report as text."""
        spec, limit = self.spec, self.spec.max_episode_steps
        others = "env steps" if spec.agents else "steps"
        rows = [(name, f"{leaf.dtype} {list(leaf.shape)}{', the mask' * (name == spec.mask)}")
                for name, leaf in spec.obs.items()]  # fmt: skip
        for name, leaf in spec.actions.items():
            box = f"{leaf.sizes[0]} numbers from {min(leaf.low, default=0):g} to {max(leaf.high, default=0):g}"
            rows.append((name, f"one of {' x '.join(map(str, leaf.sizes))}" if leaf.kind == "discrete" else box))
        rows.append(("episode", f"at most {limit:,} {others}" if limit else "no step limit in the spec"))
        rows += [("frame skip", f"{spec.frame_skip}"), ("protocol", spec.protocol)]
        if spec.agents:
            rows.append(("agents", f"{len(spec.agents)}: {textwrap.shorten(', '.join(spec.agents), 80)}"))
        steps = "agent steps" if spec.agents else "steps"
        lines = [f"{spec.name}, {self.steps:,} {steps} with random actions", ""]
        lines += [f"{title:25}{value}" for title, value in rows] + [""]
        lines += [*self.reading, ""] if self.reading else []
        for level, title, sentence in self.findings:
            lines.append(
                textwrap.fill(sentence, 118, initial_indent=f"{level:6}{title:19}", subsequent_indent=" " * 25)
            )
        last = FIX_FIRST if self.bad else f"{self.train}    # settings: {self.settings_from}"
        return "\n".join([*lines, "", last])


# -- the check -----------------------------------------------------------------------------------------------


OWN_FLAGS = ("env.name", "env.protocol", "env.settings", "env.wrappers", "env.wrapper_settings", "env.drop",
             "env.agent_id", "env.pad_spaces", "env.info_keys")  # fmt: skip
"""Settings of the environment itself: they are part of `settings`."""


def check(
    name: str, options: EnvOptions | Mapping[str, Any] | None = None, *, steps: int = STEPS, seconds: float = SECONDS,
    seed: int = 0, target: str = "", make: Make | None = None, flags: ConfigLayer | None = None,
    clock: EnvClock = NO_CLOCK,
) -> EnvReport:  # fmt: skip
    """Check FAMILY/ID with random actions. Raises EnvError if it cannot be built.

    steps, seconds: of the group, whichever ends first. target: the preset that was given, if any.
    make: builds the groups instead of the family. flags: settings for training, which the suggested command repeats.
    clock: is told before environments are called.
    """
    build = make or (lambda num_envs, seeds: make_group(name, num_envs, seeds, options))

    unread: list[str] = []  # masks of actions that are not part of the observation

    def play(stream: int, steps: int, seconds: float) -> tuple[EnvSpec, RandomRollout]:
        numbers = [np.random.SeedSequence([seed, stream, env]).generate_state(1)[0] for env in range(ENVS)]
        group = WatchedGroup(lambda: build(ENVS, [int(number) >> 1 for number in numbers]), ENVS, clock)
        try:
            rollout = record(group, steps, seconds, seed)
            unread.append(getattr(group.group, "unread_mask", ""))
            return group.spec, rollout
        finally:
            group.close()

    spec, rollout = play(0, steps, seconds)
    played = len(rollout.reward) > 0
    command, settings_from, preset = nearest(name, spec, target)
    given = {key: value for key, value in (flags or {}).items() if not key.startswith(OWN_FLAGS)}
    plan = plan_of(spec, preset, given)
    rules = RULES if played else RULES[:1]
    found = [(rule.__name__.replace("_", " "), *one) for rule in rules for one in rule(spec, rollout, plan)]
    found += [("actions", *one) for one in outside_mask(unread[0])]
    suggested = list(dict.fromkeys(flag for one in found for flag in one[3:]))
    plan = plan_of(spec, preset, given, suggested)
    if played:
        again, other = (play(stream, min(steps, REPLAY), seconds / 4)[1] for stream in (0, 1))
        found += [("seeds", *one) for one in seeds(rollout, again, other)]
        if not rollout.problem:
            found += [("network", *one) for one in network(spec, rollout, plan)]
    if rollout.problem:  # what it cut short is no reason for advice, and no measurement of the speed
        found = [one for one in found if one[1] == "bad" or (one[1] == "ok" and one[0] != "speed")]
    for option, value in env_flags(EnvOptions.of(options)).items():
        command += [f"--{option}={as_text(value)}"] if preset.get(option) != value else []
    replaced = flags_of(suggested)
    command += [f"--{flag_name(key)}={format_value(v.value)}" for key, v in given.items() if key not in replaced]
    train = " ".join([shlex.join(command), *suggested])
    findings = tuple(RuleFinding(level, title, sentence) for title, level, sentence, *_ in found)
    rate = float(rollout.valid.sum() / rollout.seconds.sum()) if played else 0.0
    lines = tuple(obs_lines(spec, plan.config)) if plan.readings else ()
    return EnvReport(spec, findings, int(rollout.valid.sum()), rate, train, settings_from, lines)


@dataclass(frozen=True)
class Check:
    """Checks of the tasks of a configuration, as a job for a process of its own (`supervisor.env_child.Job`)."""

    env: Env
    seconds: float = SECONDS
    seed: int = 0
    target: str = ""
    """The preset that was given, if any."""
    flags: ConfigLayer | None = None
    """Settings for training, which the suggested command repeats."""

    def run(self, clock: EnvClock = NO_CLOCK) -> list[EnvReport]:
        """Check one task after the other. Raises EnvError if one cannot be built."""
        return [
            check(task, self.env.options, seconds=self.seconds, seed=self.seed, target=self.target, flags=self.flags,
                  clock=clock)
            for task in self.env.tasks
        ]  # fmt: skip


def pictures(width: int, height: int) -> RuleFinding:
    """The finding about an environment that draws pictures of this size."""
    return RuleFinding(
        "ok", RENDERING, f"render() draws pictures of {width} x {height}, for eval --video and eval.video"
    )


def no_pictures(task: str, error: EnvError) -> RuleFinding:
    """The finding about an environment that draws none; a warning only if it has a render() that fails."""
    level = "ok" if isinstance(error, NoPictures) else "warn"
    return RuleFinding(level, RENDERING, f"training works without pictures; {str(error).removeprefix(f'{task}: ')}")
