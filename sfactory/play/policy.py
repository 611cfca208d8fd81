"""Load a trained policy and act with it: `sfactory.load_policy(run).act(obs)`.

`Actor` runs the network on flat dicts of leaves; `sfactory eval` uses it too. `Policy` converts between these and the
environment's own spaces: observations as the environment returns them, actions as `env.step` takes them. Where an
environment has several agents, these are the observation and the action of one agent.

Shapes: N environments; every leaf of an observation or action is [N, ...].
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfactory.config.parsing import shown
from sfactory.config.python_values import checked_seed, switches
from sfactory.envs import EnvSpec, bounded
from sfactory.envs.action_leaf import ActionSpace
from sfactory.envs.agent_spaces import AGENT_ID, MASK
from sfactory.envs.obs_leaf import Encode, always_fits, obs_leaves
from sfactory.envs.saved_spec import spaces_from_json
from sfactory.envs.space_leaves import TupleParts, check_tuples, part_of, space_leaves, tuples_of
from sfactory.errors import CheckpointError
from sfactory.play.policy_distribution import ATANH_LIMIT, PolicyDistribution
from sfactory.run import checkpoint

if TYPE_CHECKING:
    import torch

    from sfactory.config import Config
    from sfactory.model.actor_critic import ActorCritic, Output

_PAIR = "env.reset() returns (obs, info): give obs alone"
SEED_STREAM = 5  # keeps these random numbers apart from those of training


class Actor:
    """Run a network step by step; keeps its recurrent state and draws sampling noise from `seed`."""

    def __init__(self, model: ActorCritic, seed: int, player: int = 0) -> None:
        """player: number of the policy, where several play with the same seed; their noise is independent."""
        self.model = model
        self.state: torch.Tensor | None = None
        self.generator = np.random.default_rng([seed, SEED_STREAM, player])

    def __call__(self, obs: Mapping[str, np.ndarray], first: np.ndarray, greedy: bool) -> dict[str, np.ndarray]:
        """obs leaves [N, ...], first [N] bool -> action leaves [N, ...], as the distribution returns them."""
        import torch

        with torch.inference_mode():
            if self.state is not None and len(self.state) != len(first):  # a different set of environments
                self.state = None
            leaves = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in obs.items()}
            out = self.model(leaves, self.state, torch.from_numpy(first))
            self.state = out.state
            return self.choose(out.params, greedy)

    def choose(self, params: torch.Tensor, greedy: bool) -> dict[str, np.ndarray]:
        """Parameters of the distribution [N, K] -> action leaves [N, ...]."""
        import torch

        with torch.inference_mode():
            distribution = self.model.distribution
            if greedy:
                actions = distribution.mode(params)
            else:
                noise = self.generator.random((len(params), distribution.num_noise), dtype=np.float32)
                actions = distribution.sample(params, torch.from_numpy(noise))
            return {name: action.numpy() for name, action in actions.items()}

    def of_rows(
        self, obs: Mapping[str, np.ndarray], first: np.ndarray, rows: np.ndarray, greedy: bool
    ) -> dict[str, np.ndarray]:
        """Act in some rows of N: obs leaves [N, ...], first [N] bool, numbers of rows [R] -> action leaves [R, ...].

        The recurrent state of the other rows is kept, or zeroed where their episode begins. Without rows: nothing.
        """
        import torch

        with torch.inference_mode():
            kept = self.state
            if self.model.state_size:
                if kept is None or len(kept) != len(first):
                    kept = torch.zeros(len(first), self.model.state_size)
                kept[torch.from_numpy(first)] = 0.0
            if not len(rows):
                self.state = kept
                return {}
            chosen = torch.from_numpy(rows)
            self.state = None if kept is None else kept[chosen]
            action = self({name: x[rows] for name, x in obs.items()}, np.zeros(len(rows), bool), greedy)
            if kept is not None and self.state is not None:
                kept[chosen] = self.state
            self.state = kept
            return action


class Policy:
    """A trained policy that maps observations of the environment to actions. Created by `load_policy`."""

    def __init__(
        self,
        model: ActorCritic,
        spec: EnvSpec,
        config: Config,
        path: Path,
        env_steps: int,
        seed: int,
        value_scale: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        """value_scale: factor and shift from the output of the value head to units of reward."""
        self.model, self.spec, self.config, self.path = model, spec, config, path
        self.env_steps = env_steps
        """Trained steps."""
        self._value_scale = value_scale
        self._actor = Actor(model, seed)
        spaces: tuple[Any, Any] = spaces_from_json(spec.spaces) if spec.spaces else (None, None)
        self.observation_space, self.action_space = spaces
        """The environment's own spaces, or None if it has none; then observations are the leaves of `spec.obs`."""
        self._added = _added_leaves(spec, self.observation_space)
        self._readers = _readers(self.spec, self.observation_space, self._added)
        self._tuples = _tuples(self.observation_space, [path for _, path, *_ in self._readers])
        self._squashed = bounded(self.spec, config.model.squash)
        self._actions = None if self.action_space is None else ActionSpace(self.spec.name, self.action_space)
        if self._actions is not None and self._actions.leaves != spec.actions:
            raise ValueError(f"the action space {self.action_space} is not that of the network")
        self.category_starts = {part.name: part.start for part in self._actions.parts} if self._actions else {}
        """Leaf -> first value of its categories, which is added to a category; 0 for leaves that are missing."""
        self.action_shapes = {part.name: part.space.shape for part in self._actions.parts} if self._actions else {}
        """Leaf -> shape of the action that the environment takes; the leaf's own for leaves that are missing."""

    def __getstate__(self) -> tuple[Any, ...]:
        """What a copy in another process needs; conversions of spaces are functions, which it makes again."""
        made = (self.model, self.spec, self.config, self.path, self.env_steps, 0, self._value_scale)
        return made, self._actor.state, self._actor.generator

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        made, memory, generator = state
        self.__init__(*made)  # type: ignore[misc]
        self._actor.state, self._actor.generator = memory, generator

    def reset(self, seed: int | None = None) -> None:
        """Clear the recurrent state; with `seed`, also reseed the sampling noise."""
        actor = self._actor if seed is None else Actor(self.model, checked_seed(seed))
        actor.state = None
        self._actor = actor

    def act(self, obs: Any, first: Any = None, greedy: bool = True, *, agent: Any = None, mask: Any = None) -> Any:
        """Return the action for one observation, or the actions for a batch of N.

        Args:
            obs: as the environment returns it: an array [*shape], a category, or a Dict or Tuple of these; with a
                leading dimension, [N, *shape], for N environments.
            first: bool or [N] bool, True where obs begins an episode: the recurrent state is zeroed there. None:
                nowhere; call `reset` between episodes instead. Policies without memory ignore it.
            greedy: True for the most likely action, False to sample, as in training.
            agent: name or number of the agent, or [N] of them; needed after training with env.agent-id.
            mask: [choices] or [N, choices], allowed actions, where the environment has them in `info`; None: all.
        Returns: what `env.step` takes; for N observations arrays [N, ...], as a vector environment takes them. With
            env.pad-spaces a category is counted from 0: add the start of the agent's own space, if it has another one.
        Raises ValueError for an observation of another shape or dtype, and for other arguments that cannot be used.
        """
        likeliest = switches(greedy=greedy)["greedy"]
        leaves, begins, single = self._inputs(obs, first, agent, mask)
        return self._as_env_takes(self._actor(leaves, begins, likeliest), single)

    def predict(
        self,
        obs: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        agent: Any = None,
        mask: Any = None,
    ) -> tuple[Any, Any]:
        """Return the action and the next recurrent state, as `predict` of stable-baselines3.

        `act` keeps the recurrent state itself; here it is an argument and a result: [N, H], None without memory. None
        as an argument: zeros. episode_start: as `first` of `act`. deterministic: the most likely action.
        """
        likeliest = switches(deterministic=deterministic)["deterministic"]
        leaves, begins, single = self._inputs(obs, episode_start, agent, mask)
        out = self._outputs(leaves, begins, self._memory(state, len(begins)))
        action = self._as_env_takes(self._actor.choose(out.params, likeliest), single)
        return action, None if out.state is None or not self.model.state_size else out.state.numpy()

    def value(self, obs: Any, first: Any = None, *, agent: Any = None, mask: Any = None) -> Any:
        """Return the expected discounted return from an observation: a number, or [N] for a batch.

        In units of the rewards that were learned from, which `env.reward_scale`, `env.reward_clip` and
        `normalize.reward` change. Arguments as `act`. The recurrent state is read and stays as it is: call this before
        `act`.
        """
        leaves, begins, single = self._inputs(obs, first, agent, mask)
        scale, shift = self._value_scale
        value = self._outputs(leaves, begins, self._state(len(begins))).value.numpy() * scale + shift
        return float(value[0]) if single else value

    def rescale_value_head(self) -> None:
        """Let the network itself compute values in units of reward, for export."""
        if self._value_scale != (1.0, 0.0):
            self.model.rescale_finished_value(*self._value_scale)
            self._value_scale = (1.0, 0.0)

    def distribution(self, obs: Any, first: Any = None, *, agent: Any = None, mask: Any = None) -> PolicyDistribution:
        """Return the distribution of the action: probabilities, mean and deviation, entropy. Arguments as `value`."""
        leaves, begins, single = self._inputs(obs, first, agent, mask)
        params = self._outputs(leaves, begins, self._state(len(begins))).params
        return PolicyDistribution(self.model.distribution, params, single, self._leaves_of)

    def _inputs(self, obs: Any, first: Any, agent: Any, mask: Any) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
        """Leaves [N, ...], flags [N] where episodes begin, and whether it is a single observation."""
        leaves, count = self._read(obs)
        rows = 1 if count is None else count
        leaves |= self._complete(rows, agent, mask)
        begins = np.zeros(rows, bool)
        if first is not None:
            given = np.asarray(first)
            if given.dtype.kind not in "biuf" or given.shape not in ((), (1,), (rows,)):
                raise ValueError(f"first (episode_start): expected a bool or {rows} of them, got {shown(first)}")
            begins[:] = given != 0
        return leaves, begins, count is None

    def _memory(self, state: Any, rows: int) -> torch.Tensor | None:
        """A recurrent state [N, H] that `predict` was given; [H] too for one observation."""
        import torch

        if state is None or not self.model.state_size:
            return None
        expected = (rows, self.model.state_size)
        try:
            array = np.array(state, np.float32)
        except (TypeError, ValueError):
            array = np.zeros((), np.float32)
        if array.shape not in ((expected, expected[1:]) if rows == 1 else (expected,)):
            raise ValueError(
                f"state: expected an array of shape {expected}, as predict returned it, or None; got "
                + (f"shape {array.shape}" if array.shape else shown(state))
            )
        if not np.isfinite(array).all():
            raise ValueError("state is not finite")
        return torch.from_numpy(array.reshape(expected))

    def _outputs(self, leaves: Mapping[str, np.ndarray], begins: np.ndarray, state: torch.Tensor | None) -> Output:
        """What the network computes; the recurrent state of `act` is not changed."""
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in leaves.items()}
            out: Output = self.model(tensors, state, torch.from_numpy(begins))
            return out

    def _state(self, rows: int) -> torch.Tensor | None:
        """The recurrent state of `act`, if it belongs to as many environments."""
        state = self._actor.state
        return state if state is not None and len(state) == rows else None

    def _as_env_takes(self, leaves: dict[str, np.ndarray], single: bool) -> Any:
        """Action leaves [N, ...] of the distribution -> what `env.step` takes."""
        action = self.env_actions(leaves)
        if self._actions is not None:
            parts = zip(self._actions.parts, action.values(), strict=True)
            return self._actions.nest([part.rows(values)[0] if single else values for part, values in parts])
        if single:
            action = {name: value[0] for name, value in action.items()}
        return action["action"] if list(action) == ["action"] else action

    def _leaves_of(self, action: Any, rows: int) -> dict[str, np.ndarray]:
        """The inverse of `_as_env_takes` for `rows` observations, but for what is clipped."""
        parts = self._actions.parts if self._actions is not None else None
        paths = {name: () if list(self.spec.actions) == ["action"] else (name,) for name in self.spec.actions}
        if parts is not None:
            paths = {part.name: part.path for part in parts if not part.empty}
        leaves = {}
        for name, leaf in self.spec.actions.items():
            value = action
            for key in paths[name]:
                try:
                    value = value[key]
                except (KeyError, IndexError, TypeError):
                    raise ValueError(f"no {name} in the action; expected {self.action_space}") from None
            shape = (*([] if rows == 1 else [rows]), *self.action_shapes.get(name, leaf.shape))
            try:
                given = np.asarray(value, np.float64).reshape(rows, *leaf.shape)
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"{name}: expected numbers of shape {shape}, got {shown(value)}") from None
            if leaf.kind == "discrete" and not (np.isfinite(given) & (given == np.rint(given))).all():
                raise ValueError(f"{name} {shown(value)} is not one of the choices of {self.spec.name}")
            flat = given.astype(leaf.dtype)
            if leaf.kind == "discrete":
                flat = flat - self.category_starts.get(name, 0)
                if (flat < 0).any() or (flat >= np.reshape(leaf.sizes, leaf.shape)).any():
                    raise ValueError(f"{name} {value!r} is not one of the choices of {self.spec.name}")
            elif self.config.model.squash:
                low, high = (np.asarray(bound, np.float32).reshape(leaf.shape) for bound in (leaf.low, leaf.high))
                share = (2.0 * flat - low - high) / (high - low)
                flat = np.arctanh(share.clip(-ATANH_LIMIT, ATANH_LIMIT)).astype(np.float32)
            leaves[name] = flat
        return leaves

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        memory = f", {self.config.model.core} of {self.model.state_size}" if self.model.state_size else ""
        reads = ", ".join(f"{name} {leaf.shape} {leaf.dtype}" for name, leaf in self.spec.obs.items())
        acts = self.action_space if self.action_space is not None else ", ".join(self.spec.actions)
        return (
            f"<Policy of {self.spec.name} after {self.env_steps:,} steps: {reads} -> {acts}; {count:,} parameters"
            f"{memory}; {str(self.path)!r}>"
        )

    def env_actions(self, action: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Convert action leaves [N, ...] of the distribution to what the environment takes.

        Boxes are squashed or clipped to their bounds; categories are counted from the start of their space.
        """
        action = self._squashed(action)
        if self._actions is None:
            return {name: _clipped(self.spec, name, value) for name, value in action.items()}
        illegal = np.zeros(len(next(iter(action.values()))), bool)
        arrays = self._actions.arrays(action, illegal)
        if illegal.any():
            wrong = {name: value[illegal][0].tolist() for name, value in action.items()}
            raise ValueError(f"the policy returned {wrong}; check that the observation is finite")
        return {part.name: array for part, array in zip(self._actions.parts, arrays, strict=True)}

    def _read(self, obs: Any) -> tuple[dict[str, np.ndarray], int | None]:
        """Return the leaves [N, ...] of an observation, and N; None for a single one."""
        if _is_pair(obs, self.observation_space):
            raise ValueError(f"the observation is a tuple whose second part is a dict; {_PAIR}")
        leaves: dict[str, np.ndarray] = {}
        counts: dict[str, int | None] = {}
        for name, path, raw, encode in self._readers:
            part = obs
            for key in path:
                try:
                    part = part[key]
                except (KeyError, IndexError, TypeError) as error:
                    raise ValueError(f"no {name} in the observation; expected {self._expected()}") from error
            try:
                value, counts[name] = _rows(name, part, raw, self.spec.name)
            except ValueError:
                self._refuse_tuples(obs)
                raise
            leaves[name] = _of_leaf(name, value if encode is None else encode(value), self.spec.obs[name].dtype)
        if None in counts.values():  # an environment may return a category in an array of one
            counts = {name: counts[name] for name, _, raw, _ in self._readers if raw or counts[name] != 1}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the leaves of the observation have different batch sizes; expected {self._expected()}")
        batch = next(iter(counts.values()))
        check_tuples(obs, self._tuples)
        if batch is not None:
            self._refuse_tuples(obs, lists=True)
        return leaves, batch

    def _refuse_tuples(self, obs: Any, lists: bool = False) -> None:
        """Raise ValueError if a Tuple space has N tuples, where a batch is a tuple of batches, as gymnasium's are.

        lists: also if it has a list, whose parts could be observations.
        """
        paths = [path for _, path, *_ in self._readers]
        for name, path, count in self._tuples:
            read = [one[-1] for one in paths if one[:-1] == path]  # parts that are no Dict or Tuple themselves
            value, parts = obs, list[Any]()
            with contextlib.suppress(ValueError, LookupError, TypeError):  # too few parts: the caller says so
                value = part_of(obs, path)
                for key in read:
                    parts.append(value[key])
            if (lists and not isinstance(value, tuple)) or any(isinstance(part, tuple) for part in parts):
                raise ValueError(
                    f"{name} has a Tuple space: give one observation, or for N of them a tuple of {count} batches of N "
                    "rows, as vector environments of gymnasium return it"
                )

    def _complete(self, rows: int, agent: Any, mask: Any) -> dict[str, np.ndarray]:
        """Return the leaves [N, ...] that the environment's own observation does not have."""
        numbers = None if agent is None else [self._number_of(one) for one in np.atleast_1d(agent).tolist()]
        if numbers is not None and len(numbers) not in (1, rows):
            raise ValueError(f"agent: {len(numbers)} agents for {rows} observations")
        if mask is not None and self.spec.mask not in self._added:
            raise ValueError(f"mask: {self.spec.name} has no mask beside its observation; leave it out")
        leaves = {}
        for name in self._added:
            leaf = self.spec.obs[name]
            array = leaves[name] = np.ones((rows, *leaf.shape), leaf.dtype)  # acts, and may do everything
            if name == AGENT_ID:
                if numbers is None:
                    raise ValueError(f"agent: the policy was trained with env.agent-id; give one of {self._agents}")
                array[...] = np.eye(len(self.spec.agents))[numbers]
            elif name == self.spec.mask and mask is not None:
                given = np.asarray(mask) != 0
                fits = given.ndim in (1, 2) and given.shape[-1] <= leaf.shape[0]
                if not fits or len(np.atleast_2d(given)) not in (1, rows):
                    raise ValueError(f"mask has shape {given.shape}, expected {leaf.shape}, or (N, ...) for a batch")
                array[...] = 0  # an agent may have fewer choices than others
                array[:, : given.shape[-1]] = given
        return leaves

    def _number_of(self, agent: Any) -> int:
        """Number of an agent, by its name or number."""
        if str(agent) in self.spec.agents:
            return self.spec.agents.index(str(agent))
        if isinstance(agent, int) and 0 <= agent < len(self.spec.agents):
            return agent
        raise ValueError(f"agent {agent!r}: {self.spec.name} has {self._agents or 'one agent'}")

    @property
    def _agents(self) -> str:
        return ", ".join(self.spec.agents)

    def _expected(self) -> str:
        own = {name: leaf for name, leaf in self.spec.obs.items() if name not in self._added}
        return ", ".join(f"{name} {leaf.shape} {leaf.dtype}" for name, leaf in own.items())


def load_policy(path: Path, config: Config, spec: EnvSpec, seed: int = 0) -> Policy:
    """Load the policy of a verified checkpoint, on the CPU. No environment is built.

    config: of its run. spec: of its environment. seed: of sampled actions. Raises CheckpointError.
    """
    model, state = checkpoint.restore_policy(path, config, spec)
    scale = (1.0, 0.0)
    if config.normalize.value_targets:  # the network computes targets of mean 0 and variance 1
        target = checkpoint.read(path, ("normalizers",)).parts["normalizers"]
        if "target.std" in target:
            scale = (float(target["target.std"]), float(target["target.mean"]))
    try:
        return Policy(model, spec, config, path, int(state["env_steps"]), seed, scale)
    except ValueError as error:
        raise CheckpointError(f"{path}: the environment's spaces in state.json cannot be used: {error}") from error


def _added_leaves(spec: EnvSpec, space: Any) -> tuple[str, ...]:
    """Leaves that a group of several agents adds to the observation of an agent."""
    added = {spec.acting, AGENT_ID, MASK} if spec.agents else set()
    own = set() if space is None else {name for name, *_ in space_leaves(space, "obs")}
    return tuple(name for name in spec.obs if name in added - own)


def _readers(
    spec: EnvSpec, space: Any, added: Collection[str]
) -> list[tuple[str, tuple[Any, ...], tuple[int, ...], Encode | None]]:
    """Return name, path, shape of the raw value, and conversion of values to rows of the leaf (None: not needed)."""
    own = {name: leaf for name, leaf in spec.obs.items() if name not in added}
    if space is None:
        alone = list(own) == ["obs"]
        return [(name, () if alone else (name,), leaf.shape, None) for name, leaf in own.items()]
    leaves = [leaf for leaf in space_leaves(space, "obs") if leaf[0] in spec.obs]  # others are left out
    readers, _ = obs_leaves(spec.name, leaves)
    if {name: reader.leaf for name, reader in readers.items()} != own:
        raise ValueError(f"the observation space {space} is not that of the network")
    return [(name, reader.path, reader.raw, reader.encode) for name, reader in readers.items()]


def _tuples(space: Any, paths: Collection[tuple[Any, ...]]) -> list[TupleParts]:
    """Return the Tuple spaces with a part that is read. paths: of what is read."""
    found = [] if space is None else list(tuples_of(space))
    return [one for one in found if any(path[: len(one.path)] == one.path for path in paths)]


def _is_pair(obs: Any, space: Any) -> bool:
    """Whether this is what `reset` returns: an observation and a dict, where the space has no such tuple."""
    parts = list(space) if isinstance(space, Sequence) else []
    fits = len(parts) == 2 and isinstance(parts[1], Mapping)
    return isinstance(obs, tuple) and len(obs) == 2 and isinstance(obs[1], dict) and not fits


def _rows(name: str, part: Any, raw: tuple[int, ...], env: str) -> tuple[np.ndarray, int | None]:
    """Return a part of an observation as rows [N, *raw], and N; None for a single one."""
    try:
        value = np.asarray(part)
    except ValueError:  # values of several shapes
        raise ValueError(f"{name} is a {type(part).__name__} of unequal parts; {_PAIR}") from None
    except (RuntimeError, TypeError) as error:  # a tensor with gradients, or on a GPU
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    if value.shape == raw or (value.ndim == 0 and math.prod(raw) == 1):  # training takes a number for an array of one
        return value.reshape(1, *raw), None
    if value.shape[1:] != raw or value.ndim != len(raw) + 1:
        raise ValueError(f"{name} has shape {value.shape}; {env} has {raw}, or (N, ...) for a batch")
    if not len(value):
        raise ValueError(f"{name} has shape {value.shape}: a batch of no observations; leave the call out")
    return value, len(value)


def _of_leaf(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in the dtype of their leaf. Raises ValueError for those that are a fault in training."""
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise ValueError(f"{name} has dtype {value.dtype}; {dtype} is expected")
    always_fits(name, value, np.dtype(dtype))
    with np.errstate(over="ignore"):
        cast = value.astype(dtype, copy=False)
    if cast.dtype.kind == "f" and not np.isfinite(cast).all():
        wrong = ~np.isfinite(cast)
        if np.isfinite(value).all():
            raise ValueError(f"{name} is {value[wrong][0]:g}, which is too large for {dtype}")
        raise ValueError(f"{name} is not finite: {np.sum(wrong)} of {value.size} numbers")
    return cast


def _clipped(spec: EnvSpec, name: str, value: np.ndarray) -> np.ndarray:
    leaf = spec.actions[name]
    if leaf.kind != "box":
        return value
    return np.clip(value, *(np.asarray(x, np.float32).reshape(leaf.shape) for x in (leaf.low, leaf.high)))
