"""Types of the environment interface: spec, step, episode, fault, and the Group protocol.

A group steps E environments in one call; a leaf is an array [E, *shape]. The only reset mode is next-step autoreset:

    call     reset  step   step   step      step   step
    obs      o0     o1     o2     o_final   o0'    o1'    o_final: the observation with which the episode ended
    ended    -      0      0      1         0      0
    valid    -      1      1      1         0      1      0: reset step; the action is ignored, the reward is 0
    first    1      0      0      0         1      0

If an environment fails, its row has the values of a reset step (valid 0, first 1); no terminal flag is invented.
This module imports neither torch nor gymnasium, because every sampler process loads it.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from sfactory.errors import EnvError, one_line, shortened

LONGEST_TRACE = 20_000  # characters of a traceback that are reported
LONGEST_ACTION = 120  # characters of the action with which an environment failed
MAX_INFOS = 20  # numbers of an environment's `info` that are recorded
SUCCESS = "is_success"  # Gymnasium-Robotics' and others' name for a solved task
NOT_NUMBERS = ("TimeLimit.truncated",)  # names in `info` that are known otherwise

Settings = Mapping[str, Any]
"""Settings of an environment by name, from `env.settings`."""
NO_SETTINGS: Settings = MappingProxyType({})


@dataclass(frozen=True)
class Leaf:
    """One observation array in a flat dict of arrays."""

    shape: tuple[int, ...]
    """Without the environment axis."""
    dtype: str
    """NumPy's name: bool, uint8, int64 or float32."""
    low: tuple[float, ...] = ()
    """Lower bounds: () none is finite, (x,) the same for every number, else one per number in C order, -inf where there
    is none. Truth values have no bounds."""
    high: tuple[float, ...] = ()
    """Upper bounds, the same."""
    source: str = field(default="", compare=False)
    """The space in words, if the array is not the space's own: `Discrete(16), one-hot`."""


@dataclass(frozen=True)
class ActionLeaf:
    """One action array."""

    shape: tuple[int, ...]
    """Without the environment axis."""
    dtype: str
    """NumPy's name of the dtype."""
    kind: str
    """"discrete" or "box"."""
    sizes: tuple[int, ...]
    """Discrete: categories per head, (n,) for shape (), (n1, .., nk) for shape (k,). Box: (dims,)."""
    low: tuple[float, ...] = ()
    """Lower bounds of a box, flattened; infinite where there is none."""
    high: tuple[float, ...] = ()
    """Upper bounds of a box, flattened; infinite where there is none."""


@dataclass(frozen=True)
class EnvSpec:
    """Static description of an environment, known before the first step."""

    name: str
    obs: dict[str, Leaf]
    actions: dict[str, ActionLeaf]
    frame_skip: int = 1
    max_episode_steps: int | None = None
    protocol: str = ""
    """Evaluation protocol, stored with every score. Only scores with the same protocol are comparable."""
    reward_threshold: float | None = None
    mask: str = ""
    """Name of the observation leaf [number of logits] that is non-zero for allowed actions; empty: no action mask."""
    reference: tuple[float, float] | None = None
    """Returns of a random policy and of a human tester; used to normalize scores (Atari)."""
    omitted: dict[str, str] = field(default_factory=dict)
    """Leaves of the observation space that are not in `obs`: name -> reason."""
    spaces: dict[str, Any] | None = field(default=None, compare=False)
    """The environment's own spaces as JSON (`saved_spec.spaces_to_json`); None: it has none, or they are not known."""
    agents: tuple[str, ...] = ()
    """Names of the agents, where an environment has several; its rows are those of its agents (`agent_group`)."""
    acting: str = ""
    """Name of the observation leaf [] bool that says whether the agent of a row chooses an action; empty: all do."""

    @property
    def rows(self) -> int:
        """Rows of one environment: its agents."""
        return max(1, len(self.agents))


class Episode(NamedTuple):
    """One complete episode: environment index, sum of raw rewards, length in agent steps."""

    env: int
    episodic_return: float
    length: int


class EnvFault(NamedTuple):
    """Report of an environment that raised, returned invalid data or received an illegal action.

    The first line of `message` is the reason; the traceback follows.
    """

    env: int
    message: str


class Step(NamedTuple):
    """Result of one step of a group. The next call may overwrite `obs`: copy it before that."""

    obs: dict[str, np.ndarray]
    reward: np.ndarray  # [E] float32, raw
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    valid: np.ndarray  # [E] bool; False: reset step, or the environment failed in this step
    first: np.ndarray  # [E] bool; obs begins an episode: ~valid, or a life was lost (valid stays True)
    episodes: tuple[Episode, ...]
    faults: tuple[EnvFault, ...]
    infos: tuple[tuple[int, Mapping[str, float]], ...] = ()
    """(environment, numbers): what `info` had at the end of an episode; see `info_numbers`."""


