"""What an environment gets wrong, before it costs a training run: played at random, every row held against the rules.

`env_trace.record` plays a group and keeps what the rules are about; each rule is a pure function of that trace. A
finding is `bad` where training would learn from wrong data, and `warn` where it would go on, only worse or unseen.

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
from sfactory.tools.env_trace import COLUMNS, Trace, later, record

ENVS, STEPS, SECONDS = 4, 2000, 3.0
REPLAY = 200  # steps played again with the same seeds, and once with others
LARGE_OBS, LARGE_REWARD = 100.0, 10.0  # a new network expects numbers near 1; from far away it creeps
SLOW_RESETS = 0.3  # fraction of the time
NEAREST = {"image": "atari", "grid": "minatar", "vector": "gymnasium"}  # kind of observation -> whose settings fit

Make = Callable[[int, Sequence[int]], Group]
Found = Iterator[tuple[str, ...]]  # (level, sentence), and the flag that mends it if one does


class Finding(NamedTuple):
    """What one rule says."""

    level: str  # "ok", "warn" or "bad"
    title: str
    sentence: str


# -- rules ---------------------------------------------------------------------------------------------------


def data(spec: EnvSpec, t: Trace, given: Mapping[str, Any]) -> Found:
    """Environments that failed, and data that cannot be read."""
    if t.problem:
        yield "bad", t.problem
    if t.faults:
        yield "bad", f"an environment failed {len(t.faults)} times, first: {t.faults[0].message.partition(chr(10))[0]}"
    if not t.problem and not t.faults:
        yield "ok", "shapes and dtypes are those of the spec, all numbers are finite, nothing failed"


def autoreset(spec: EnvSpec, t: Trace, given: Mapping[str, Any]) -> Found:
    """The table at the top of `sfactory.envs`. A lost life ends a row and begins the next episode with the same one."""
    begins, after = t.valid & t.first, later(t.ended)
    rules = {
        "no reset row after the end of an episode, it just goes on": later(t.ended & ~begins) & t.valid,
        "first at the end of a whole game, which does not go on (same-step?)": begins & (t.reported | t.truncated),
        "first on a valid row where no life was lost": begins & ~t.ended,
        "a reset row where no episode had ended (two in a row?)": ~after & ~t.valid & ~t.failed,
        "a reset row that is not first": ~t.valid & ~t.first,
        "a reset row with a reward": ~t.valid & (t.reward != 0),
        "a reset row that ends an episode": ~t.valid & t.ended,
        "a valid row where the environment failed": t.failed & t.valid,
    }
    broken = {what: rows for what, rows in rules.items() if rows.any()}
    for what, rows in broken.items():
        step, env = np.argwhere(rows)[0]
        yield "bad", f"{what}: {rows.sum()} times, first at step {step} of environment {env}"
    if not broken and not after.any():
        yield "warn", f"no episode ended in {len(t.reward):,} steps: not checked, play longer"
    elif not broken:
        lives = f"; {begins.sum()} lost lives, after which the game went on" if begins.any() else ""
        yield "ok", f"{(after & ~t.valid).sum()} ends, each followed by one reset row{lives}"


def final_observation(spec: EnvSpec, t: Trace, given: Mapping[str, Any]) -> Found:
    """A row that ends an episode shows its last observation: it must differ from the reset row behind it.

    An environment that resets itself inside of its last step, and begins differently each time, looks right here.
    """
    ends, same = later(t.ended) & ~t.valid & ~t.failed, t.prints[1:] == t.prints[:-1]
    count, equal = ends.sum(), (ends & same).sum()
    if same.all() or not count:
        return  # nothing changes or nothing ended, as other rules say
    if equal <= 0.05 * count:  # few states: it may begin as it ended, by chance
        yield "ok", f"{count - equal} of {count} ends show another observation than the reset row behind them"
    else:
        told = f"{equal} of {count} ends show what the reset row behind them shows: this returns the reset observation"
        yield "bad" if equal == count > 1 else "warn", f"{told} at the end, and bootstraps would be wrong"


def time_limit(spec: EnvSpec, t: Trace, given: Mapping[str, Any]) -> Found:
    """A clock that ends an episode truncates it: there the learner bootstraps."""
    limit, lengths, cut = spec.max_episode_steps, t.age[t.ended], (t.truncated & ~t.terminated).sum()
    clocked = (t.age[t.terminated] == limit).sum()  # both flags at once count as terminated, as in the learner
    if not len(lengths) and limit is None:
        yield "warn", "no time limit seen; episodes may never end: an evaluation needs --max-steps"
    elif not len(lengths):
        yield "ok", f"{limit:,} steps; no episode ended in {len(t.reward):,}"
    elif clocked > 1 and not cut:
        yield "bad", f"{clocked} episodes are terminated at exactly the limit, {limit:,} steps: it must truncate them"
    elif len(lengths) > 2 and not cut and lengths[0] == lengths.min() == lengths.max() > 1:
        yield "warn", f"all {len(lengths)} episodes are terminated after exactly {lengths[0]} steps: a time limit " \
            "reported as termination? It must truncate them"  # fmt: skip
    else:
        told = f"{t.terminated.sum()} terminated, {cut} truncated, after {lengths.min()} to {lengths.max()} steps"
        yield "ok", f"{told}; {f'the limit is {limit:,}' if limit else 'no limit is known'}"


def kind(shape: Sequence[int]) -> str:
    """What `model.encoder auto` takes an observation for: image [C, H, W], grid [H, W, C] or vector."""
    if len(shape) == 3 and min(shape[1:]) >= 36:
        return "image"
    return "grid" if len(shape) == 3 and min(shape[:2]) >= 3 else "vector"


def observations(spec: EnvSpec, t: Trace, given: Mapping[str, Any]) -> Found:
    """Leaves that say nothing, or say it in numbers that are hard to learn from."""
    for name, leaf in spec.obs.items():
        low, high = t.span[name]
        most, still = max(abs(float(low.min())), abs(float(high.max()))), (low == high).sum()
        told = f"{name} is between {low.min():.4g} and {high.max():.4g}"
        if still == low.size and name != spec.mask:
            yield "warn", f"{name} never changed in {len(t.reward):,} steps"
        elif kind(leaf.shape) == "image" and leaf.dtype != "uint8":
            yield "warn", f"{name} is an image of {leaf.dtype}: encoders divide pixels by 255, give them as uint8"
        elif len(leaf.shape) == 3 and min(leaf.shape[:2]) >= 36 > leaf.shape[2]:
            yield "warn", f"{name} {list(leaf.shape)} is an image with its channels last: encoders want [C, H, W]"
        elif leaf.dtype == "float32" and most > LARGE_OBS and not on(given, "normalize.obs"):
            yield "warn", f"{told}; a network wants numbers near 1", "--normalize.obs true"
        elif name in t.whole and most > 1:
            yield "warn", f"{told}, in whole numbers: categories want a Discrete space, quantities --normalize.obs true"
        else:
            yield "ok", told + (f"; {still} of {low.size} numbers never changed" if still else "")


def rewards(spec: EnvSpec, t: Trace, given: Mapping[str, Any]) -> Found:
    """Their scale is that of the value loss, which shares a network and a gradient norm with the policy."""
    r, pixels = t.reward[t.valid], "image" in {kind(leaf.shape) for leaf in spec.obs.values()}
    if not r.any():
        yield "warn", f"none in {len(r):,} steps: random actions may never find one"
        return
    told = f"{r.min():.4g} to {r.max():.4g}, mean {r.mean():.3g}, std {r.std():.3g}, {np.mean(r != 0):.0%} not zero"
    if t.games:
        returns = [game.episodic_return for game in t.games]
        told += f"; {len(returns)} games return {np.mean(returns):.4g}, std {np.std(returns):.3g}"
    large = np.abs(r).max() > (1.0 if pixels else LARGE_REWARD)
    if large and not on(given, "env.reward_clip") and not on(given, "normalize.reward"):
        yield "warn", f"{told}; large", "--env.reward-clip 1" if pixels else "--normalize.reward true"
    else:
        yield "ok", told


def speed(spec: EnvSpec, t: Trace, given: Mapping[str, Any]) -> Found:
    """What one core makes of a group, and what resets cost: the whole group waits for them."""
    resets, took, reset_s = (~t.valid).sum(axis=1), t.seconds, 0.0
    if resets.any() and not resets.all():  # such a step is a usual one less the share of its resets, plus these
        usual, some = float(np.median(took[resets == 0])), resets > 0
        reset_s = max(0.0, float(np.median((took[some] - usual) / resets[some])) + usual / t.valid.shape[1])
    fraction = min(1.0, reset_s * resets.sum() / took.sum())
    told = f"{t.valid.sum() / took.sum():,.0f} steps/s on one core, {t.valid.shape[1]} environments in a group"
    told += f"; a reset takes {1e3 * reset_s:.3g} ms, {fraction:.0%} of the time" if reset_s else ""
    slow = ": all environments of a group wait for it, use small groups" if fraction > SLOW_RESETS else ""
    yield "warn" if slow else "ok", told + slow


def parting(a: Trace, b: Trace) -> int | None:
    """Steps after which two traces differ, 0: their first observation does; None: not within the shorter one."""
    n = min(len(a.reward), len(b.reward))
    differs = a.prints[: n + 1] != b.prints[: n + 1]
    for name in COLUMNS:
        differs[1:] |= getattr(a, name)[:n] != getattr(b, name)[:n]
    return int(differs.any(axis=1).argmax()) if differs.any() else None


def seeds(t: Trace, again: Trace, other: Trace) -> Found:
    """again: with the same seeds. other: with others. All with the same random actions."""
    if (at := parting(t, again)) is not None:
        yield "warn", f"the same seeds and actions give another trajectory after {at} steps: nothing can be repeated"
    if parting(t, other) is None:
        yield "warn", "other seeds change nothing: nothing is random, or seeds are ignored"
    elif at is None:
        yield "ok", f"the same seeds repeat {len(again.reward):,} steps exactly, others do not"


def on(given: Mapping[str, Any], setting: str) -> bool:
    """Whether a setting is switched on by what a preset says."""
    return str(given.get(setting, "")).lower() not in ("", "0", "0.0", "no", "off", "false", "none")


def nearest(name: str, spec: EnvSpec, target: str = "") -> tuple[list[str], str, dict[str, Any]]:
    """Words of a command that trains this environment, where its settings come from, and what they say."""
    from sfactory.config import presets

    folder, family = presets.presets_dir(), name.partition("/")[0]
    kinds = {kind(leaf.shape) for leaf in spec.obs.values()}
    fits = next(NEAREST[k] for k in NEAREST if k in kinds)
    own = [preset.name for preset in presets.presets() if preset.env == name]
    chosen, files = name, []
    if own:
        chosen, why = target if target in own else own[0], "its preset"
    elif (folder / family / "default.toml").is_file() and (family == fits or family not in NEAREST.values()):
        why = f"the defaults of {family}"
    else:
        files = [path for path in (folder / fits / "default.toml",) if path.is_file()]
        why = f"the nearest there are, those of {fits}" if files else "plain defaults: no preset is near"
    given = {key: value.value for layer in presets.target_layers(chosen, files) for key, value in layer.items()}
    return ["sfactory", "train", chosen, *(word for file in files for word in ("--config", str(file)))], why, given


@dataclass(frozen=True)
class Report:
    """What is known of an environment now."""

    spec: EnvSpec
    findings: tuple[Finding, ...]
    steps: int
    steps_per_second: float
    train: str  # a command
    settings_from: str

    @property
    def bad(self) -> bool:
        """Whether training on it would be wrong."""
        return any(finding.level == "bad" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        spec = asdict(self.spec)
        for leaf in spec["actions"].values():  # JSON knows no infinity
            leaf |= {side: [x if np.isfinite(x) else None for x in leaf[side]] for side in ("low", "high")}
        return {**vars(self), "spec": spec, "findings": [f._asdict() for f in self.findings], "bad": self.bad}

    def text(self) -> str:
        """For people."""
        spec, limit = self.spec, self.spec.max_episode_steps
        rows = [(name, f"{leaf.dtype} {list(leaf.shape)}{', the mask' * (name == spec.mask)}")
                for name, leaf in spec.obs.items()]  # fmt: skip
        for name, leaf in spec.actions.items():
            box = f"{leaf.sizes[0]} numbers from {min(leaf.low, default=0):g} to {max(leaf.high, default=0):g}"
            rows.append((name, f"one of {' x '.join(map(str, leaf.sizes))}" if leaf.kind == "discrete" else box))
        rows.append(("episode", f"at most {limit:,} steps" if limit else "no limit of steps in the spec"))
        rows += [("frame skip", f"{spec.frame_skip}"), ("protocol", spec.protocol)]
        lines = [f"{spec.name}, {self.steps:,} steps with random actions", ""]
        lines += [f"{title:25}{told}" for title, told in rows] + [""]
        for level, title, told in self.findings:
            lines.append(textwrap.fill(told, 118, initial_indent=f"{level:6}{title:19}", subsequent_indent=" " * 25))
        return "\n".join([*lines, "", f"{self.train}    # settings: {self.settings_from}"])


RULES: tuple[Callable[[EnvSpec, Trace, Mapping[str, Any]], Found], ...] = (
    data, autoreset, final_observation, time_limit, observations, rewards, speed,
)  # fmt: skip


def check(
    name: str, settings: Mapping[str, Any] | None = None, *, steps: int = STEPS, seconds: float = SECONDS,
    seed: int = 0, target: str = "", make: Make | None = None,
) -> Report:  # fmt: skip
    """Play FAMILY/ID with random actions and say what is wrong with it. EnvError if it cannot be built.

    steps, seconds: of the group, whatever is over first. target: the preset that was asked for, if it was one.
    make: builds the groups instead of the family.
    """
    build = make or (lambda num_envs, seeds: make_group(name, num_envs, seeds, settings))

    def play(stream: int, steps: int, seconds: float) -> tuple[EnvSpec, Trace]:
        draws = [np.random.SeedSequence([seed, stream, env]).generate_state(1)[0] for env in range(ENVS)]
        group = build(ENVS, [int(draw) >> 1 for draw in draws])
        try:
            return group.spec, record(group, steps, seconds, seed)
        finally:
            group.close()

    spec, trace = play(0, steps, seconds)
    played = len(trace.reward) > 0
    words, settings_from, given = nearest(name, spec, target)
    rules = RULES if played else RULES[:1]
    found = [(rule.__name__.replace("_", " "), *one) for rule in rules for one in rule(spec, trace, given)]
    if played:
        again, other = (play(stream, min(steps, REPLAY), seconds / 4)[1] for stream in (0, 1))
        found += [("seeds", *one) for one in seeds(trace, again, other)]
    for key, value in (settings or {}).items():
        option = "env.protocol" if key == "protocol" else f"env.settings.{key}"
        words += [f"--{option}={value}"] if given.get(option) != value else []
    train = " ".join([shlex.join(words), *dict.fromkeys(flag for one in found for flag in one[3:])])
    findings = tuple(Finding(level, title, told) for title, level, told, *_ in found)
    rate = float(trace.valid.sum() / trace.seconds.sum()) if played else 0.0
    return Report(spec, findings, int(trace.valid.sum()), rate, train, settings_from)
