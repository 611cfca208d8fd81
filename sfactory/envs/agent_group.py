"""Adapter from environments with several agents (PettingZoo's parallel API) to a Group: every agent is a row.

E environments with A agents are E x A rows; row `env * A + agent`. One policy acts for all agents. A row has a step of
the environment whether its agent acts or not:

    agent                    acting   valid   first
    acts                       1        1       0
    waits for its turn         0        0       0     rewards and an end may arrive; they belong to its last action
    is not there               0        0       1     not born yet, or its own episode is over
    the environment is reset   0        0       1     as in `sfactory.envs.spec`

`acting`, a leaf of the observation, and `first` describe the observation, `valid` the step; for their use see
`sfactory.learning.own_time`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sfactory.envs.agent_spaces import AgentSpaces
from sfactory.envs.env_copies import EnvCopies
from sfactory.envs.frames import render_error, to_frame
from sfactory.envs.spec import EnvFault, EnvSpec, Episode, Leaf, Step, env_fault, finite_rows, info_numbers
from sfactory.envs.step_values import PLAIN_NUMBERS, as_flag, as_reward, check_time_limit
from sfactory.errors import EnvError, NoPictures, raised_by_sfactory

ACTING = "acting"
"""Leaf of the observation that says whether the agent chooses an action."""
LIMITS = ("max_cycles", "max_steps")
"""Names, in PettingZoo's environments, of the argument that limits the steps of an episode."""


