"""The door to environments: what a spec, a step and a group are, and how a group is found by name.

A group steps E environments at once, every leaf an array [E, *shape], under next-step autoreset, the only mode:

    call     reset  step   step   step      step   step
    obs      o0     o1     o2     o_final   o0'    o1'    o_final: what the env returned when it ended
    ended    -      0      0      1         0      0
    valid    -      1      1      1         0      1      0: the reset step; action ignored, reward 0
    first    1      0      0      0         1      0

A row at which an environment failed looks like a reset step too (valid 0, first 1): never a made-up terminal.

Families are entry points of the group `sfactory.envs`; a user's own: `env_group.EnvGroup`, docs/extending.md.
Samplers come through this door, so nothing here imports torch, and gymnasium only for groups that need it.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, Protocol

import numpy as np

from sfactory.errors import EnvError, did_you_mean

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Leaf:
    """One array of a flat dict of leaves: shape without the env axis, numpy name of the dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ActionLeaf(Leaf):
    """One action array."""

    kind: str  # "discrete" or "box"
    sizes: tuple[int, ...]  # discrete: categories per head, (n,) for shape (), (n1, .., nk) for (k,). box: (dims,)
    low: tuple[float, ...] = ()  # box only, flattened; infinite where there is no bound
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class EnvSpec:
    """What everyone must know of an environment before the first step."""

    name: str
    obs: dict[str, Leaf]
    actions: dict[str, ActionLeaf]
    frame_skip: int = 1
    max_episode_steps: int | None = None
    protocol: str = ""
    """Stamped on every score: two results are comparable only if it is the same."""
    reward_threshold: float | None = None
    mask: str = ""
    """Observation leaf [number of logits], non-zero where an action is allowed now; empty: all are, always."""
    reference: tuple[float, float] | None = None
    """Returns of a random policy and of a human tester: a score is shown relative to them (Atari)."""


class Episode(NamedTuple):
    """One whole game, raw reward; `length` in agent steps."""

    env: int
    episodic_return: float
    length: int


class EnvFault(NamedTuple):
    """An env that raised, returned rubbish or got an illegal action: a line of reason, then the traceback."""

    env: int
    message: str


class Step(NamedTuple):
    """What came of one step of a group. `obs` may be overwritten by the group's next call: copy at once."""

    obs: dict[str, np.ndarray]
    reward: np.ndarray  # [E] float32, raw
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    valid: np.ndarray  # [E] bool; False: a reset step, or the environment failed at it
    first: np.ndarray  # [E] bool; obs begins an episode: ~valid, or a life was lost (valid stays True)
    episodes: tuple[Episode, ...]
    faults: tuple[EnvFault, ...]


class Group(Protocol):
    """E environments that step together under next-step autoreset."""

    spec: EnvSpec
    num_envs: int

    def reset(self) -> dict[str, np.ndarray]: ...
    def step(self, action: dict[str, np.ndarray]) -> Step: ...
    def close(self) -> None: ...

    # A group that can be saved exactly also has `snapshot() -> JSON` and `restore(state)`; lockstep asks for them.
    # One that can be filmed has `render(env) -> uint8 [H, W, 3]`, the picture behind the newest observation, and
    # `render_fps`, steps per second at natural speed; its family's `make` takes `render_mode`, gymnasium's word.
    # One that knows which of its environments it is in writes it to `at`, int64 [1], before it steps each: when an
    # environment takes the process with it, the message names it.


def suggest(word: str, known: Iterable[str], most: int = 12) -> str:
    """The end of an error message: `; did you mean a?`, or else the names that exist."""
    names = sorted(known)
    listed = f"; there are {', '.join(names[:most])}{', ...' if len(names) > most else ''}"
    return did_you_mean(word, names) or listed


def missing_package(name: str, package: str, extra: str) -> EnvError:
    """The error for a family whose package is not installed, with the command that mends it."""
    return EnvError(f"{name} needs {package}, which is not installed: pip install 'sfactory[{extra}]'")


