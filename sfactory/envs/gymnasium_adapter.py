"""Adapter from single gymnasium environments to a Group: spaces become flat dicts of arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sfactory.envs.action_leaf import ActionSpace, mask_leaf
from sfactory.envs.obs_leaf import obs_leaf
from sfactory.envs.saved_state import decode, encode
from sfactory.envs.space_leaves import kept_leaves
from sfactory.envs.spec import EnvSpec, EpisodeTally, Step, env_fault, finite_rows, next_seed, one_line
from sfactory.envs.step_values import PLAIN_FLAGS, PLAIN_NUMBERS, as_flag, as_reward, explained, reset_obs, wrong_step
from sfactory.errors import EnvError

if TYPE_CHECKING:
    import gymnasium


class EnvGroup:
    """Group of single gymnasium environments. Box actions are clipped to their bounds.

    env_index: the number of the first environment; the factory is then called with the number of the environment that
    it builds, and the environment that replaces a failed one has the number of that one. None: without an argument.
    drop: leaves of the observation that are left out.

    An environment that raises, returns NaN, infinity, a wrong shape or dtype, or receives an illegal action is closed
    and replaced by one with a new seed; its row is a reset row, and a fault is reported. Raises EnvError, with the
    original message, if a constructor or the first reset fails.
    """

    def __init__(
        self, factory: Callable[..., gymnasium.Env], num_envs: int, seeds: Sequence[int], *,
        name: str, frame_skip: int = 1, protocol: str = "", max_episode_steps: int | None = None,
        env_index: int | None = None, drop: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.factory, self.num_envs, self.name, self.seeds = factory, num_envs, name, list(seeds)
        self.env_index = env_index
        self.envs: list[gymnasium.Env] = []
        try:
            for env in range(num_envs):
                self.envs.append(self._build(env))
            self._read_spaces(frame_skip, protocol or name, max_episode_steps, drop)
        except BaseException:
            self.close()
            raise
        self._castable: set[tuple[str, np.dtype]] = set()  # dtypes that were already checked
        self._over, self._seeded = [False] * num_envs, False  # the next step resets this one; seeds were used
        self.tally = EpisodeTally(num_envs)
        self.at = np.full(1, -1)  # index of the environment that is being stepped; see `sfactory.envs.Group`

    def _read_spaces(self, frame_skip: int, protocol: str, limit: int | None, drop: Sequence[str]) -> None:
        """Build the spec and the arrays of observations."""
        env, registered = self.envs[0], self.envs[0].spec
        if len({id(env) for env in self.envs}) < self.num_envs:
            raise EnvError(
                f"{self.name} returned the same environment twice; every call must build a new one", fault=True
            )
        if any((e.observation_space, e.action_space) != (env.observation_space, env.action_space) for e in self.envs):
            raise EnvError(f"{self.name}: environments of one group must have the same spaces")
        self.observation_space, self.action_space = env.observation_space, env.action_space
        kept = kept_leaves(self.name, env.observation_space, drop)
        leaves = {n: obs_leaf(n, path, space) for n, path, space in kept}
        self._actions = ActionSpace(self.name, env.action_space)
        obs, actions = {n: leaf for n, (leaf, _) in leaves.items()}, self._actions.leaves
        limit = limit or episode_limit(env)
        goal = registered.reward_threshold if registered else None
        mask = mask_leaf(self.name, obs, actions)
        self.spec = EnvSpec(self.name, obs, actions, frame_skip, limit, protocol, goal, mask)
        self.obs = {n: np.zeros((self.num_envs, *leaf.shape), leaf.dtype) for n, leaf in obs.items()}
        self._leaves = [(n, self.obs[n], leaf.shape, read) for n, (leaf, read) in leaves.items()]

    def _build(self, env: int) -> gymnasium.Env:
        try:
            return self.factory() if self.env_index is None else self.factory(self.env_index + env)
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(f"{self.name} could not be built: {one_line(error)}", fault=True) from error

    def _write(self, env: int, obs: Any) -> None:
        """Copy one observation into the group's arrays. Raises ValueError for a wrong shape or dtype."""
        for name, array, shape, read in self._leaves:
            value = np.asarray(read(obs))
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, but its space has {shape}")
            if value.dtype is not array.dtype and (name, value.dtype) not in self._castable:
                if not np.can_cast(value.dtype, array.dtype, "same_kind"):
                    raise ValueError(f"{name} has dtype {value.dtype}, but its space has {array.dtype}")
                self._castable.add((name, value.dtype))
            array[env] = value

    def _begin(self, env: int, seed: int | None) -> None:
        """Reset one environment outside of a step. Raises EnvError on failure, which would only repeat."""
        try:
            self._write(env, reset_obs(self.envs[env].reset(seed=seed), self.observation_space))
            if finite_rows({n: a[env : env + 1] for n, a in self.obs.items()}, np.zeros(1)) is not None:
                raise ValueError("NaN or infinity in the observation")
        except Exception as error:
            reason = one_line(explained(error))
            raise EnvError(f"{self.name} failed at its first reset: {reason}", fault=True) from error
        self._over[env] = False
        self.tally.drop(env)

    def _replace(self, env: int) -> None:
        """Replace a failed environment by one with a new seed, and reset it."""
        with contextlib.suppress(Exception):  # the first error is reported; later ones do not help
            self.envs[env].close()
        self.seeds[env] = next_seed(self.seeds[env])
        self.envs[env] = self._build(env)
        self._begin(env, self.seeds[env])

    def reset(self) -> dict[str, np.ndarray]:
        """Reset every environment. Seeds are used in the first call only."""
        for env in range(self.num_envs):
            self._begin(env, None if self._seeded else self.seeds[env])
        self._seeded = True
        return self.obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every environment; see the table in `sfactory.envs.spec`."""
        flags = np.zeros(self.num_envs, bool)
        rows, illegal = self._actions.rows(action, flags), flags.tolist()
        reward, valid = np.zeros(self.num_envs, np.float32), np.ones(self.num_envs, bool)
        terminated, truncated = ~valid, ~valid
        errors: dict[int, Exception] = {}
        at, over, write, false = self.at, self._over, self._write, np.False_
        for env, (instance, row) in enumerate(zip(self.envs, rows, strict=True)):
            at[0] = env
            try:
                if over[env]:
                    valid[env] = False
                    write(env, reset_obs(instance.reset(), self.observation_space))
                    continue
                if illegal[env]:
                    raise ValueError(f"illegal action {[leaf[env].tolist() for leaf in action.values()]}")
                result = instance.step(row)
                try:
                    obs, env_reward, ended, cut, _ = result
                except (TypeError, ValueError):
                    raise wrong_step(result) from None
                if type(env_reward) is not float:
                    env_reward = float(env_reward) if type(env_reward) in PLAIN_NUMBERS else as_reward(env_reward)
                reward[env] = env_reward
                if (ended is not False and ended is not false) or (cut is not False and cut is not false):
                    if type(ended) not in PLAIN_FLAGS or type(cut) not in PLAIN_FLAGS:
                        ended, cut = as_flag(ended, "terminated"), as_flag(cut, "truncated")
                    if ended or cut:
                        terminated[env], truncated[env] = ended, cut
                write(env, obs)
            except Exception as error:
                errors[env] = explained(error)
        if (finite := finite_rows(self.obs, reward)) is not None:
            for env in np.flatnonzero(~finite).tolist():
                errors.setdefault(env, ValueError("NaN or infinity in the observation or reward"))
        faults = []
        for env in sorted(errors):
            faults.append(env_fault(env, errors[env], self.seeds[env], int(self.tally.lengths[env])))
            self._replace(env)
            valid[env] = terminated[env] = truncated[env] = False
            reward[env] = 0.0
        self.tally.count(reward, valid)
        ends = terminated | truncated
        self._over = ends.tolist()
        episodes = self.tally.end(np.flatnonzero(ends).tolist())
        return Step(self.obs, reward, terminated, truncated, valid, ~valid, episodes, tuple(faults))

    def render(self, env: int) -> np.ndarray:
        """Render one environment, uint8 [H, W, 3]. Raises EnvError if that is not possible."""
        try:
            picture = np.asarray(self.envs[env].render())
        except Exception as error:
            raise EnvError(f"{self.name} cannot be rendered on this machine: {one_line(error)}") from error
        if picture.ndim != 3 or picture.shape[2] != 3:
            mode = self.envs[env].render_mode
            raise EnvError(f"{self.name}: no video, because render() in mode {mode} returns no image [H, W, 3]")
        return picture.astype(np.uint8, copy=False)

    @property
    def render_fps(self) -> float:
        """Steps per second at natural speed; 30 if the environment does not define it."""
        return float(self.envs[0].metadata.get("render_fps") or 30)

    def snapshot(self) -> Any:
        """Return the state of all environments as JSON (`gymnasium_state`). Raises EnvError if one cannot be saved."""
        from sfactory.envs.gymnasium_state import env_state

        try:
            states = [env_state(env) for env in self.envs]
        except EnvError as error:
            raise EnvError(f"{self.name}: {error}") from error
        group = encode([self.seeds, self._over, self._seeded, self.tally.returns, self.tally.lengths, self.obs])
        return {"envs": states, "group": group}

    def restore(self, state: Any) -> None:
        """Load the state of `snapshot` into a group that was built with the same settings. Resets the environments."""
        from sfactory.envs.gymnasium_state import set_env_state

        self.seeds, self._over, self._seeded, self.tally.returns, self.tally.lengths, obs = decode(state["group"])
        for env, layers in zip(self.envs, state["envs"], strict=True):
            env.reset(seed=0)
            set_env_state(env, layers)
        for name, array in obs.items():
            self.obs[name][...] = array

    def close(self) -> None:
        """Close every environment; one that cannot does not keep the others open."""
        for env in self.envs:
            with contextlib.suppress(Exception):
                env.close()


def episode_limit(env: gymnasium.Env) -> int | None:
    """Steps after which an episode is truncated: the smallest limit of the TimeLimit wrappers; None without one."""
    import gymnasium

    limits = [env.spec.max_episode_steps] if env.spec else []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return min((limit for limit in limits if limit), default=None)
