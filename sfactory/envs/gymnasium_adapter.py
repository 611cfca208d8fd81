"""Adapter from single gymnasium environments to a Group: spaces become flat dicts of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sfactory.envs.action_leaf import ActionSpace, mask_leaf, one_line_space
from sfactory.envs.env_copies import EnvCopies
from sfactory.envs.frames import render_error, to_frame
from sfactory.envs.obs_leaf import always_fits, obs_leaves
from sfactory.envs.saved_spec import same_space
from sfactory.envs.saved_state import decode, encode
from sfactory.envs.space_leaves import check_tuples, kept_leaves, space_leaves, tuples_of
from sfactory.envs.spec import EnvSpec, EpisodeTally, Step, env_fault, finite_rows, info_numbers
from sfactory.envs.step_values import (
    PLAIN_FLAGS,
    PLAIN_NUMBERS,
    as_flag,
    as_reward,
    check_time_limit,
    final_obs,
    reset_obs,
    unread_mask,
    wrong_step,
)
from sfactory.errors import EnvError, NoPictures, raised_by_sfactory

if TYPE_CHECKING:
    import gymnasium


class EnvGroup(EnvCopies):
    """Group of single gymnasium environments. Box actions are clipped to their bounds.

    factory, env_index: see `EnvCopies`. drop: leaves of the observation that are left out.

    An environment that raises, returns NaN, infinity, a wrong shape or dtype, or receives an illegal action is closed
    and replaced by one with a new seed; its row is a reset row, and a fault is reported. Raises EnvError, with the
    original message, if a constructor or the first reset fails.
    """

    def __init__(
        self, factory: Callable[..., gymnasium.Env], num_envs: int, seeds: Sequence[int], *,
        name: str, frame_skip: int = 1, protocol: str = "", max_episode_steps: int | None = None,
        env_index: int | None = None, drop: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(factory, num_envs, seeds, name, env_index)
        try:
            self._read_spaces(frame_skip, protocol or name, max_episode_steps, drop)
        except BaseException:
            self.close()
            raise
        self._castable: set[tuple[str, np.dtype]] = set()  # dtypes that were already checked
        self.unread_mask = ""  # where the environment says which actions are allowed, if that place is not read
        self._spaces: dict[int, tuple[Any, Any]] = {}  # of every environment, as they were found equal to the spec's
        self._over = [False] * num_envs  # the next step resets this one
        self.tally = EpisodeTally(num_envs)

    def _read_spaces(self, frame_skip: int, protocol: str, limit: int | None, drop: Sequence[str]) -> None:
        """Build the spec and the arrays of observations."""
        env, registered = self.envs[0], self.envs[0].spec
        if not all(
            same_space(e.observation_space, env.observation_space) and same_space(e.action_space, env.action_space)
            for e in self.envs
        ):
            raise EnvError(f"{self.name}: environments of one group must have the same spaces")
        self.observation_space, self.action_space = env.observation_space, env.action_space
        kept = kept_leaves(self.name, env.observation_space, drop)
        readers, omitted = obs_leaves(self.name, kept)
        self._actions = ActionSpace(self.name, env.action_space)
        obs, actions = {n: reader.leaf for n, reader in readers.items()}, self._actions.leaves
        limit = limit or episode_limit(env)
        goal = registered.reward_threshold if registered else None
        mask = mask_leaf(self.name, obs, actions)
        self.spec = EnvSpec(self.name, obs, actions, frame_skip, limit, protocol, goal, mask, omitted=omitted)
        self.obs = {n: np.zeros((self.num_envs, *leaf.shape), leaf.dtype) for n, leaf in obs.items()}
        self._tuples = tuple(tuples_of(env.observation_space))
        self._leaves = [(n, self.obs[n], reader.leaf.shape, reader) for n, reader in readers.items()]

    def _write(self, env: int, obs: Any) -> None:
        """Copy one observation into the group's arrays. Raises ValueError for a wrong shape or dtype."""
        if self._tuples:
            check_tuples(obs, self._tuples)
        for name, array, shape, read in self._leaves:
            value = np.asarray(read(obs))
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, but its space has {shape}")
            unknown = value.dtype is not array.dtype and (name, value.dtype) not in self._castable
            if unknown and always_fits(name, value, array.dtype):
                self._castable.add((name, value.dtype))
            array[env] = value

    def _take_reset(self, env: int, result: Any) -> None:
        """Take what `reset` returned. Raises ValueError if the spaces are no longer those of the spec."""
        instance = self.envs[env]
        now = instance.observation_space, instance.action_space
        if not all(a is b for a, b in zip(now, self._spaces.get(env, (None, None)), strict=True)):
            before = self.observation_space, self.action_space
            for kind, space, built in zip(("observation", "action"), now, before, strict=True):
                if not same_space(space, built):
                    raise ValueError(
                        f"the {kind} space is {one_line_space(space)}, and was {one_line_space(built)} when it was "
                        "built; a space must not change: set it in __init__, large enough for everything that comes"
                    )
            self._spaces[env] = now
        self._write(env, reset_obs(result, self.observation_space))

    def _first_reset(self, env: int, seed: int | None) -> None:
        with self._building(env):
            result = self.envs[env].reset(seed=seed)
        self._take_reset(env, result)
        if finite_rows({n: a[env : env + 1] for n, a in self.obs.items()}, np.zeros(1)) is not None:
            raise self._not_finite(env, np.zeros(self.num_envs), "reset")
        self.unread_mask = "" if self.spec.mask else unread_mask(self.envs[env], result[1])
        self._over[env] = False
        self.tally.drop(env)

    def reset(self) -> dict[str, np.ndarray]:
        """Reset every environment. Seeds are used in the first call only."""
        self._reset_all()
        return self.obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every environment; see the table in `sfactory.envs.spec`."""
        flags = np.zeros(self.num_envs, bool)
        rows, illegal = self._actions.rows(action, flags), flags.tolist()
        reward, valid = np.zeros(self.num_envs, np.float32), np.ones(self.num_envs, bool)
        terminated, truncated = ~valid, ~valid
        errors: dict[int, Exception] = {}
        at, over, write, false = self.at, self._over, self._write, np.False_
        infos: dict[int, Any] = {}  # of the episodes that end
        for env, (instance, row) in enumerate(zip(self.envs, rows, strict=True)):
            at[0] = env
            try:
                if over[env]:
                    valid[env] = False
                    self._take_reset(env, instance.reset())
                    continue
                if illegal[env]:
                    errors[env] = ValueError(f"illegal action {[leaf[env].tolist() for leaf in action.values()]}")
                    continue
                result = instance.step(row)
                try:
                    obs, env_reward, ended, cut, info = result
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
                        infos[env] = info
                write(env, obs)
                if env in infos:
                    self._check_end(env, infos[env], cut=bool(truncated[env]))
            except Exception as error:
                errors[env] = self._reported(env, error, "reset" if over[env] else "step")
        if (finite := finite_rows(self.obs, reward)) is not None:
            for env in np.flatnonzero(~finite).tolist():
                errors.setdefault(env, self._not_finite(env, reward, "reset" if self._over[env] else "step"))
        faults = []
        for env in sorted(errors):
            failure = errors[env]
            raised = valid[env] and failure.__traceback__ is not None and not raised_by_sfactory(failure)
            called = rows[env] if raised else None  # the action may be what the environment cannot take
            faults.append(env_fault(env, failure, self.seeds[env], int(self.tally.lengths[env]), called))
            self._replace(env)
            valid[env] = terminated[env] = truncated[env] = False
            reward[env] = 0.0
        self.tally.count(reward, valid)
        ends = terminated | truncated
        self._over = ends.tolist()
        episodes = self.tally.end(np.flatnonzero(ends).tolist())
        found = tuple((e.env, numbers) for e in episodes if (numbers := info_numbers(infos[e.env], self.info_keys)))
        return Step(self.obs, reward, terminated, truncated, valid, ~valid, episodes, tuple(faults), found)

    def _check_end(self, env: int, info: Any, cut: bool) -> None:
        """Raise ValueError if what `info` says of the end of an episode differs from what `step` returned."""
        check_time_limit(info, cut)
        key, last = final_obs(info)
        if key and not self._is_obs(env, last):
            raise ValueError(
                f"step() returned another observation than info[{key!r}] at the end of an episode: it resets the "
                "environment itself; return the last observation there, and leave the reset to the caller"
            )

    def _is_obs(self, env: int, obs: Any) -> bool:
        """Whether an observation is the newest one of an environment."""
        try:
            return all(
                np.array_equal(np.asarray(read(obs)).astype(array.dtype), array[env])
                for _, array, _, read in self._leaves
            )
        except Exception:  # it is no observation at all
            return False

    def _not_finite(self, env: int, reward: np.ndarray, method: str) -> ValueError:
        """The error for numbers that are not finite: which ones, and the method that returned them."""
        arrays = {**{name: array[env] for name, array in self.obs.items()}, "the reward": reward[env]}
        names = [name for name, value in arrays.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
        place = self._place(env, method)
        rest = f", returned by {method}, {place}" if place else ""
        wide = {name for name, _, space in space_leaves(self.observation_space, "obs") if space.dtype == np.float64}
        if any(name in wide and not np.isnan(arrays[name]).any() for name in names):
            rest += "; observations are kept as float32, which ends at 3.4e38"
        return ValueError(f"NaN or infinity in {' and '.join(names)}{rest}")

    def render(self, env: int) -> np.ndarray:
        """Render one environment, uint8 [H, W, 3]. Raises EnvError if that is not possible."""
        try:
            picture = np.asarray(self.envs[env].render())
        except Exception as error:
            raise render_error(self.name, error) from error
        frame = to_frame(picture)
        if frame is None:
            mode = self.envs[env].render_mode
            hint = "; take render_mode in __init__ and keep it as self.render_mode" if mode is None else ""
            raise NoPictures(f"{self.name}: no video, because render() in mode {mode} returns no image [H, W, 3]{hint}")
        return frame

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


def episode_limit(env: gymnasium.Env) -> int | None:
    """Steps after which an episode is truncated: the smallest limit of the TimeLimit wrappers; None without one."""
    import gymnasium

    limits = [env.spec.max_episode_steps] if env.spec else []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return min((limit for limit in limits if limit), default=None)
