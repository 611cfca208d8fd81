"""The door to environments: what a spec, a step and a group are, and how a group is found by name.

A group steps E environments at once, every leaf an array [E, *shape], under next-step autoreset, the only mode:

    call     reset  step   step   step      step   step
    obs      o0     o1     o2     o_final   o0'    o1'    o_final: what the env returned when it ended
    ended    -      0      0      1         0      0
    valid    -      1      1      1         0      1      0: the reset step; action ignored, reward 0
    first    1      0      0      0         1      0

A row at which an environment failed looks like a reset step too (valid 0, first 1): never a made-up terminal.

Families are entry points of the group `sfactory.envs`; a user's own: `EnvGroup` and ten lines (README).
Samplers come through this door, so nothing here imports torch, and gymnasium only for groups that need it.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium

Settings = Mapping[str, Any]


class EnvError(ValueError):
    """An environment that cannot be had as asked for; one line. `fault`: it exists and failed by itself."""

    def __init__(self, message: str, fault: bool = False) -> None:
        super().__init__(message)
        self.fault = fault


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


def suggest(word: str, known: Iterable[str], most: int = 12) -> str:
    """The end of an error message: `; did you mean a?`, or the names there are."""
    names = sorted(known)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), folded, n=1)
    if close:
        return f"; did you mean {folded[close[0]]}?"
    return f"; there are {', '.join(names[:most])}{', ...' if len(names) > most else ''}"


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


def make_group(name: str, num_envs: int, seeds: Sequence[int], settings: Settings | None = None) -> Group:
    """Build the group `FAMILY/ID`, one seed per environment; `settings` go to the family's `make`.

    Raises EnvError for an unknown family, id or setting, a missing package, and what cannot be built.
    """
    if len(seeds) != num_envs or num_envs < 1:
        raise EnvError(f"{name}: {num_envs} environments need as many seeds, got {len(seeds)}")
    family, _, env_id = name.partition("/")
    if not env_id:
        raise EnvError(f"environment {name!r}: write FAMILY/ID, for example gymnasium/CartPole-v1")
    make = load_family(family)
    parameters = inspect.signature(make).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"num_envs", "seeds"}
    for setting in settings or {}:
        if setting not in known and all(p.kind is not p.VAR_KEYWORD for p in parameters):
            raise EnvError(f"{name}: no such setting {setting!r}{suggest(setting, known)}")
    try:
        return make(env_id, num_envs=num_envs, seeds=list(seeds), **(settings or {}))
    except EnvError:
        raise
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "a package", family) from error
    except Exception as error:
        raise EnvError(f"{name} could not be built: {one_line(error)}", fault=True) from error


def make_spec(name: str, settings: Settings | None = None) -> EnvSpec:
    """Build one environment, read its spec, close it."""
    group = make_group(name, 1, [0], settings)
    group.close()
    return group.spec


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


Observe = Callable[[Any], Any]  # observation of one environment -> the array of one leaf
Decode = Callable[[np.ndarray, np.ndarray], list[Any]]  # leaf [E, ...], [E] flags for illegal rows -> actions
_UNSUPPORTED = "is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"


def space_leaves(space: Any, name: str, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Name, path and space of every leaf below Dict and Tuple spaces: `obs/image`, ("image",), Box."""
    if not isinstance(space, Mapping | Sequence):  # gymnasium's Dict is a Mapping, its Tuple a Sequence
        yield name, path, space
        return
    for key, child in space.items() if isinstance(space, Mapping) else enumerate(space):
        yield from space_leaves(child, f"{name}/{key}", (*path, key))


def assemble(space: Any, parts: Iterator[Any]) -> Any:
    """The action of one environment from its leaves, in the order of `space_leaves`."""
    if isinstance(space, Mapping):
        return {key: assemble(child, parts) for key, child in space.items()}
    if isinstance(space, Sequence):
        return tuple(assemble(child, parts) for child in space)
    return next(parts)


