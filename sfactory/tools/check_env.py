"""Check an environment against the rules of the group interface by stepping it with random actions.

`random_rollout.record` steps a group; each rule is a pure function of that rollout. A finding is `bad` if training
would learn from wrong data, and `warn` if it would only learn worse or without a visible error.

Shapes: T steps of E environments; row t of a [T, E] array is what step t returned.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from sfactory.envs import EnvSpec, Group, make_group
from sfactory.tools.random_rollout import COLUMNS, RandomRollout, record, shifted

ENVS, STEPS, SECONDS = 4, 2000, 3.0
REPLAY = 200  # steps that are repeated with the same seeds and with others
LARGE_OBS, LARGE_REWARD = 100.0, 10.0  # an untrained network expects numbers near 1 and adapts slowly to others
SLOW_RESETS = 0.3  # fraction of the time
NEAREST = {
    "image": "atari",
    "grid": "minatar",
    "vector": "gymnasium",
}  # kind of observation -> family whose settings suit it

Make = Callable[[int, Sequence[int]], Group]
RuleOutput = Iterator[tuple[str, ...]]  # (level, sentence), and the flag that fixes it if there is one


class RuleFinding(NamedTuple):
    """The result of one rule."""

    level: str  # "ok", "warn" or "bad"
    title: str
    sentence: str


# -- rules ---------------------------------------------------------------------------------------------------


def data(spec: EnvSpec, t: RandomRollout, preset: Mapping[str, Any]) -> RuleOutput:
    """Environments that failed, and data that does not match the spec."""
    if t.problem:
        yield "bad", t.problem
    if t.faults:
        yield "bad", f"an environment failed {len(t.faults)} times, first: {t.faults[0].message.partition(chr(10))[0]}"
    if not t.problem and not t.faults:
        yield "ok", "shapes and dtypes match the spec, all numbers are finite, no environment failed"


def autoreset(spec: EnvSpec, t: RandomRollout, preset: Mapping[str, Any]) -> RuleOutput:
    """Next-step autoreset, by the table at the top of `sfactory.envs`; a lost life sets `first` on a valid row."""
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
    violations = {what: rows for what, rows in rules.items() if rows.any()}
    for what, rows in violations.items():
        step, env = np.argwhere(rows)[0]
        yield "bad", f"{what}: {rows.sum()} times, first at step {step} of environment {env}"
    if not violations and not after.any():
        yield "warn", f"no episode ended in {len(t.reward):,} steps: not checked; increase --seconds"
    elif not violations:
        lives = f"; {begins.sum()} lost lives, after which the game continued" if begins.any() else ""
        yield "ok", f"{(after & ~t.valid).sum()} ends, each followed by one reset row{lives}"


def final_observation(spec: EnvSpec, t: RandomRollout, preset: Mapping[str, Any]) -> RuleOutput:
    """The last row of an episode must hold its final observation, not that of the reset row after it.

    Not detected: an environment that resets within its last step and starts differently each time.
    """
    ends, same = shifted(t.ended) & ~t.valid & ~t.failed, t.checksums[1:] == t.checksums[:-1]
    count, equal = ends.sum(), (ends & same).sum()
    if same.all() or not count:
        return  # constant observations or no end of episode: other rules report these
    if equal <= 0.05 * count:  # with few states an episode may begin as the last one ended
        yield "ok", f"{count - equal} of {count} final observations differ from the reset row after them"
    else:
        problem = (
            f"{equal} of {count} final observations equal the reset row after them: the reset observation is returned"
        )
        yield "bad" if equal == count > 1 else "warn", f"{problem} too early, and bootstrapped values would be wrong"


def time_limit(spec: EnvSpec, t: RandomRollout, preset: Mapping[str, Any]) -> RuleOutput:
    """A time limit must truncate, not terminate: the learner bootstraps at truncations."""
    limit, lengths, truncated = spec.max_episode_steps, t.age[t.ended], (t.truncated & ~t.terminated).sum()
    at_limit = (t.age[t.terminated] == limit).sum()  # both flags count as terminated, as in the learner
    if not len(lengths) and limit is None:
        yield "warn", "no time limit found; episodes may never end, so an evaluation needs --max-steps"
    elif not len(lengths):
        yield "ok", f"{limit:,} steps; no episode ended in {len(t.reward):,}"
    elif at_limit > 1 and not truncated:
        yield "bad", f"{at_limit} episodes are terminated at exactly the limit, {limit:,} steps: they must be truncated"
    elif len(lengths) > 2 and not truncated and lengths[0] == lengths.min() == lengths.max() > 1:
        yield "warn", f"all {len(lengths)} episodes are terminated after exactly {lengths[0]} steps: a time limit " \
            "reported as termination? They must be truncated"  # fmt: skip
    else:
        counts = (
            f"{t.terminated.sum()} terminated, {truncated} truncated, after {lengths.min()} to {lengths.max()} steps"
        )
        yield "ok", f"{counts}; {f'the limit is {limit:,}' if limit else 'no limit is known'}"


def kind(shape: Sequence[int]) -> str:
    """Return how `model.encoder auto` treats an observation: image [C, H, W], grid [H, W, C] or vector."""
    if len(shape) == 3 and min(shape[1:]) >= 36:
        return "image"
    return "grid" if len(shape) == 3 and min(shape[:2]) >= 3 else "vector"


def observations(spec: EnvSpec, t: RandomRollout, preset: Mapping[str, Any]) -> RuleOutput:
    """Leaves without information, or with a scale that is hard to learn from."""
    for name, leaf in spec.obs.items():
        low, high = t.obs_range[name]
        largest, constant = max(abs(float(low.min())), abs(float(high.max()))), (low == high).sum()
        interval = f"{name} is between {low.min():.4g} and {high.max():.4g}"
        if constant == low.size and name != spec.mask:
            yield "warn", f"{name} never changed in {len(t.reward):,} steps"
        elif kind(leaf.shape) == "image" and leaf.dtype != "uint8":
            yield "warn", f"{name} is an image of {leaf.dtype}: encoders divide pixels by 255; return them as uint8"
        elif len(leaf.shape) == 3 and min(leaf.shape[:2]) >= 36 > leaf.shape[2]:
            yield "warn", f"{name} {list(leaf.shape)} is an image with its channels last: encoders expect [C, H, W]"
        elif leaf.dtype == "float32" and largest > LARGE_OBS and not enabled(preset, "normalize.obs"):
            yield "warn", f"{interval}; a network expects numbers near 1", "--normalize.obs true"
        elif name in t.integral and largest > 1:
            yield (
                "warn",
                f"{interval}, all integers: use a Discrete space for categories, --normalize.obs true for quantities",
            )
        else:
            yield "ok", interval + (f"; {constant} of {low.size} numbers never changed" if constant else "")


def rewards(spec: EnvSpec, t: RandomRollout, preset: Mapping[str, Any]) -> RuleOutput:
    """Scale of the rewards: it sets that of the value loss, which shares the gradient norm with the policy."""
    r, pixels = t.reward[t.valid], "image" in {kind(leaf.shape) for leaf in spec.obs.values()}
    if not r.any():
        yield "warn", f"no reward in {len(r):,} steps: random actions may never find one"
        return
    summary = f"{r.min():.4g} to {r.max():.4g}, mean {r.mean():.3g}, std {r.std():.3g}, {np.mean(r != 0):.0%} not zero"
    if t.episodes:
        returns = [episode.episodic_return for episode in t.episodes]
        summary += f"; {len(returns)} episodes, mean return {np.mean(returns):.4g}, std {np.std(returns):.3g}"
    large = np.abs(r).max() > (1.0 if pixels else LARGE_REWARD)
    if large and not enabled(preset, "env.reward_clip") and not enabled(preset, "normalize.reward"):
        yield "warn", f"{summary}; large", "--env.reward-clip 1" if pixels else "--normalize.reward true"
    else:
        yield "ok", summary


def speed(spec: EnvSpec, t: RandomRollout, preset: Mapping[str, Any]) -> RuleOutput:
    """Steps per second of one core, and the cost of resets, for which the whole group waits."""
    resets, durations, reset_s = (~t.valid).sum(axis=1), t.seconds, 0.0
    if (
        resets.any() and not resets.all()
    ):  # a step with resets = a usual one without the share of its resets, plus these
        usual, with_resets = float(np.median(durations[resets == 0])), resets > 0
        reset_s = max(
            0.0, float(np.median((durations[with_resets] - usual) / resets[with_resets])) + usual / t.valid.shape[1]
        )
    fraction = min(1.0, reset_s * resets.sum() / durations.sum())
    summary = f"{t.valid.sum() / durations.sum():,.0f} steps/s on one core, {t.valid.shape[1]} environments in a group"
    summary += f"; a reset takes {1e3 * reset_s:.3g} ms, {fraction:.0%} of the time" if reset_s else ""
    slow = ": all environments of a group wait for it; use small groups" if fraction > SLOW_RESETS else ""
    yield "warn" if slow else "ok", summary + slow


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
            f"the same seeds and actions give another trajectory after {step} steps: runs are not reproducible",
        )
    if first_difference(t, other) is None:
        yield "warn", "other seeds change nothing: the environment is deterministic, or ignores seeds"
    elif step is None:
        yield "ok", f"the same seeds repeat {len(again.reward):,} steps exactly, other seeds do not"


def enabled(preset: Mapping[str, Any], setting: str) -> bool:
    """Return whether a preset switches a setting on."""
    return str(preset.get(setting, "")).lower() not in ("", "0", "0.0", "no", "off", "false", "none")


def nearest(name: str, spec: EnvSpec, target: str = "") -> tuple[list[str], str, dict[str, Any]]:
    """Return a command that trains the environment, the origin of its settings, and the settings."""
    from sfactory.config import presets

    folder, family = presets.presets_dir(), name.partition("/")[0]
    kinds = {kind(leaf.shape) for leaf in spec.obs.values()}
    fits = next(NEAREST[k] for k in NEAREST if k in kinds)
    own_presets = [preset.name for preset in presets.presets() if preset.env == name]
    chosen, files = name, []
    if own_presets:
        chosen, why = target if target in own_presets else own_presets[0], "its preset"
    elif (folder / family / "default.toml").is_file() and (family == fits or family not in NEAREST.values()):
        why = f"the defaults of {family}"
    else:
        files = [path for path in (folder / fits / "default.toml",) if path.is_file()]
        why = f"the nearest ones, of {fits}" if files else "plain defaults: no preset is similar"
    preset = {key: value.value for layer in presets.target_layers(chosen, files) for key, value in layer.items()}
    return ["sfactory", "train", chosen, *(word for file in files for word in ("--config", str(file)))], why, preset


@dataclass(frozen=True)
class EnvReport:
    """The findings about an environment, and a command that trains it."""

    spec: EnvSpec
    findings: tuple[RuleFinding, ...]
    steps: int
    steps_per_second: float
    train: str  # a command
    settings_from: str

    @property
    def bad(self) -> bool:
        """Whether any finding is `bad`."""
        return any(finding.level == "bad" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report, for --json."""
        spec = asdict(self.spec)
        for leaf in spec["actions"].values():  # JSON has no infinity
            leaf |= {side: [x if np.isfinite(x) else None for x in leaf[side]] for side in ("low", "high")}
        return {**vars(self), "spec": spec, "findings": [f._asdict() for f in self.findings], "bad": self.bad}

    def text(self) -> str:
        """Return the report as text."""
        spec, limit = self.spec, self.spec.max_episode_steps
        rows = [(name, f"{leaf.dtype} {list(leaf.shape)}{', the mask' * (name == spec.mask)}")
                for name, leaf in spec.obs.items()]  # fmt: skip
        for name, leaf in spec.actions.items():
            box = f"{leaf.sizes[0]} numbers from {min(leaf.low, default=0):g} to {max(leaf.high, default=0):g}"
            rows.append((name, f"one of {' x '.join(map(str, leaf.sizes))}" if leaf.kind == "discrete" else box))
        rows.append(("episode", f"at most {limit:,} steps" if limit else "no step limit in the spec"))
        rows += [("frame skip", f"{spec.frame_skip}"), ("protocol", spec.protocol)]
        lines = [f"{spec.name}, {self.steps:,} steps with random actions", ""]
        lines += [f"{title:25}{value}" for title, value in rows] + [""]
        for level, title, sentence in self.findings:
            lines.append(
                textwrap.fill(sentence, 118, initial_indent=f"{level:6}{title:19}", subsequent_indent=" " * 25)
            )
        return "\n".join([*lines, "", f"{self.train}    # settings: {self.settings_from}"])


