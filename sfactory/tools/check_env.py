"""Check an environment against the rules of the group interface by stepping it with random actions.

`random_rollout.record` steps a group; each rule is a pure function of that rollout. Then the network of the suggested
command acts and trains for two updates on the rollout's data. A finding is `bad` if training would end or learn from
wrong data, and `warn` if it would only learn worse or without a visible error; a warning says what to write.

Shapes: T steps of E environments; row t of a [T, E] array is what step t returned. With A agents every E is E x A.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfactory.config import Config, parsing, presets
from sfactory.config.flags import split_flags
from sfactory.config.parsing import ConfigLayer, RawValue, flag_name
from sfactory.config.schema import Env
from sfactory.config.values import as_text
from sfactory.device.loading import loading_torch
from sfactory.envs import EnvOptions, EnvSpec, Group, make_group
from sfactory.envs.agent_spaces import AGENT_ID
from sfactory.model.treatment import Scaling, Treatment, obs_lines, obs_treatments
from sfactory.play.watched_group import NO_CLOCK, EnvClock, WatchedGroup
from sfactory.run.reader import format_value
from sfactory.tools.random_rollout import COLUMNS, RandomRollout, record, shifted

ENVS, STEPS, SECONDS = 4, 2000, 3.0
REPLAY = 200  # steps that are repeated with the same seeds and with others
LARGE_OBS, LARGE_REWARD = 100.0, 10.0  # an untrained network expects numbers near 1 and adapts slowly to others
SLOW_RESETS = 0.3  # fraction of the time
STILL_STEPS, STILL_EPISODES = 300, 3  # of an agent, after which an observation that has not changed is reported
SEE = (
    "see what reset() and step() return; some environments draw pictures only with --env.settings.render-mode rgb_array"
)
FALLBACK = "gymnasium"  # the family whose settings suit most environments without settings of their own

Make = Callable[[int, Sequence[int]], Group]
RuleOutput = Iterator[tuple[str, ...]]  # (level, sentence), and the flags that fix it if there are any


class Plan(NamedTuple):
    """The suggested training: its settings, and how its network reads each observation."""

    config: Config
    readings: Mapping[str, Treatment]
    """Empty if it cannot read them."""


class RuleFinding(NamedTuple):
    """The result of one rule."""

    level: str  # "ok", "warn" or "bad"
    title: str
    sentence: str


# -- rules ---------------------------------------------------------------------------------------------------


def data(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Environments that failed, and data that does not match the spec."""
    if t.problem:
        yield "bad", t.problem
    if t.faults:
        first_line, _, trace = t.faults[0].message.partition("\n")
        yield "bad", f"an environment failed {len(t.faults)} times, first: {first_line}{_last_place(trace)}"
    if not t.problem and not t.faults:
        yield "ok", "shapes and dtypes match the spec, all numbers are finite, no environment failed"


def _last_place(trace: str) -> str:
    """` (file, line N)` of the innermost frame of a traceback; empty if it has none."""
    frames = re.findall(r'^ *File "(.+)", line (\d+)', trace, re.MULTILINE)
    return " ({}, line {})".format(*frames[-1]) if frames else ""