def one_line(error: BaseException) -> str:
    """`ValueError: what it said`, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def families() -> dict[str, EntryPoint]:
    """Installed environment families by name; nothing is imported."""
    return {point.name: point for point in entry_points(group="sfactory.envs")}


def load_family(name: str) -> Callable[..., Group]:
    """The `make` function of one family; no other family is imported. EnvError if it is not there."""
    known = families()
    if name not in known:
        installed = ", ".join(sorted(known))
        raise EnvError(f"unknown environment family {name!r}{suggest(name, known)}; installed: {installed}")
    try:
        return known[name].load()
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "a package", name) from error


def family_ids(name: str) -> list[str]:
    """The ids a family has, by its function `ids()`; EnvError where it cannot list them."""
    module = sys.modules[load_family(name).__module__]
    if not hasattr(module, "ids"):
        raise EnvError(f"the family {name} does not list its environments; any id its package knows works")
    return sorted(module.ids())


def raw_loop(name: str, num_envs: int, seed: int, settings: Settings | None = None) -> Callable[[], int] | None:
    """The library behind `FAMILY/ID` in its plainest loop with random actions, nothing of ours around it; one call
    takes a step in each of `num_envs` environments and returns how many. None: the family has no `raw_loop`."""
    family, _, env_id = name.partition("/")
    module = sys.modules[load_family(family).__module__]
    if not hasattr(module, "raw_loop"):
        return None
    loop: Callable[[], int] = module.raw_loop(env_id, num_envs, seed, **(settings or {}))
    return loop


def make_group(
    name: str,
    num_envs: int,
    seeds: Sequence[int],
    settings: Settings | None = None,
    exact: bool = False,
    render: bool = False,
) -> Group:
    """Build the group `FAMILY/ID`, one seed per environment; `settings` go to the family's `make`.

    exact: a group that has a snapshot, where the family has a choice (its `make` takes `exact`); it may be slower.
    render: a group that can be filmed; it may be slower too.
    Raises EnvError for an unknown family, id or setting, a missing package, and what cannot be built or filmed.
    """
    if len(seeds) != num_envs or num_envs < 1:
        raise EnvError(f"{name}: {num_envs} environments need as many seeds, got {len(seeds)}")
    family, _, env_id = name.partition("/")
    if not env_id:
        raise EnvError(f"environment {name!r}: write FAMILY/ID, for example gymnasium/CartPole-v1")
    make = load_family(family)
    parameters = inspect.signature(make).parameters.values()
    accepted = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    known = accepted - {"num_envs", "seeds", "exact", "render_mode"}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for setting in settings or {}:
        if setting not in known and not anything:
            raise EnvError(f"{name}: no such setting {setting!r}{suggest(setting, known)}")
    choice: dict[str, Any] = {"exact": exact} if "exact" in accepted else {}
    if render:
        if "render_mode" not in accepted and not anything:
            raise EnvError(f"{name} cannot be filmed: its family's make takes no render_mode")
        choice["render_mode"] = "rgb_array"
    try:
        group = make(env_id, num_envs=num_envs, seeds=list(seeds), **{**(settings or {}), **choice})
    except EnvError:
        raise
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "a package", family) from error
    except Exception as error:
        raise EnvError(f"{name} could not be built: {one_line(error)}", fault=True) from error
    if render and not hasattr(group, "render"):
        group.close()
        raise EnvError(f"{name} cannot be filmed: its group has no render")
    return group


def make_spec(name: str, settings: Settings | None = None) -> EnvSpec:
    """Build one environment, read its spec, close it."""
    group = make_group(name, 1, [0], settings)
    group.close()
    return group.spec


def make_specs(names: Sequence[str], settings: Settings | None = None) -> tuple[EnvSpec, ...]:
    """The specs of tasks that one policy shall learn together. EnvError where a network cannot fit both."""
    specs = tuple(make_spec(name, settings) for name in names)
    for spec in specs[1:]:
        for what in ("obs", "actions", "mask", "frame_skip"):
            ours, theirs = getattr(specs[0], what), getattr(spec, what)
            if ours != theirs:
                hint = "; Atari games share their actions with --env.settings.full-action-space true"
                raise EnvError(
                    f"{specs[0].name} and {spec.name} cannot share a policy: {what} {_shown(ours)} is not "
                    f"{_shown(theirs)}{hint if what == 'actions' and name_family(spec.name) == 'atari' else ''}"
                )
    return specs


def name_family(name: str) -> str:
    """atari/pong -> atari."""
    return name.partition("/")[0]


def _shown(value: Any) -> str:
    if not isinstance(value, Mapping):
        return repr(value)
    return ", ".join(f"{n} {getattr(leaf, 'sizes', leaf.shape)} {leaf.dtype}" for n, leaf in value.items())


def bounded(spec: EnvSpec, squash: bool) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """What stands between a policy's actions and an environment.

    squash: box actions are tanh of what was sampled, stretched over their bounds; the slot keeps the sample, whose
    density the learner knows (`model.distributions`). Otherwise nothing: groups clip. EnvError without finite bounds.
    """
    if not squash:
        return lambda action: action
    spans = {}
    for name, leaf in spec.actions.items():
        if leaf.kind == "box":
            low, high = (np.asarray(bound, np.float32).reshape(leaf.shape) for bound in (leaf.low, leaf.high))
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise EnvError(f"{spec.name}: model.squash needs bounds, and {name} has none; leave it off")
            spans[name] = (0.5 * (high + low), 0.5 * (high - low))
    if not spans:
        raise EnvError(f"{spec.name}: model.squash is for continuous actions, and this one has none; leave it off")

    def squashed(action: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: spans[n][0] + spans[n][1] * np.tanh(a) if n in spans else a for n, a in action.items()}

    return squashed


def env_fault(env: int, error: BaseException, seed: int, step: int) -> EnvFault:
    """The report of a failed environment: reason, seed and step of its episode, then the traceback."""
    reason = f"{one_line(error)} (seed {seed}, step {step} of the episode)"
    return EnvFault(env, f"{reason}\n{''.join(traceback.format_exception(error))}")


def next_seed(seed: int) -> int:
    """Seed of the environment that replaces a failed one, 31 bits."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1


def finite_rows(obs: Mapping[str, np.ndarray], reward: np.ndarray) -> np.ndarray | None:
    """Which rows hold finite numbers only, [E] bool; None: all of them, the cheap and usual answer."""
    finite = None
    for array in (reward, *obs.values()):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            rows = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            finite = rows if finite is None else finite & rows
    return finite


class Tally:
    """Return and length of the games under way, [E]. Returns are summed in float64."""

    def __init__(self, num_envs: int) -> None:
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)

    def count(self, reward: np.ndarray, valid: np.ndarray) -> None:
        """Add one step; rows that are not valid add nothing (their reward is 0)."""
        self.returns += reward
        self.lengths += valid

    def end(self, envs: Iterable[int]) -> tuple[Episode, ...]:
        """The games that end now; their counters begin anew."""
        done = tuple(Episode(env, float(self.returns[env]), int(self.lengths[env])) for env in envs)
        self.drop([episode.env for episode in done])
        return done

    def drop(self, envs: int | list[int]) -> None:
        """Forget games that will never be whole."""
        self.returns[envs], self.lengths[envs] = 0.0, 0
