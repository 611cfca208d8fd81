"""Group of MuJoCo tasks that share one model: HalfCheetah, Hopper, Walker2d, Swimmer, Ant, Humanoid (v5).

A step of one of the first four is 25 us of physics, but 38 us with 64 separate models, which do not fit in the cache
(benchmarks/LOG.md). Here one `MjData` steps all environments in turn from rows of states, which stay in the cache, and
observations, rewards and ends are computed for all rows at once. Results equal gymnasium's to the last bit
(tests/envs/test_mujoco_group.py): models, settings, resets and random streams are those of an environment built by
`gymnasium.make`; only `advance` and its helpers are written again.

Observations and rewards of the first four depend on positions and velocities only. Those of Ant and Humanoid need body
positions and contact forces too, which are not part of the state, so their groups keep them beside it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.humanoid_v5 import mass_center

from sfactory.envs import EnvError, EnvFault, Step, env_fault, finite_rows, next_seed
from sfactory.envs.saved_state import decode, encode
from sfactory.envs.vector_adapter import Native, VectorGroup

STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


class MujocoGroup(VectorGroup):
    """Group of E environments like `env`, which it takes over. Each has its own random stream and step counter."""

    KEPT: ClassVar[tuple[str, ...]] = ()
    """Fields of the data that are kept beside the state."""

    def __init__(self, env: gymnasium.Env, task: Task, num_envs: int, seeds: Sequence[int], protocol: str) -> None:
        self._made, self._task = env, task
        own: Any = env.unwrapped
        self._own, self._model, self._data = own, own.model, own.data
        limit = env.get_wrapper_attr("_max_episode_steps") if env.has_wrapper_attr("_max_episode_steps") else None
        name, goal = (env.spec.id, env.spec.reward_threshold) if env.spec else (type(own).__name__, None)
        super().__init__(
            f"gymnasium/{name}", env.observation_space, env.action_space, num_envs, seeds,
            protocol=protocol, max_episode_steps=limit, reward_threshold=goal,
        )  # fmt: skip
        self._limit = limit or np.iinfo(np.int64).max
        self._states = np.zeros((num_envs, mujoco.mj_stateSize(self._model, STATE)))
        self._rows = list(self._states)  # views, made once
        kinds = mujoco.mjtState
        self._qpos, self._qvel, self._ctrl = (
            self._columns(kind) for kind in (kinds.mjSTATE_QPOS, kinds.mjSTATE_QVEL, kinds.mjSTATE_CTRL)
        )
        fields = {name: getattr(self._data, name).reshape(-1) for name in self.KEPT}  # views of the data
        self._kept = {name: np.zeros((num_envs, field.size)) for name, field in fields.items()}
        self._fields = [(self._kept[name], field) for name, field in fields.items()]
        self._streams: list[Any] = [None] * num_envs
        self._steps = np.zeros(num_envs, np.int64)  # of the episode
        self._over = np.zeros(num_envs, bool)  # the next step resets
        self._failed: dict[int, Exception] = {}  # in the physics of this step

    def _columns(self, kind: Any) -> slice:
        """Columns of one part of the state; parts are ordered by their bits."""
        first = mujoco.mj_stateSize(self._model, STATE & (int(kind) - 1))
        return slice(first, first + mujoco.mj_stateSize(self._model, int(kind)))

    # -- episodes ----------------------------------------------------------------------------------------------

    def begin(self) -> np.ndarray:
        for env in range(self.num_envs):
            self._begin_one(env)
        return self._observed()

    def _begin_one(self, env: int) -> None:
        """Reset one environment with gymnasium's own reset; its random stream continues."""
        if self._streams[env] is None:
            self._made.reset(seed=self.seeds[env])
            self._streams[env] = self._own.np_random
        else:
            self._own.np_random = self._streams[env]
            self._made.reset()
        mujoco.mj_getState(self._model, self._data, self._rows[env], STATE)
        self._keep(env)
        self._steps[env], self._over[env] = 0, False

    def advance(self, action: np.ndarray) -> Native:
        """Step every environment whose episode is not over, and reset the others."""
        states, rows, reset = self._states, self._rows, self._over.copy()
        model, data, substeps = self._model, self._data, self._own.frame_skip
        before = self._place().copy()
        states[:, self._ctrl] = action
        set_state, simulate, get_state = mujoco.mj_setState, mujoco.mj_step, mujoco.mj_getState
        kept = bool(self.KEPT)
        self._failed.clear()
        for env in np.flatnonzero(~reset).tolist():
            row = rows[env]
            try:
                set_state(model, data, row, STATE)
                simulate(model, data, substeps)
                get_state(model, data, row, STATE)
                if kept:
                    mujoco.mj_rnePostConstraint(model, data)  # contact forces, as gymnasium asks for them
                    self._keep(env)
            except Exception as error:  # for example mujoco.FatalError: too many contacts
                self._failed[env] = error
        healthy = self._healthy()
        reward = self._reward(before, action, healthy)
        terminated = ~(healthy | reset) if getattr(self._own, "_terminate_when_unhealthy", False) else self._never
        self._steps += 1
        truncated = (self._steps >= self._limit) & ~reset
        for env in np.flatnonzero(reset).tolist():
            self._begin_one(env)
        reward[reset] = 0.0
        self._over = terminated | truncated
        return Native(self._observed(), reward, terminated, truncated, reset, self._over, self._never)

    def _keep(self, env: int) -> None:
        """Copy what observations and rewards need beside the state; nothing in these tasks."""

    def _place(self) -> np.ndarray:
        """The coordinate whose speed is rewarded, [E]."""
        return self._states[:, self._qpos.start]

    def _reward(self, before: np.ndarray, action: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """Forward reward plus healthy reward minus costs, [E]."""
        own = self._own
        reward = own._forward_reward_weight * ((self._place() - before) / own.dt)
        if hasattr(own, "_healthy_reward"):
            reward = reward + healthy * own._healthy_reward
        return np.asarray(reward - self._costs(action))

    def _costs(self, action: np.ndarray) -> np.ndarray:
        """Control cost, [E]."""
        return np.asarray(self._own._ctrl_cost_weight * np.sum(np.square(action), axis=1))

    def _healthy(self) -> np.ndarray:
        """Whether height, angle and (Hopper) the other coordinates are within their bounds, [E] bool."""
        own, states = self._own, self._states
        healthy = np.ones(self.num_envs, bool)
        for name, column in (("_healthy_z_range", 1), ("_healthy_angle_range", 2)):
            if hasattr(own, name):
                low, high = getattr(own, name)
                value = states[:, self._qpos.start + column]
                healthy &= (low < value) & (value < high)
        if hasattr(own, "_healthy_state_range"):
            low, high = own._healthy_state_range
            rest = states[:, self._qpos.start + 2 : self._qvel.stop]
            healthy &= ((low < rest) & (rest < high)).all(axis=1)
        return healthy

    def _observed(self) -> np.ndarray:
        """Observations, [E, D] float32."""
        hidden = self._task.hidden if self._own._exclude_current_positions_from_observation else 0
        obs = self._states[:, self._qpos.start + hidden : self._qvel.stop].astype(np.float32)
        if self._task.clipped:
            velocities = obs[:, self._qpos.stop - self._qpos.start - hidden :]
            np.clip(velocities, -10, 10, out=velocities)
        return obs

    # -- Group protocol --------------------------------------------------------------------------------------

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every environment. A failed one is replaced alone, because states are separate here."""
        native_action, illegal = self._native_action(action)
        illegal &= ~self._over  # a reset step ignores its action
        actions = action["action"].tolist() if illegal.any() else []
        native_action[illegal] = 0.0
        native = self.advance(native_action)
        obs, reward = self._read(native.obs), np.asarray(native.reward, np.float32)
        finite = finite_rows(obs, reward)
        bad = illegal.copy() if finite is None else illegal | ~finite
        bad[list(self._failed)] = True
        valid, faults = ~native.reset, []
        if bad.any():
            terminated, truncated = native.terminated & ~bad, native.truncated & ~bad
            native = native._replace(terminated=terminated, truncated=truncated, over=native.over & ~bad)
            valid, reward = valid & ~bad, np.where(bad, np.float32(0), reward)
            for env in np.flatnonzero(bad).tolist():
                reason = "NaN or infinity in the observation or reward"
                if illegal[env]:
                    reason = f"illegal action {actions[env]}"
                faults.append(self._replace(env, self._failed.get(env) or ValueError(reason)))
            obs = self._read(self._observed())
        self.tally.count(reward, valid)
        episodes = self.tally.end(np.flatnonzero(native.over).tolist())
        return Step(obs, reward, native.terminated, native.truncated, valid, ~valid, episodes, tuple(faults))

    def _replace(self, env: int, error: Exception) -> EnvFault:
        """Reset a failed environment with a new seed and return the report."""
        fault = env_fault(env, error, self.seeds[env], int(self.tally.lengths[env]))
        self.seeds[env], self._streams[env] = next_seed(self.seeds[env]), None
        self._begin_one(env)
        self.tally.drop(env)
        return fault

    def snapshot(self) -> Any:
        """Return the state of all environments as JSON."""
        clocks = [self._steps, self._over, self.seeds, self.tally.returns, self.tally.lengths]
        return encode([self._states, self._streams, *clocks, *self._kept.values()])

    def restore(self, state: Any) -> None:
        """Load the state of `snapshot` into a group that was built with the same settings."""
        if isinstance(state, dict):
            raise EnvError(f"{self.spec.name}: saved by an earlier version, which stepped single environments")
        self.reset()
        states, self._streams, self._steps, self._over, self.seeds, returns, lengths, *kept = decode(state)
        self._states[...] = states
        for rows, saved in zip(self._kept.values(), kept, strict=True):
            rows[...] = saved
        self.tally.returns, self.tally.lengths = returns, lengths

    def close(self) -> None:
        self._made.close()


class BodyGroup(MujocoGroup):
    """Tasks in space: positions and velocities are followed by quantities of the bodies."""

    def _keep(self, env: int) -> None:
        for rows, field in self._fields:
            rows[env] = field

    @abstractmethod
    def _bodies(self) -> list[np.ndarray]:
        """Observed quantities of the bodies, each [E, n]."""

    def _observed(self) -> np.ndarray:
        """Observations, [E, D] float32."""
        return np.concatenate([super()._observed(), *self._bodies()], axis=1, dtype=np.float32, casting="same_kind")


class AntGroup(BodyGroup):
    """Ant: contact forces, without those on the world."""

    KEPT = ("cfrc_ext", "xpos")

    def _place(self) -> np.ndarray:
        return self._kept["xpos"][:, 3 * self._data.body(self._own._main_body).id]

    def _forces(self) -> np.ndarray:
        return np.clip(self._kept["cfrc_ext"], *self._own._contact_force_range)

    def _costs(self, action: np.ndarray) -> np.ndarray:
        """Control cost plus contact cost, [E]."""
        contact = self._own._contact_cost_weight * np.sum(np.square(self._forces()), axis=1)
        return np.asarray(super()._costs(action) + contact)

    def _healthy(self) -> np.ndarray:
        """Whether the state is finite and the height within its bounds, [E] bool."""
        low, high = self._own._healthy_z_range
        coordinates = self._states[:, self._qpos.start : self._qvel.stop]
        height = coordinates[:, 2]
        return np.isfinite(coordinates).all(axis=1) & (low <= height) & (height <= high)

    def _bodies(self) -> list[np.ndarray]:
        return [self._forces()[:, 6:]] if self._own._include_cfrc_ext_in_observation else []


class HumanoidGroup(BodyGroup):
    """Humanoid: inertia and velocity of the bodies, forces of the actuators and of contacts, without the world's."""

    KEPT = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    OBSERVED = (("cinert", 10), ("cvel", 6), ("qfrc_actuator", 6), ("cfrc_ext", 6))
    """Name and number of the leading values that are not observed."""

    def __init__(self, env: gymnasium.Env, task: Task, num_envs: int, seeds: Sequence[int], protocol: str) -> None:
        super().__init__(env, task, num_envs, seeds, protocol)
        self._kept["mass_center"] = np.zeros((num_envs, 2))

    def _keep(self, env: int) -> None:
        super()._keep(env)
        self._kept["mass_center"][env] = mass_center(self._model, self._data)

    def _place(self) -> np.ndarray:
        return self._kept["mass_center"][:, 0]

    def _costs(self, action: np.ndarray) -> np.ndarray:
        """Control cost plus contact cost, [E]."""
        own = self._own
        contact = own._contact_cost_weight * np.sum(np.square(self._kept["cfrc_ext"]), axis=1)
        return np.asarray(super()._costs(self._states[:, self._ctrl]) + np.clip(contact, *own._contact_cost_range))

    def _healthy(self) -> np.ndarray:
        """Whether the height is within its bounds, [E] bool."""
        low, high = self._own._healthy_z_range
        height = self._states[:, self._qpos.start + 2]
        return np.asarray((low < height) & (height < high))

    def _bodies(self) -> list[np.ndarray]:
        return [
            self._kept[name][:, first:]
            for name, first in self.OBSERVED
            if getattr(self._own, f"_include_{name}_in_observation") is True
        ]


class Task(NamedTuple):
    """Differences between the tasks."""

    hidden: int
    """Number of leading positions that are not observed by default."""
    clipped: bool = False
    """Observed velocities are clipped to +-10."""
    group: type[MujocoGroup] = MujocoGroup


PACKAGE = "gymnasium.envs.mujoco."
TASKS = {
    f"{PACKAGE}half_cheetah_v5.HalfCheetahEnv": Task(1),
    f"{PACKAGE}hopper_v5.HopperEnv": Task(1, clipped=True),
    f"{PACKAGE}walker2d_v5.Walker2dEnv": Task(1, clipped=True),
    f"{PACKAGE}swimmer_v5.SwimmerEnv": Task(2),
    f"{PACKAGE}ant_v5.AntEnv": Task(2, group=AntGroup),
    f"{PACKAGE}humanoid_v5.HumanoidEnv": Task(2, group=HumanoidGroup),
}


def task_of(env: gymnasium.Env) -> Task | None:
    """Return the task of an environment in gymnasium's default wrappers, or None if it is not supported."""
    while isinstance(env, gymnasium.Wrapper):
        if type(env) not in (gymnasium.wrappers.TimeLimit, gymnasium.wrappers.OrderEnforcing):
            return None
        env = env.env
    return TASKS.get(f"{type(env).__module__}.{type(env).__qualname__}")