def obs_leaf(name: str, path: Iterable[Any], space: Any) -> tuple[Leaf, Observe]:
    """The leaf of one observation space and how to read it. Categories become one-hot rows: they are no quantities."""
    from gymnasium import spaces

    def below(obs: Any) -> Any:
        for key in path:
            obs = obs[key]
        return obs

    if isinstance(space, spaces.Box):
        integer = "uint8" if space.dtype == np.uint8 else "int64"
        return Leaf(space.shape, {"f": "float32", "b": "bool"}.get(space.dtype.kind, integer)), below
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Leaf((spaces.flatdim(space),), "bool"), lambda obs: np.asarray(spaces.flatten(space, below(obs)), bool)
    raise EnvError(f"observation space {name}: {space} {_UNSUPPORTED}")


def action_leaf(name: str, space: Any) -> tuple[ActionLeaf, Decode]:
    """The leaf of one action space and how a group's array of it becomes one action per environment."""
    from gymnasium import spaces

    shape: tuple[int, ...] = space.shape or ()  # of a leaf; None for what is not supported
    sizes = start = np.zeros((), np.int64)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        low, high = (tuple(map(float, bound.ravel())) for bound in (space.low, space.high))
        leaf = ActionLeaf(shape, "float32", "box", (len(low),), low, high)
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) and len(shape) < 2:
        count = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 0))
        sizes = np.broadcast_to(count, shape)
        start = np.asarray(getattr(space, "start", 0))
        leaf = ActionLeaf(shape, "int64", "discrete", tuple(np.ravel(sizes).tolist()))
    else:
        raise EnvError(f"action space {name}: {space} {_UNSUPPORTED}")

    def decode(values: np.ndarray, illegal: np.ndarray) -> list[Any]:
        box = leaf.kind == "box"
        legal = np.isfinite(values) if box else (values >= 0) & (values < sizes)  # NaN is neither
        if not legal.all():
            illegal |= ~legal.reshape(len(values), -1).all(axis=1)
            values = np.where(legal, values, 0)
        # The learner keeps the unclipped sample: its log_prob is of that one.
        given = np.clip(values, space.low, space.high) if box else values + start
        return list(given.astype(space.dtype, copy=False))

    return leaf, decode