class AgentGroup(EnvCopies):
    """Group of environments with several agents.

    factory, env_index: see `EnvCopies`; the factory returns a `pettingzoo.ParallelEnv`.
    drop: leaves of the observation that are left out. agent_id: append the number of the agent to the observation.
    pad_spaces: agents may have spaces of different sizes; see `AgentSpaces`.

    Failures are those of `EnvGroup`, and concern all agents of an environment.
    """

    def __init__(
        self, factory: Callable[..., Any], num_envs: int, seeds: Sequence[int], *, name: str, protocol: str = "",
        max_episode_steps: int | None = None, env_index: int | None = None, drop: Sequence[str] = (),
        agent_id: bool = False, pad_spaces: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(factory, num_envs, seeds, name, env_index)
        try:
            self.spaces = AgentSpaces(name, self.envs[0], drop, agent_id, pad_spaces, seeds[0])
            if any(not self.spaces.same_as(env) for env in self.envs[1:]):
                raise EnvError(f"{name}: environments of one group must have the same agents and spaces")
        except BaseException:
            self.close()
            raise
        self.agents, self._known = self.spaces.agents, set(self.spaces.agents)
        self.observation_space, self.action_space = self.spaces.observation_space, self.spaces.action_space
        obs, agents = self.spaces.obs | {ACTING: Leaf((), "bool")}, tuple(map(str, self.agents))
        self.spec = EnvSpec(
            name, obs, self.spaces.actions, max_episode_steps=max_episode_steps, protocol=protocol or name,
            mask=self.spaces.mask, omitted=self.spaces.omitted, agents=agents, acting=ACTING,
        )  # fmt: skip
        rows = num_envs * len(self.agents)
        self.obs = {n: np.zeros((rows, *leaf.shape), leaf.dtype) for n, leaf in self.spec.obs.items()}
        self.spaces.fill(self.obs)
        self.acting = self.obs[ACTING]  # rows whose agent chooses an action for the newest observation
        self._present = np.zeros((num_envs, len(self.agents)), bool)  # agents whose own episode is under way
        self._took_part = np.zeros((num_envs, len(self.agents)), bool)  # since the environment was reset
        self._over = [False] * num_envs  # the next step resets this one
        self._returns, self._lengths = np.zeros((num_envs, len(self.agents))), np.zeros(num_envs, np.int64)

    def reset(self) -> dict[str, np.ndarray]:
        """Reset every environment. Seeds are used in the first call only."""
        self._reset_all()
        return self.obs

    def _first_reset(self, env: int, seed: int | None) -> None:
        with self._building(env):
            result = self.envs[env].reset(seed=seed)
        self._take_reset(env, result)
        start, stop = self._rows(env)
        if finite_rows({name: array[start:stop] for name, array in self.obs.items()}, np.zeros(1)) is not None:
            raise self._not_finite(env, "reset")

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every environment; see the table at the top of this file."""
        rows = len(self.acting)
        choices, illegal = self.spaces.choices(action)
        reward, valid = np.zeros(rows, np.float32), self.acting.copy()
        terminated, truncated = np.zeros(rows, bool), np.zeros(rows, bool)
        first = ~self._present.ravel()  # agents that were not there; all of them, where the environment is reset
        errors: dict[int, Exception] = {}
        infos: dict[int, Any] = {}
        called = ["reset" if over else "step" for over in self._over]
        acts: dict[int, dict[Any, Any]] = {}
        for env, instance in enumerate(self.envs):
            self.at[0] = env
            own = slice(*self._rows(env))
            try:
                if self._over[env]:
                    self._take_reset(env, instance.reset())
                    continue
                if (illegal[own] & self.acting[own]).any():
                    errors[env] = ValueError(f"illegal action {[leaf[own].tolist() for leaf in action.values()]}")
                    continue
                acts[env] = {agent: choices[own.start + i] for i, agent in self._acting_agents(env)}
                result = instance.step(acts[env])
                infos[env] = self._take_step(env, result, reward[own], terminated[own], truncated[own])
            except Exception as error:
                errors[env] = self._reported(env, error, called[env])
        if (finite := finite_rows(self.obs, reward)) is not None:
            for env in sorted({row // len(self.agents) for row in np.flatnonzero(~finite).tolist()}):
                errors.setdefault(env, self._not_finite(env, called[env]))
        faults = [self._fail(env, error, acts.get(env)) for env, error in sorted(errors.items())]
        for env in errors:
            own = slice(*self._rows(env))
            valid[own] = terminated[own] = truncated[own] = False
            reward[own], first[own] = 0.0, True
        episodes, found = self._count(reward, infos, errors)
        return Step(self.obs, reward, terminated, truncated, valid, first, episodes, tuple(faults), found)

    def render(self, env: int) -> np.ndarray:
        """Render one environment, uint8 [H, W, 3]. Raises EnvError if that is not possible."""
        try:
            frame = to_frame(np.asarray(self.envs[env].render()))
        except Exception as error:
            raise render_error(self.name, error) from error
        if frame is None:
            raise NoPictures(f"{self.name}: no video, because render() returns no image [H, W, 3]")
        return frame

    @property
    def render_fps(self) -> float:
        """Steps per second at natural speed; 30 if the environment does not define it."""
        return float(self.envs[0].metadata.get("render_fps") or 30)

    # -- one environment -----------------------------------------------------------------------------------------

    def _rows(self, env: int) -> tuple[int, int]:
        """First row of an environment, and the one after its last."""
        return env * len(self.agents), (env + 1) * len(self.agents)

    def _acting_agents(self, env: int) -> list[tuple[int, Any]]:
        """Number and name of the agents that choose an action."""
        start, stop = self._rows(env)
        return [(i, self.agents[i]) for i in np.flatnonzero(self.acting[start:stop]).tolist()]

    def _take_reset(self, env: int, result: Any) -> None:
        """Take what `reset` returned."""
        if not (isinstance(result, tuple | list) and len(result) == 2 and all(isinstance(x, Mapping) for x in result)):
            raise ValueError("reset() must return two dicts by agent: observations, infos")
        self.spaces.check(env, self.envs[env])
        self._over[env] = False
        self._present[env] = self._took_part[env] = False
        self._returns[env], self._lengths[env] = 0.0, 0
        obs, infos = result
        self._enter(env, self._agents_of(self.envs[env]), obs, infos, "reset")
        if self._over[env]:
            raise ValueError("reset() left no agent in the environment: agents is empty")

    def _take_step(
        self, env: int, result: Any, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> Any:
        """Take what `step` returned into the rows of an environment, [A]; return the infos."""
        if not (isinstance(result, tuple | list) and len(result) == 5 and all(isinstance(x, Mapping) for x in result)):
            raise ValueError(
                "step() must return five dicts by agent: observations, rewards, terminations, truncations, infos"
            )
        obs, rewards, ended, cut, infos = result
        there = self._agents_of(self.envs[env])
        present, start, agents = self._present[env], self._rows(env)[0], self.agents
        write, arrays, false = self.spaces.write, self.obs, np.False_
        for i in np.flatnonzero(present).tolist():
            agent = agents[i]
            value, over, stopped = rewards.get(agent), ended.get(agent, False), cut.get(agent, False)
            if value is None and agent not in rewards:
                raise ValueError(f"step() returned no reward of {agent}")
            reward[i] = value if type(value) in PLAIN_NUMBERS else as_reward(value)
            if (over is not False and over is not false) or (stopped is not False and stopped is not false):
                terminated[i], truncated[i] = as_flag(over, "terminated"), as_flag(stopped, "truncated")
                present[i] = not (terminated[i] or truncated[i])
                if terminated[i]:
                    check_time_limit(infos.get(agent), bool(truncated[i]))
            if agent in obs:
                write(arrays, start, i, obs[agent], infos.get(agent))
            elif present[i] or truncated[i]:
                raise ValueError(f"step() returned no observation of {agent}")
        self._enter(env, there, obs, infos, "step")
        return infos

    def _enter(self, env: int, there: set[Any], obs: Mapping[Any, Any], infos: Mapping[Any, Any], call: str) -> None:
        """Take the agents that were not there, and decide whose turn it is.

        there: agents of the environment. call: what was called, for messages.
        """
        instance, present = self.envs[env], self._present[env]
        start, stop = self._rows(env)
        # Agents that have not been there since the reset: an agent comes once in an episode of the environment.
        for i in np.flatnonzero(~(present | self._took_part[env])).tolist():
            agent = self.agents[i]
            if agent in there:
                if agent not in obs:
                    raise ValueError(f"{call}() returned no observation of {agent}, which is among the agents")
                self.spaces.write(self.obs, start, i, obs[agent], infos.get(agent))
                present[i] = True
        left = [str(self.agents[i]) for i in np.flatnonzero(present).tolist() if self.agents[i] not in there]
        if left:
            raise ValueError(f"{', '.join(left)} left the environment without being terminated or truncated")
        self._took_part[env] |= present
        self._over[env] = not present.any()
        self.acting[start:stop] = present
        if (turn := turn_of(instance)) is not None:
            self.acting[start:stop] &= [agent == turn for agent in self.agents]

    def _agents_of(self, instance: Any) -> set[Any]:
        """The agents that an environment has now. Raises ValueError if these are not known."""
        agents = instance.agents
        if not isinstance(agents, Iterable):
            raise ValueError(f"agents is {agents!r}, it must be the list of the agents that are there")
        there = set(agents)
        if not there <= self._known:
            unknown = ", ".join(sorted(map(str, there - self._known)))
            raise ValueError(f"agents has {unknown}, which possible_agents did not name when the environment was built")
        return there

    def _not_finite(self, env: int, method: str) -> ValueError:
        """The error for numbers that are not finite, and the method that returned them."""
        place = self._place(env, method)
        return ValueError(f"NaN or infinity in an observation or reward{f'; see {method}, {place}' if place else ''}")

    def _fail(self, env: int, error: Exception, acts: Mapping[Any, Any] | None) -> EnvFault:
        """Replace an environment that failed; return the report. acts: actions by agent, None at a reset."""
        raised = error.__traceback__ is not None and not raised_by_sfactory(error)
        fault = env_fault(env, error, self.seeds[env], int(self._lengths[env]), acts if raised else None)
        self._replace(env)
        return fault

    def _count(
        self, reward: np.ndarray, infos: Mapping[int, Any], errors: Mapping[int, Exception]
    ) -> tuple[tuple[Episode, ...], tuple[tuple[int, dict[str, float]], ...]]:
        """Add a step to the returns; return the episodes that it ends, and their numbers."""
        self._returns += reward.reshape(self.num_envs, -1)
        episodes, found = [], []
        for env in infos:
            if env in errors:
                continue
            self._lengths[env] += 1
            if self._over[env]:
                took_part = self._took_part[env]
                returns = {agent: float(self._returns[env, i]) for i, agent in enumerate(self.agents) if took_part[i]}
                episodes.append(Episode(env, float(np.mean(list(returns.values()))), int(self._lengths[env])))
                numbers = {f"return_{agent}": value for agent, value in returns.items()}
                found.append((env, numbers | _mean_numbers(infos[env], self.info_keys)))
        return tuple(episodes), tuple(found)


def limit_of(settings: Mapping[str, Any]) -> int | None:
    """The steps after which an episode is truncated, if the settings say so."""
    return next((int(settings[word]) for word in LIMITS if settings.get(word)), None)


def has_agents(env: Any) -> bool:
    """Whether an object is an environment with several agents: a ParallelEnv or AECEnv of PettingZoo."""
    pettingzoo = sys.modules.get("pettingzoo")  # a class that inherits from one of them has imported it
    return pettingzoo is not None and isinstance(env, (pettingzoo.ParallelEnv, pettingzoo.AECEnv))


def as_parallel(env: Any) -> Any:
    """Return an environment with the parallel API; others are converted by PettingZoo."""
    from pettingzoo import AECEnv
    from pettingzoo.utils.conversions import aec_to_parallel, turn_based_aec_to_parallel

    if not isinstance(env, AECEnv):
        return env
    together = env.metadata.get("is_parallelizable", False)
    return aec_to_parallel(env) if together else turn_based_aec_to_parallel(env)


def unchecked(env: Any) -> Any:
    """Return a converted environment without PettingZoo's wrappers that only check how it is used.

    They are a quarter of the time of a step of simple_spread. `AgentGroup` calls in the right order and checks actions.
    """
    from pettingzoo.utils.conversions import aec_to_parallel_wrapper, turn_based_aec_to_parallel_wrapper
    from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, OrderEnforcingWrapper

    if isinstance(env, aec_to_parallel_wrapper | turn_based_aec_to_parallel_wrapper):
        while type(env.aec_env) in (AssertOutOfBoundsWrapper, OrderEnforcingWrapper):
            env.aec_env = env.aec_env.env
    return env


def turn_of(env: Any) -> Any:
    """The agent whose turn it is, of a turn-based game in PettingZoo's conversion; None if agents act together."""
    conversions = sys.modules.get("pettingzoo.utils.conversions")
    while conversions is not None and env is not None:
        if isinstance(env, conversions.turn_based_aec_to_parallel_wrapper):
            return env.aec_env.agent_selection if env.aec_env.agents else None
        env = getattr(env, "env", None)
    return None


def _mean_numbers(infos: Mapping[Any, Any], keys: Sequence[str]) -> dict[str, float]:
    """Means over the agents of the numbers in their infos. keys: see `info_numbers`."""
    values: dict[str, list[float]] = {}
    for info in infos.values():
        for name, value in info_numbers(info, keys).items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}