class Group(Protocol):
    """E environments that step together under next-step autoreset. With A agents (`spec.agents`) every array has
    E x A rows, and row `env * A + agent` is the agent of an environment."""

    spec: EnvSpec
    num_envs: int

    def reset(self) -> dict[str, np.ndarray]: ...
    def step(self, action: dict[str, np.ndarray]) -> Step: ...
    def close(self) -> None: ...

    # Optional members:
    # `snapshot() -> JSON` and `restore(state)`: required for exact resume in lockstep mode.
    # `render(env) -> uint8 [H, W, 3]`, the image of the newest observation, and `render_fps`, steps per second at
    # natural speed: required for videos. The family's `make` then takes gymnasium's `render_mode`.
    # `at`, int64 [1]: index of the environment that is being stepped or closed, written before each step. If it crashes
    # the process, the error message names it. Each environment then has `env.step_timeout` for itself; without `at` the
    # group has that time for each of its environments together.
    # `at_once`: True if native code steps all environments in one call; the call then has the time of one step.
    # `build_clock()` reports the environment that is being built; see `sfactory.envs.build_clock`.
    # `beat`, a function that the group calls at least once a second while it waits on purpose, as between attempts to
    # replace a failed environment: this time does not count as a step that takes too long.


class EpisodeTally:
    """Return and length so far of the episode in each environment, [E]; returns are summed in float64."""

    def __init__(self, num_envs: int) -> None:
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)

    def count(self, reward: np.ndarray, valid: np.ndarray) -> None:
        """Add one step. Rows that are not valid add nothing; their reward is 0."""
        self.returns += reward
        self.lengths += valid

    def end(self, envs: Iterable[int]) -> tuple[Episode, ...]:
        """Return the episodes of the given environments and set their counters to zero."""
        done = tuple(Episode(env, float(self.returns[env]), int(self.lengths[env])) for env in envs)
        self.drop([episode.env for episode in done])
        return done

    def drop(self, envs: int | list[int]) -> None:
        """Set counters to zero without reporting the episodes, which are incomplete."""
        self.returns[envs], self.lengths[envs] = 0.0, 0


def bounded(spec: EnvSpec, squash: bool) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return the function that maps sampled actions to the actions given to the environment.

    With `squash`, box actions become tanh of the sample, scaled to their bounds. The slot keeps the sample itself,
    because the learner computes the density of that one (`model.distributions`). Without `squash` actions pass
    unchanged, and groups clip them. Raises EnvError if `squash` is set and a box has no finite bounds.
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


def env_fault(env: int, error: BaseException, seed: int, step: int, action: Any = None) -> EnvFault:
    """Build the report of a failed environment: reason, seed, step of its episode, traceback.

    action: what a `step` that raised was called with; None where that does not matter.
    """
    trace = shortened("".join(traceback.format_exception(error)), LONGEST_TRACE)
    where = f"(seed {seed}, step {step} of the episode)"
    if action is not None:
        where = f"{where[:-1]}, action {shortened(' '.join(repr(action).split()), LONGEST_ACTION)})"
    return EnvFault(env, f"{one_line(error)} {where}\n{trace}")


def info_numbers(info: Any, keys: Sequence[str] = ()) -> dict[str, float]:
    """The finite numbers and truth values in what `step` returned as `info`, by name.

    keys: the names that are wanted, `a.b` for the entry b of the table a; an array of one number counts as a number.
    Without keys: all plain numbers of the table itself, at most MAX_INFOS. `is_success` is never left out.
    """
    if not isinstance(info, Mapping):
        return {}
    if keys:
        numbers = {key: _number(_entry(info, key)) for key in dict.fromkeys((*keys, SUCCESS))}
        return {key: number for key, number in numbers.items() if number is not None}
    found = {} if (success := _number(info.get(SUCCESS))) is None else {SUCCESS: success}
    for name, value in info.items():
        usable = isinstance(name, str) and name.isprintable() and 0 < len(name) <= 60 and name not in NOT_NUMBERS
        if usable and not isinstance(value, np.ndarray) and (number := _number(value)) is not None:
            found[name] = number
        if len(found) == MAX_INFOS:
            break
    return found


def _entry(info: Mapping[Any, Any], key: str) -> Any:
    """The value of a key, also of one with dots; None if there is none."""
    if key in info:
        return info[key]
    first, dot, rest = key.partition(".")
    inside = info.get(first)
    return _entry(inside, rest) if dot and isinstance(inside, Mapping) else None


def _number(value: Any) -> float | None:
    """A finite number; None for everything else."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, bool | int | float | np.integer | np.floating | np.bool_):
        return None
    if isinstance(value, np.timedelta64):  # a whole number to NumPy, and no float to Python
        return None
    with contextlib.suppress(OverflowError):  # 2**2000
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def next_seed(seed: int) -> int:
    """Derive the seed of the environment that replaces a failed one, 31 bits."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1


def finite_rows(obs: Mapping[str, np.ndarray], reward: np.ndarray) -> np.ndarray | None:
    """Mark the rows with finite numbers only, [E] bool. None means all rows, which is the usual and cheap case."""
    finite = None
    for array in (reward, *obs.values()):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            rows = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            finite = rows if finite is None else finite & rows
    return finite
