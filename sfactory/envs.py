"""The door to environments: what a spec, a step and a group are, and how a group is found by name.

A group steps E environments at once under next-step autoreset (the only mode there is here):

    call          reset  step   step   step      step          step
    obs           o0     o1     o2     o_final   o0'           o1'     o_final = what the env returned when it ended
    ended         -      0      0      1         0             0
    valid         -      1      1      1         0             1       0: the reset step; its action is ignored, reward 0
    first         1      0      0      0         1             0

A row at which an environment failed looks like a reset step too (valid 0, first 1): never a made-up terminal.

Families are entry points of the group `sfactory.envs`, a user's own package included:

    def make(env_id, *, num_envs, seeds, **settings):
        return EnvGroup(lambda: MyEnv(env_id, **settings), num_envs, seeds, name=f"mygame/{env_id}")

Samplers live behind this door, so nothing here imports torch; gymnasium is imported only by the groups that need it.
Shapes: E environments of a group; every leaf is an array [E, *leaf.shape].
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium

ENTRY_POINTS = "sfactory.envs"


class EnvError(ValueError):
    """An environment that cannot be had as asked for; the message is one line for the user."""


@dataclass(frozen=True)
class Leaf:
    """One array of a flat dict of leaves: shape without the env axis, numpy name of the dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ActionLeaf(Leaf):
    """One action array. kind "discrete": `sizes` holds the categories per head, () -> (n,), (k,) -> (n1, .., nk), counted
    from 0. kind "box": `sizes` is (number of dims,), low and high are flattened and may be infinite."""

    kind: str
    sizes: tuple[int, ...]
    low: tuple[float, ...] = ()
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
    """An environment that raised, returned rubbish or was given an illegal action. First line: the reason; then traceback."""

    env: int
    message: str


class Step(NamedTuple):
    """What came of one step of a group. `obs` may be overwritten by the group's next call: copy at once."""

    obs: dict[str, np.ndarray]
    reward: np.ndarray  # [E] float32, raw
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    valid: np.ndarray  # [E] bool; False: a reset step, or the environment failed at it
    first: np.ndarray  # [E] bool; obs begins an episode. ~valid, and also True after a life loss (valid stays True)
    episodes: tuple[Episode, ...]
    faults: tuple[EnvFault, ...]


class Group(Protocol):
    """E environments that step together under next-step autoreset."""

    spec: EnvSpec
    num_envs: int

    def reset(self) -> dict[str, np.ndarray]: ...

    def step(self, action: dict[str, np.ndarray]) -> Step: ...

    def close(self) -> None: ...


# ---------------------------------------------------------------------------------------------- found by name


def suggest(word: str, known: Iterable[str], most: int = 12) -> str:
    """`; did you mean a?` or the list of what there is, to end an error message with."""
    names = sorted(known)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {folded[close[0]]}?"
    return f"; there are {', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def missing_package(name: str, package: str, extra: str) -> EnvError:
    """The error for a family whose package is not installed, with the command that mends it."""
    return EnvError(f"{name} needs the package {package}, which is not installed: pip install 'sfactory[{extra}]'")


def families() -> dict[str, EntryPoint]:
    """Installed environment families by name; nothing is imported."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def load_family(name: str) -> Callable[..., Group]:
    """The `make` function of one family; no other family is imported."""
    known = families()
    if name not in known:
        raise EnvError(f"unknown environment family {name!r}{suggest(name, known)}; installed: {', '.join(sorted(known))}")
    try:
        return known[name].load()
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "?", name) from error


def make_group(
    name: str, num_envs: int, seeds: Sequence[int], settings: Mapping[str, Any] | None = None
) -> Group:
    """Build the group `FAMILY/ID`. One seed per environment; `settings` go to the family's `make`. EnvError if it cannot."""
    if len(seeds) != num_envs or num_envs < 1:
        raise EnvError(f"{name}: {num_envs} environments and {len(seeds)} seeds; one seed for each, and at least one")
    family, slash, env_id = name.partition("/")
    if not (slash and env_id):
        raise EnvError(f"environment {name!r}: write FAMILY/ID, for example minatar/breakout or gymnasium/CartPole-v1")
    make = load_family(family)
    settings = dict(settings or {})
    parameters = inspect.signature(make).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in ("num_envs", "seeds")]
        for setting in settings:
            if setting not in known:
                raise EnvError(f"{name}: no such setting {setting!r}{suggest(setting, known)}")
    try:
        return make(env_id, num_envs=num_envs, seeds=list(seeds), **settings)
    except EnvError:
        raise
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "?", family) from error
    except Exception as error:
        raise EnvError(f"{name} could not be built: {one_line(error)}") from error