class EnvGroup:
    """Turns single gymnasium environments into a Group. Box actions are clipped to their bounds.

    An environment that raises, returns NaN, infinity, a wrong shape or dtype, or gets an illegal action is closed and
    built anew with a new seed; its row is a reset row and a fault is reported.
    Raises EnvError if a constructor or the first reset fails, the original message inside.
    """

    def __init__(
        self, factory: Callable[[], gymnasium.Env], num_envs: int, seeds: Sequence[int], *,
        name: str, frame_skip: int = 1, protocol: str = "", max_episode_steps: int | None = None,
    ) -> None:  # fmt: skip
        self.factory, self.num_envs, self.name, self.seeds = factory, num_envs, name, list(seeds)
        self.envs = [self._build() for _ in range(num_envs)]
        env, registered = self.envs[0], self.envs[0].spec
        if any((e.observation_space, e.action_space) != (env.observation_space, env.action_space) for e in self.envs):
            raise EnvError(f"{name}: environments of one group must have the same spaces")
        leaves = {n: obs_leaf(n, path, s) for n, path, s in space_leaves(env.observation_space, "obs")}
        actions = {n: action_leaf(n, s) for n, _, s in space_leaves(env.action_space, "action")}
        obs_spec = {n: leaf for n, (leaf, _) in leaves.items()}
        action_spec = {n: leaf for n, (leaf, _) in actions.items()}
        limit = max_episode_steps or (registered.max_episode_steps if registered else None)
        goal = registered.reward_threshold if registered else None
        self.spec = EnvSpec(name, obs_spec, action_spec, frame_skip, limit, protocol or name, goal)
        self.obs = {n: np.zeros((num_envs, *leaf.shape), leaf.dtype) for n, leaf in self.spec.obs.items()}
        self._leaves = [(n, self.obs[n], leaf.shape, read) for n, (leaf, read) in leaves.items()]
        self._decoders = [(n, decode) for n, (_, decode) in actions.items()]
        self._castable: set[tuple[str, np.dtype]] = set()  # few dtypes come: each is judged once
        self._over, self._seeded = [False] * num_envs, False  # the next step resets; seeds are used up
        self.tally = Tally(num_envs)

    def _build(self) -> gymnasium.Env:
        try:
            return self.factory()
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(f"{self.name} could not be built: {one_line(error)}", fault=True) from error

    def _write(self, env: int, obs: Any) -> None:
        """Copy one observation into the group's arrays: cast once, if shape and dtype are as promised."""
        for name, array, shape, read in self._leaves:
            value = np.asarray(read(obs))
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, its space says {shape}")
            if (name, value.dtype) not in self._castable:
                if not np.can_cast(value.dtype, array.dtype, "same_kind"):
                    raise ValueError(f"{name} has dtype {value.dtype}, its space says {array.dtype}")
                self._castable.add((name, value.dtype))
            array[env] = value

    def _begin(self, env: int, seed: int | None) -> None:
        """Begin an episode outside of a step. A failure here ends the group: it would only come again."""
        try:
            self._write(env, self.envs[env].reset(seed=seed)[0])
            if finite_rows({n: a[env : env + 1] for n, a in self.obs.items()}, np.zeros(1)) is not None:
                raise ValueError("NaN or infinity in the observation")
        except Exception as error:
            raise EnvError(f"{self.name} failed at its first reset: {one_line(error)}", fault=True) from error
        self._over[env] = False
        self.tally.drop(env)

    def _renew(self, env: int) -> None:
        """A new environment with a new seed in the place of a failed one, at the beginning of an episode."""
        with contextlib.suppress(Exception):  # it failed already; what it says on the way out helps nobody
            self.envs[env].close()
        self.seeds[env] = next_seed(self.seeds[env])
        self.envs[env] = self._build()
        self._begin(env, self.seeds[env])

    def reset(self) -> dict[str, np.ndarray]:
        """Begin every episode; seeds are used the first time only."""
        for env in range(self.num_envs):
            self._begin(env, None if self._seeded else self.seeds[env])
        self._seeded = True
        return self.obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """One step of every environment; see the table at the top of the file."""
        flags = np.zeros(self.num_envs, bool)
        parts = [decode(action[name], flags) for name, decode in self._decoders]
        rows, illegal = parts[0], flags.tolist()
        if "action" not in action:  # nested
            rows = [assemble(self.envs[0].action_space, iter(row)) for row in zip(*parts, strict=True)]
        reward, valid = np.zeros(self.num_envs, np.float32), np.ones(self.num_envs, bool)
        terminated, truncated = ~valid, ~valid
        errors: dict[int, Exception] = {}
        for env, (one, row) in enumerate(zip(self.envs, rows, strict=True)):
            try:
                if self._over[env]:
                    valid[env] = False
                    self._write(env, one.reset()[0])
                    continue
                if illegal[env]:
                    raise ValueError(f"illegal action {[leaf[env].tolist() for leaf in action.values()]}")
                obs, points, ended, cut, _ = one.step(row)
                reward[env] = float(points)
                if ended or cut:
                    terminated[env], truncated[env] = ended, cut
                self._write(env, obs)
            except Exception as error:
                errors[env] = error
        if (finite := finite_rows(self.obs, reward)) is not None:
            for env in np.flatnonzero(~finite).tolist():
                errors.setdefault(env, ValueError("NaN or infinity in the observation or reward"))
        faults = []
        for env in sorted(errors):
            faults.append(env_fault(env, errors[env], self.seeds[env], int(self.tally.lengths[env])))
            self._renew(env)
            valid[env] = terminated[env] = truncated[env] = False
            reward[env] = 0.0
        self.tally.count(reward, valid)
        ends = terminated | truncated
        self._over = ends.tolist()
        episodes = self.tally.end(np.flatnonzero(ends).tolist())
        return Step(self.obs, reward, terminated, truncated, valid, ~valid, episodes, tuple(faults))

    def close(self) -> None:
        """Close every environment; one that cannot does not keep the others open."""
        for env in self.envs:
            with contextlib.suppress(Exception):
                env.close()