def autoreset(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Next-step autoreset, by the table at the top of `sfactory.envs`; a lost life sets `first` on a valid row."""
    if spec.agents:
        yield from autoreset_of_agents(spec, t)
        return
    begins, after = t.valid & t.first, shifted(t.ended)
    rules = {
        "no reset row after the end of an episode": shifted(t.ended & ~begins) & t.valid,
        "first on the last row of an episode (same-step autoreset?)": begins & (t.reported | t.truncated),
        "first on a valid row where no life was lost": begins & ~t.ended,
        "a reset row without an end of episode before it (two in a row?)": ~after & ~t.valid & ~t.failed,
        "a reset row without first": ~t.valid & ~t.first,
        "a reset row with a reward": ~t.valid & (t.reward != 0),
        "a reset row that ends an episode": ~t.valid & t.ended,
        "a valid row where the environment failed": t.failed & t.valid,
    }
    violations = list(_violations(rules, spec))
    yield from violations
    if not violations and not after.any():
        yield "warn", f"no episode ended in {len(t.reward):,} steps: not checked; increase --seconds"
    elif not violations:
        lives = f"; {begins.sum()} lost lives, after which the game continued" if begins.any() else ""
        yield "ok", f"{(after & ~t.valid).sum()} ends, each followed by one reset row{lives}"


def autoreset_of_agents(spec: EnvSpec, t: RandomRollout) -> RuleOutput:
    """The rows of agents, by the table at the top of `sfactory.envs.agent_group`."""
    absent, over = t.first & ~t.valid, shifted(t.reported)
    resets = np.repeat(t.reset, t.agents, axis=1)
    rules = {
        "valid on a row whose agent did not act, or not on one whose agent acted": t.valid
        != (t.acting[:-1] & ~t.failed),
        "an agent acts in the observation with which its episode ended": t.ended & t.acting[1:],
        "first on a valid row": t.first & t.valid,
        "an episode of an agent begins and the one before did not end": shifted(t.under_way & ~t.ended)
        & t.first & ~t.failed,
        "an agent that is not there has a reward or an end": absent & ((t.reward != 0) | t.ended),
        "no reset of all agents after the episode of the environment": over & ~resets,
        "a reset of all agents without an end of episode before it": resets & ~over & ~t.failed,
    }  # fmt: skip
    violations = list(_violations(rules, spec))
    yield from violations
    count = (t.reset & over[:, :: t.agents]).sum()
    if not violations and not count:
        yield "warn", f"no episode ended in {len(t.reward):,} steps: not checked; increase --seconds"
    elif not violations:
        ends = f"{t.ended.sum()} ends of agents; {count} ends of environments"
        yield "ok", f"{ends}, each followed by one reset row of all {t.agents} agents"


def _violations(rules: Mapping[str, np.ndarray], spec: EnvSpec) -> RuleOutput:
    """A finding for each rule with a row that violates it, as [T, E] truth values."""
    for what, rows in rules.items():
        if rows.any():
            step, row = np.argwhere(rows)[0]
            env, agent = divmod(int(row), spec.rows)
            whose = f", {spec.agents[agent]}" if spec.agents else ""
            yield "bad", f"{what}: {rows.sum()} times, first at step {step} of environment {env}{whose}"


def final_observation(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """The last row of an episode must hold its final observation, not that of the reset row after it.

    Not detected: an environment that resets within its last step and starts differently each time.
    """
    resets = np.repeat(t.reset, t.agents, axis=1)  # that of an agent that ends earlier stays until then
    ends, same = shifted(t.ended) & resets & ~t.failed, t.checksums[1:] == t.checksums[:-1]
    count, equal = ends.sum(), (ends & same).sum()
    if same.all() or not count:
        return  # constant observations or no end of episode: other rules report these
    if equal <= 0.05 * count:  # with few states an episode may begin as the last one ended
        yield "ok", f"{count - equal} of {count} final observations differ from the reset row after them"
    else:
        problem = (
            f"{equal} of {count} final observations equal the reset row after them: the reset observation is returned"
        )
        wrong = "too early, and bootstrapped values would be wrong; return the last observation of the episode there"
        yield "bad" if equal == count > 1 else "warn", f"{problem} {wrong}"


def time_limit(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """A time limit must truncate, not terminate: the learner bootstraps at truncations."""
    limit, lengths, truncated = spec.max_episode_steps, t.age[t.ended], (t.truncated & ~t.terminated).sum()
    at_limit = (t.age[t.terminated] == limit).sum()  # both flags count as terminated, as in the learner
    if not len(lengths) and limit is None:
        yield (
            "warn",
            f"no time limit found; episodes may never end, so an evaluation needs --max-steps{_limit_flag(spec.name)}",
        )
    elif not len(lengths):
        yield "ok", f"{limit:,} steps; no episode ended in {len(t.reward):,}"
    elif at_limit > 1 and not truncated:
        yield "bad", f"{at_limit} episodes are terminated at exactly the limit, {limit:,} steps: they must be truncated"
    elif len(lengths) > 2 and not truncated and lengths[0] == lengths.min() == lengths.max() > 1:
        yield "warn", f"all {len(lengths)} episodes are terminated after exactly {lengths[0]} steps: a time limit " \
            "reported as termination? Then return it as truncated, the fourth value of step()"  # fmt: skip
    else:
        counts = (
            f"{t.terminated.sum()} terminated, {truncated} truncated, after {lengths.min()} to {lengths.max()} steps"
        )
        yield "ok", f"{counts}; {f'the limit is {limit:,}' if limit else 'no limit is known'}"


def _limit_flag(name: str) -> str:
    """How to set a time limit from the command line, if that is possible for this environment."""
    if name.startswith("gymnasium/"):
        return "; a limit: --env.settings.max-episode-steps 1000"
    if ":" in name:
        return "; a limit: --env.wrappers TimeLimit --env.wrapper-settings.TimeLimit.max-episode-steps 1000"
    return "; or truncate them, and name the limit in the spec (max_episode_steps)"


def observations(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Leaves without information, or with numbers that the network gets as they are and that are too large for it."""
    seen = [name for name in spec.obs if name not in (spec.mask, spec.acting, AGENT_ID)]
    changes = False
    for name in spec.obs:
        constant_remedy = (
            f"if it never does, leave it out: --env.drop {name}"
            if len(seen) > 1
            else f"nothing can be learned from it: {SEE}"
        )
        low, high = t.obs_range[name]
        if not low.size:
            continue
        largest, constant = max(abs(float(low.min())), abs(float(high.max()))), (low == high).sum()
        changes |= constant < low.size and name in seen
        interval = f"{name} is between {low.min():.4g} and {high.max():.4g}"
        reading = plan.readings.get(name)
        plain = reading is not None and reading.scaling is Scaling.NONE and ":" not in reading.encoder
        if constant == low.size and name not in (spec.mask, spec.acting):
            yield "warn", f"{name} never changed in {len(t.reward):,} steps; {constant_remedy}"
        elif reading is not None and outside(reading, low, high):
            yield (
                "warn",
                f"{interval}, outside the bounds of its space, which say how it is scaled ({reading.words}): give the "
                "space the bounds that its numbers have (low=, high=)",
            )
        elif largest > LARGE_OBS and plain:
            flag = "--normalize.obs true"
            yield "warn", f"{interval}; a network expects numbers near 1: {flag}", flag
        else:
            yield "ok", interval + (f"; {constant} of {low.size} numbers never changed" if constant else "")

    if changes:  # else it is reported already
        yield from still(spec, t)


def still(spec: EnvSpec, t: RandomRollout) -> RuleOutput:
    """Observations that stay as the reset made them until the end of the episode, as of a picture that is never drawn.

    Not looked at: a mask, and episodes of one step, as of a contextual bandit.
    """
    changed = t.under_way & (t.looks[1:] != t.looks[:-1])
    lengths = np.where(t.ended & (t.age > 1), t.age, 0)  # of episodes, in the row of their end
    frozen, ends = [], np.zeros(0, np.int64)
    for agent in range(t.agents):
        own = lengths[:, agent :: t.agents]
        own = own[own > 0]
        if not changed[:, agent :: t.agents].any() and own.sum() >= STILL_STEPS and len(own) >= STILL_EPISODES:
            frozen.append(agent)
            ends = np.append(ends, own)
    if frozen:
        whose = f" of {textwrap.shorten(', '.join(spec.agents[agent] for agent in frozen), 80)}" if spec.agents else ""
        yield (
            "warn",
            f"the observation{whose} never changed within an episode, in {ends.sum():,} steps of {len(ends):,} "
            f"episodes: what happens cannot be seen; {SEE}",
        )


def outside(reading: Treatment, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether numbers leave bounds that matter: those of a leaf that is not normalized, except of a float vector."""
    if reading.scaling is Scaling.NORMALIZED or (reading.scaling is Scaling.NONE and reading.layout is None):
        return False
    least, most = np.asarray(reading.low), np.asarray(reading.high)
    slack = np.where(np.isfinite(most - least), 1e-3 * (most - least), 0.0)
    return bool((low.ravel() < least - slack).any() or (high.ravel() > most + slack).any())


def rewards(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Scale of the rewards: it sets that of the value loss, which shares the gradient norm with the policy."""
    config, r = plan.config, t.reward[t.under_way]
    pixels = any(reading.layout and not reading.grid for reading in plan.readings.values())
    if not r.any():
        yield (
            "warn",
            f"no reward in {len(r):,} steps: random actions may never find one; look longer (--seconds 60), or reward "
            "steps on the way to it",
        )
        return
    summary = f"{r.min():.4g} to {r.max():.4g}, mean {r.mean():.3g}, std {r.std():.3g}, {np.mean(r != 0):.0%} not zero"
    if t.episodes:
        returns = [episode.episodic_return for episode in t.episodes]
        summary += f"; {len(returns)} episodes, mean return {np.mean(returns):.4g}, std {np.std(returns):.3g}"
        summary += " (means over the agents)" if spec.agents else ""
    scaled = config.env.reward_clip or config.normalize.reward or config.normalize.value_targets
    if np.abs(r).max() > (1.0 if pixels else LARGE_REWARD) and not scaled:
        flag = "--env.reward-clip 1" if pixels else "--normalize.reward true"
        yield "warn", f"{summary}; large: {flag}", flag
    else:
        yield "ok", summary


def speed(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Steps per second of one core, and the cost of resets, for which the whole group waits."""
    resets, durations, reset_s, envs = t.reset.sum(axis=1), t.seconds, 0.0, t.reset.shape[1]
    if (
        resets.any() and not resets.all()
    ):  # a step with resets = a usual one without the share of its resets, plus these
        usual, with_resets = float(np.median(durations[resets == 0])), resets > 0
        reset_s = max(0.0, float(np.median((durations[with_resets] - usual) / resets[with_resets])) + usual / envs)
    fraction = min(1.0, reset_s * resets.sum() / durations.sum())
    unit, size = ("agent steps", f" of {t.agents} agents") if spec.agents else ("steps", "")
    summary = f"{t.valid.sum() / durations.sum():,.0f} {unit}/s on one core, {envs} environments{size} in a group"
    summary += f"; a reset takes {1e3 * reset_s:.3g} ms, {fraction:.0%} of the time" if reset_s else ""
    slow = fraction > SLOW_RESETS
    remedy = ": all environments of a group wait for it; use smaller groups, as --sampling.envs-per-group 4"
    yield ("warn", summary + remedy) if slow else ("ok", summary)


def first_difference(a: RandomRollout, b: RandomRollout) -> int | None:
    """Return the step at which two rollouts first differ (0: the reset observation); None if they do not."""
    n = min(len(a.reward), len(b.reward))
    differs = a.checksums[: n + 1] != b.checksums[: n + 1]
    for name in COLUMNS:
        differs[1:] |= getattr(a, name)[:n] != getattr(b, name)[:n]
    return int(differs.any(axis=1).argmax()) if differs.any() else None


def seeds(t: RandomRollout, again: RandomRollout, other: RandomRollout) -> RuleOutput:
    """Determinism: compare with a rollout of the same seeds and one of other seeds, all with the same actions."""
    if (step := first_difference(t, again)) is not None:
        yield (
            "warn",
            f"the same seeds and actions give another trajectory after {step} steps: runs are not reproducible; draw "
            "random numbers from self.np_random, after super().reset(seed=seed)",
        )
    if first_difference(t, other) is None:
        yield "ok", "deterministic: other seeds change nothing"
    elif step is None:
        yield "ok", f"the same seeds repeat {len(again.reward):,} steps exactly, other seeds do not"


def nearest(name: str, spec: EnvSpec, target: str = "") -> tuple[list[str], str, dict[str, Any]]:
    """Return a command that trains the environment, the origin of its settings, and the settings."""
    own_presets = [preset.name for preset in presets.presets() if preset.env == name]
    chosen: str = name
    files: list[Path] = []
    if own_presets:
        chosen, why = target if target in own_presets else own_presets[0], "its preset"
    else:
        if spec.agents:
            chosen = presets.target_of_agents(name)
        family = chosen.partition("/")[0]
        own = (presets.presets_dir() / family / "default.toml").is_file()
        why = f"the defaults of {family if own else FALLBACK}"
        if len(presets.target_layers(chosen)) == 1:  # the name alone
            files = [presets.presets_dir() / FALLBACK / "default.toml"]
    settings = {key: value.value for layer in presets.target_layers(chosen, files) for key, value in layer.items()}
    return ["sfactory", "train", chosen, *(word for file in files for word in ("--config", str(file)))], why, settings


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


def network(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Whether the network of the plan can read the observations, act, and train for two updates."""
    with loading_torch():
        from sfactory.tools.network_trial import try_network

    try:
        obs_treatments(spec, plan.config)
    except ValueError as error:
        yield "bad", str(error)
        return
    weights, problem = try_network(plan.config, spec, t)
    if problem:
        yield "bad", f"the network cannot be trained: {problem}"
    else:
        yield "ok", f"{weights:,} weights; it acts, and two updates on this data are finite"


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
        return "\n".join([*lines, "", f"{self.train}    # settings: {self.settings_from}"])


OWN_FLAGS = ("env.name", "env.protocol", "env.settings", "env.wrappers", "env.wrapper_settings", "env.drop",
             "env.agent_id", "env.pad_spaces", "env.info_keys")  # fmt: skip
"""Settings of the environment itself: they are part of `settings`."""
RULES: tuple[Callable[[EnvSpec, RandomRollout, Plan], RuleOutput], ...] = (
    data, autoreset, final_observation, time_limit, observations, rewards, speed,
)  # fmt: skip


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

    def play(stream: int, steps: int, seconds: float) -> tuple[EnvSpec, RandomRollout]:
        numbers = [np.random.SeedSequence([seed, stream, env]).generate_state(1)[0] for env in range(ENVS)]
        group = WatchedGroup(lambda: build(ENVS, [int(number) >> 1 for number in numbers]), ENVS, clock)
        try:
            return group.spec, record(group, steps, seconds, seed)
        finally:
            group.close()

    spec, rollout = play(0, steps, seconds)
    played = len(rollout.reward) > 0
    command, settings_from, preset = nearest(name, spec, target)
    given = {key: value for key, value in (flags or {}).items() if not key.startswith(OWN_FLAGS)}
    plan = plan_of(spec, preset, given)
    rules = RULES if played else RULES[:1]
    found = [(rule.__name__.replace("_", " "), *one) for rule in rules for one in rule(spec, rollout, plan)]
    suggested = list(dict.fromkeys(flag for one in found for flag in one[3:]))
    plan = plan_of(spec, preset, given, suggested)
    if played:
        again, other = (play(stream, min(steps, REPLAY), seconds / 4)[1] for stream in (0, 1))
        found += [("seeds", *one) for one in seeds(rollout, again, other)]
        if not rollout.problem:
            found += [("network", *one) for one in network(spec, rollout, plan)]
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