def make_spec(name: str, settings: Mapping[str, Any] | None = None) -> EnvSpec:
    """Build one environment, read its spec, close it."""
    group = make_group(name, 1, [0], settings)
    group.close()
    return group.spec


# ---------------------------------------------------------------------------------------------- for every group


def one_line(error: BaseException) -> str:
    """`ValueError: what it said`, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def fault(env: int, error: BaseException, seed: int, step: int) -> EnvFault:
    """The report of a failed environment: reason, seed and step of its episode, then the traceback."""
    reason = f"{one_line(error)} (seed {seed}, step {step} of the episode)"
    return EnvFault(env, f"{reason}\n{''.join(traceback.format_exception(error))}")


def next_seed(seed: int, renewals: int) -> int:
    """Seed of the environment that replaces one seeded with `seed` after its n-th failure; 31 bits."""
    return int(np.random.SeedSequence([seed, renewals]).generate_state(1)[0]) >> 1


def finite_rows(obs: Mapping[str, np.ndarray], reward: np.ndarray) -> np.ndarray | None:
    """Which rows hold finite numbers only, [E] bool; None: all of them (the cheap, usual answer)."""
    finite = None
    for array in (reward, *obs.values()):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            rows = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            finite = rows if finite is None else finite & rows
    return finite


class Tally:
    """Return and length of the games under way. Returns are summed in float64."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)

    def count(self, reward: np.ndarray, valid: np.ndarray) -> None:
        """Add one step; rows that are not valid add nothing (their reward is 0)."""
        self.returns += reward
        self.lengths += valid

    def end(self, envs: Iterable[int]) -> tuple[Episode, ...]:
        """The games that end now, whole; their counters begin anew."""
        done = tuple(Episode(env, float(self.returns[env]), int(self.lengths[env])) for env in envs)
        for episode in done:
            self.drop(episode.env)
        return done

    def drop(self, env: int) -> None:
        """Forget a game that will never be whole."""
        self.returns[env], self.lengths[env] = 0.0, 0


# ---------------------------------------------------------------------------------------------- spaces to leaves

Read = Callable[[Any], Any]  # observation -> the array of one leaf
Decode = Callable[[Mapping[str, np.ndarray], np.ndarray], Sequence[Any]]  # leaves, [E] faulty -> one action per env

_UNSUPPORTED = "is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"


def _one_hot(sizes: np.ndarray, start: np.ndarray) -> Read:
    offsets = np.cumsum(sizes) - sizes - start

    def read(value: Any) -> np.ndarray:
        index = np.ravel(value)
        if index.shape != start.shape or (index < start).any() or (index >= start + sizes).any():
            raise ValueError(f"observation {value!r} is none of the {sizes.tolist()} categories of its space")
        row = np.zeros(int(sizes.sum()), bool)
        row[index + offsets] = True
        return row

    return read


def obs_leaves(space: gymnasium.Space, name: str = "obs") -> dict[str, tuple[Leaf, Read]]:
    """Leaves of an observation space and how to read them. Floats become float32, integers uint8 or int64; Discrete and
    MultiDiscrete become one-hot rows, since a category is not a quantity."""
    from gymnasium import spaces

    match space:
        case spaces.Dict() | spaces.Tuple():
            children = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
            leaves: dict[str, tuple[Leaf, Read]] = {}
            for key, child in children:
                for path, (leaf, read) in obs_leaves(child, f"{name}/{key}").items():
                    leaves[path] = leaf, lambda obs, key=key, read=read: read(obs[key])
            return leaves
        case spaces.Box():
            kind = space.dtype.kind  # type: ignore[union-attr]
            dtype = {"f": "float32", "b": "bool"}.get(kind, "uint8" if space.dtype == np.uint8 else "int64")
            return {name: (Leaf(space.shape, dtype), lambda obs: obs)}
        case spaces.MultiBinary():
            return {name: (Leaf(space.shape, "uint8"), lambda obs: np.asarray(obs, np.uint8))}
        case spaces.Discrete() | spaces.MultiDiscrete():
            sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
            return {name: (Leaf((int(sizes.sum()),), "bool"), _one_hot(sizes, np.ravel(space.start)))}
    raise EnvError(f"observation space {name}: {space} {_UNSUPPORTED}")


def _decode_box(name: str, space: gymnasium.spaces.Box) -> Decode:
    def decode(action: Mapping[str, np.ndarray], faulty: np.ndarray) -> Sequence[Any]:
        values = action[name]
        if not np.isfinite(values).all():
            faulty |= ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        # The learner keeps the unclipped sample: its log_prob is of that one.
        return list(np.clip(values, space.low, space.high).astype(space.dtype, copy=False))

    return decode