RULES: tuple[Callable[[EnvSpec, RandomRollout, Mapping[str, Any]], RuleOutput], ...] = (
    data, autoreset, final_observation, time_limit, observations, rewards, speed,
)  # fmt: skip


def check(
    name: str, settings: Mapping[str, Any] | None = None, *, steps: int = STEPS, seconds: float = SECONDS,
    seed: int = 0, target: str = "", make: Make | None = None,
) -> EnvReport:  # fmt: skip
    """Check FAMILY/ID with random actions. Raises EnvError if it cannot be built.

    steps, seconds: of the group, whichever ends first. target: the preset that was given, if any.
    make: builds the groups instead of the family.
    """
    build = make or (lambda num_envs, seeds: make_group(name, num_envs, seeds, settings))

    def play(stream: int, steps: int, seconds: float) -> tuple[EnvSpec, RandomRollout]:
        numbers = [np.random.SeedSequence([seed, stream, env]).generate_state(1)[0] for env in range(ENVS)]
        group = build(ENVS, [int(number) >> 1 for number in numbers])
        try:
            return group.spec, record(group, steps, seconds, seed)
        finally:
            group.close()

    spec, rollout = play(0, steps, seconds)
    played = len(rollout.reward) > 0
    command, settings_from, preset = nearest(name, spec, target)
    rules = RULES if played else RULES[:1]
    found = [(rule.__name__.replace("_", " "), *one) for rule in rules for one in rule(spec, rollout, preset)]
    if played:
        again, other = (play(stream, min(steps, REPLAY), seconds / 4)[1] for stream in (0, 1))
        found += [("seeds", *one) for one in seeds(rollout, again, other)]
    for key, value in (settings or {}).items():
        option = "env.protocol" if key == "protocol" else f"env.settings.{key}"
        command += [f"--{option}={value}"] if preset.get(option) != value else []
    train = " ".join([shlex.join(command), *dict.fromkeys(flag for one in found for flag in one[3:])])
    findings = tuple(RuleFinding(level, title, sentence) for title, level, sentence, *_ in found)
    rate = float(rollout.valid.sum() / rollout.seconds.sum()) if played else 0.0
    return EnvReport(spec, findings, int(rollout.valid.sum()), rate, train, settings_from)