def _decode_discrete(name: str, sizes: np.ndarray, start: np.ndarray, dtype: Any) -> Decode:
    def decode(action: Mapping[str, np.ndarray], faulty: np.ndarray) -> Sequence[Any]:
        values = action[name]
        legal = (values >= 0) & (values < sizes)  # NaN is neither
        if not legal.all():
            faulty |= ~legal.reshape(len(legal), -1).all(axis=1)
            values = np.where(legal, values, 0)
        return list((values + start).astype(dtype, copy=False))

    return decode


def action_leaves(space: gymnasium.Space, name: str = "action") -> tuple[dict[str, ActionLeaf], Decode]:
    """Leaves of an action space, and the decoder that turns a group's leaves into one action per environment."""
    from gymnasium import spaces

    match space:
        case spaces.Dict() | spaces.Tuple():
            items = list(space.items() if isinstance(space, spaces.Dict) else enumerate(space))
            leaves: dict[str, ActionLeaf] = {}
            decoders: list[Decode] = []
            for key, child in items:
                below, decode = action_leaves(child, f"{name}/{key}")
                leaves.update(below)
                decoders.append(decode)
            if isinstance(space, spaces.Tuple):
                return leaves, lambda action, faulty: list(zip(*(d(action, faulty) for d in decoders), strict=True))
            keys = [key for key, _ in items]
            return leaves, lambda action, faulty: [
                dict(zip(keys, parts, strict=True))
                for parts in zip(*(d(action, faulty) for d in decoders), strict=True)
            ]
        case spaces.Box() if space.dtype is not None and space.dtype.kind == "f":
            low, high = (tuple(map(float, bound.ravel())) for bound in (space.low, space.high))
            return {name: ActionLeaf(space.shape, "float32", "box", (len(low),), low, high)}, _decode_box(name, space)
        case spaces.Discrete():
            leaf = ActionLeaf((), "int64", "discrete", (int(space.n),))
            return {name: leaf}, _decode_discrete(name, np.int64(space.n), np.int64(space.start), np.int64)  # type: ignore[arg-type]
        case spaces.MultiDiscrete() | spaces.MultiBinary() if len(space.shape) == 1:
            multi = isinstance(space, spaces.MultiDiscrete)
            sizes = np.asarray(space.nvec) if multi else np.full(space.shape, 2)
            start = np.asarray(space.start) if multi else np.zeros(space.shape, np.int64)
            leaf = ActionLeaf(space.shape, "int64", "discrete", tuple(sizes.tolist()))
            return {name: leaf}, _decode_discrete(name, sizes, start, space.dtype)
    raise EnvError(f"action space {name}: {space} {_UNSUPPORTED}")


# ---------------------------------------------------------------------------------------------- single environments


class EnvGroup:
    """Turns single gymnasium environments into a Group.

    An environment that raises, returns NaN or infinity, a wrong shape or dtype, or gets an illegal action is closed and
    built anew with a new seed; its row is a reset row and a fault is reported. Box actions are clipped to their bounds.
    EnvError if a constructor or the first reset of an environment fails, the original message inside.
    """

    def __init__(
        self,
        factory: Callable[[], gymnasium.Env],
        num_envs: int,
        seeds: Sequence[int],
        *,
        name: str,
        frame_skip: int = 1,
        protocol: str = "",
        max_episode_steps: int | None = None,
    ) -> None:
        self.factory, self.num_envs, self.name = factory, num_envs, name
        self.seeds, self.renewals = list(seeds), [0] * num_envs
        self.envs = [self._build() for _ in range(num_envs)]
        env = self.envs[0]
        for other in self.envs[1:]:
            if (other.observation_space, other.action_space) != (env.observation_space, env.action_space):
                raise EnvError(f"{name}: environments of one group must have the same spaces")
        leaves = obs_leaves(env.observation_space)
        actions, self._decode = action_leaves(env.action_space)
        registered = env.spec
        self.spec = EnvSpec(
            name,
            {leaf_name: leaf for leaf_name, (leaf, _) in leaves.items()},
            actions,
            frame_skip,
            max_episode_steps or (registered.max_episode_steps if registered else None),
            protocol or name,
            registered.reward_threshold if registered else None,
        )
        self.obs = {n: np.zeros((num_envs, *leaf.shape), leaf.dtype) for n, leaf in self.spec.obs.items()}
        self._leaves = [(n, self.obs[n], read, leaf.shape) for n, (leaf, read) in leaves.items()]
        # Observations come in few dtypes: each is judged once, then looked up.
        self._castable: dict[tuple[str, np.dtype], bool] = {}
        self._over = [False] * num_envs  # the next step resets
        self._seeded = False
        self.tally = Tally(num_envs)

    def _build(self) -> gymnasium.Env:
        try:
            return self.factory()
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(f"{self.name} could not be built: {one_line(error)}") from error

    def _write(self, env: int, obs: Any) -> None:
        """Copy one observation into the group's arrays: cast once, and only if shape and dtype are as promised."""
        for name, array, read, shape in self._leaves:
            value = read(obs)
            if type(value) is not np.ndarray:
                value = np.asarray(value)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, its space says {shape}")
            castable = self._castable.get((name, value.dtype))
            if castable is None:
                castable = self._castable[name, value.dtype] = np.can_cast(value.dtype, array.dtype, "same_kind")
            if not castable:
                raise ValueError(f"{name} has dtype {value.dtype}, its space says {array.dtype}")
            array[env] = value

    def _first_reset(self, env: int) -> None:
        try:
            self._write(env, self.envs[env].reset(seed=self.seeds[env])[0])
            row = {name: array[env : env + 1] for name, array in self.obs.items()}
            if finite_rows(row, np.zeros(1)) is not None:
                raise ValueError("NaN or infinity in the first observation")
        except Exception as error:
            raise EnvError(f"{self.name} failed at its first reset: {one_line(error)}") from error

    def _renew(self, env: int) -> None:
        """Replace a failed environment by a new one with a new seed, at the beginning of an episode."""
        with contextlib.suppress(Exception):  # it failed already; what it says on the way out helps nobody
            self.envs[env].close()
        self.renewals[env] += 1
        self.seeds[env] = next_seed(self.seeds[env], self.renewals[env])
        self.envs[env] = self._build()
        self._first_reset(env)
        self._over[env] = False
        self.tally.drop(env)

    def reset(self) -> dict[str, np.ndarray]:
        """Begin every episode; seeds are used the first time only."""
        for env in range(self.num_envs):
            if self._seeded:
                self._write(env, self.envs[env].reset()[0])
            else:
                self._first_reset(env)
            self._over[env] = False
            self.tally.drop(env)
        self._seeded = True
        return self.obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """One step of every environment; see the table at the top of the file."""
        faulty = np.zeros(self.num_envs, bool)
        rows = self._decode(action, faulty)
        illegal = set(np.flatnonzero(faulty).tolist()) if faulty.any() else ()
        rewards, terminated, truncated = ([kind(0)] * self.num_envs for kind in (float, bool, bool))
        resets: list[int] = []
        errors: dict[int, Exception] = {}
        for env, (one, row) in enumerate(zip(self.envs, rows, strict=True)):
            try:
                if self._over[env]:
                    resets.append(env)
                    self._over[env] = False
                    self._write(env, one.reset()[0])
                    continue
                if env in illegal:
                    values = {name: leaf[env].tolist() for name, leaf in action.items()}
                    raise ValueError(f"illegal action {values}: NaN, infinite or out of range")
                obs, reward, terminated[env], truncated[env], _ = one.step(row)
                rewards[env] = float(reward)
                self._write(env, obs)
            except Exception as error:
                errors[env] = error
        return self._finish(np.array(rewards, np.float32), terminated, truncated, resets, errors)

    def _finish(
        self,
        reward: np.ndarray,
        terminated: Sequence[bool],
        truncated: Sequence[bool],
        resets: Sequence[int],
        errors: dict[int, Exception],
    ) -> Step:
        """Look at what came back, replace what failed and keep the books."""
        finite = finite_rows(self.obs, reward)
        if finite is not None:
            for env in np.flatnonzero(~finite).tolist():
                errors.setdefault(env, ValueError("NaN or infinity in the observation or reward"))
        ends = [np.array(flags, bool) for flags in (terminated, truncated)]
        valid = np.ones(self.num_envs, bool)
        valid[resets] = False
        faults = []
        for env, error in sorted(errors.items()):
            faults.append(fault(env, error, self.seeds[env], int(self.tally.lengths[env])))
            self._renew(env)
            valid[env] = ends[0][env] = ends[1][env] = False
            reward[env] = 0.0
        self.tally.count(reward, valid)
        over = np.flatnonzero(ends[0] | ends[1]).tolist()
        for env in over:
            self._over[env] = True
        return Step(self.obs, reward, ends[0], ends[1], valid, ~valid, self.tally.end(over), tuple(faults))

    def close(self) -> None:
        """Close every environment; one that cannot does not keep the others open."""
        for env in self.envs:
            with contextlib.suppress(Exception):
                env.close()
