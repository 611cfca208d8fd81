"""The 1,651 tasks of envpool, in C++: `envpool/Pong-v5`, `envpool/HalfCheetah-v5`, `envpool/D1Basic-v1`.

Settings are passed to `envpool.make_gymnasium`, except those that would change the reported returns. The `-v5` Atari
tasks have no sticky actions by default. Rewards are envpool's: the last reward of a VizDoom level is 0, so tasks that
give a reward for the event that ends them give almost none (`Basic-v1`: 4 of 46 kills).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sfactory_envs.envpool_games import GameGroup, is_game
from sfactory_envs.envpool_games import raw_loop as games_loop

from sfactory.envs import NO_SETTINGS, EnvError, Group, Settings, missing_package, suggest
from sfactory.envs.vector_adapter import Native, VectorGroup

REFUSED = {
    "episodic_life": "ends the reported game at each lost life; use atari/ with protocol dqn",
    "reward_clip": "also clips the reported returns; use env.reward-clip",
    "render_mode": "is not supported: there are no videos of envpool tasks",
}
OURS = {"num_envs", "batch_size", "num_threads", "max_num_players", "seed", "env_seed", "gym_reset_return_info"}
EXTRA = {"threads", "from_pixels", "render_width", "render_height", "render_camera_id"}  # not in a task's config
NO_LIMIT = 2**31 - 1


def ids() -> list[str]:
    """List every task; those of Procgen also need Qt 5."""
    try:
        import envpool
    except ModuleNotFoundError as error:
        raise missing_package("envpool", "envpool", "envpool") from error
    return envpool.list_all_envs()


def checked(task: str, settings: Settings) -> dict[str, Any]:
    """Return the settings of a task for `envpool.make_gymnasium`. Raises EnvError for an unknown task or setting."""
    import envpool

    name, tasks = f"envpool/{task}", envpool.list_all_envs()
    if task not in tasks:
        raise EnvError(f"envpool has no task {task!r}{suggest(task, tasks)}")
    fields = set(envpool.make_spec(task).config._fields)
    known = (fields | EXTRA) - OURS - REFUSED.keys()
    for setting, value in settings.items():
        if setting in REFUSED and value:
            raise EnvError(f"{name}: {setting} {REFUSED[setting]}")
        if setting not in known | REFUSED.keys():
            raise EnvError(f"{name}: no such setting {setting!r}{suggest(setting, known)}")
    if "use_combined_action" in fields:  # VizDoom; without it, an action is one float per button
        return {"use_combined_action": True, **settings}
    return dict(settings)


class EnvpoolGroup(VectorGroup):
    """Group of E environments of one task, stepped by envpool's threads."""

    def __init__(
        self, task: str, num_envs: int, seeds: Sequence[int], threads: int, settings: dict[str, Any],
        drop: Sequence[str] = (),
    ) -> None:  # fmt: skip
        import envpool

        name = f"envpool/{task}"
        # Seeds are set here only, because reset() ignores them.
        self.env: Any = envpool.make_gymnasium(
            task, num_envs=num_envs, seed=[seed % 2**31 for seed in seeds], num_threads=threads, **settings
        )
        with warnings.catch_warnings():  # some tasks have float64 bounds for float32 spaces
            warnings.simplefilter("ignore", UserWarning)
            spaces = self.env.observation_space, self.env.action_space
        protocol = ", ".join(["envpool", task, *(f"{key}={settings[key]}" for key in sorted(settings))])
        config = self.env.spec.config
        super().__init__(
            name, *spaces, num_envs, seeds, protocol=protocol, frame_skip=int(getattr(config, "frame_skip", 1)),
            max_episode_steps=config.max_episode_steps if config.max_episode_steps < NO_LIMIT else None,
            reward_threshold=self.env.spec.reward_threshold, drop=drop,
        )  # fmt: skip
        self._ended = np.ones(num_envs, bool)

    def begin(self) -> Any:
        obs, _ = self.env.reset()
        self._ended = np.zeros(self.num_envs, bool)
        return obs

    def advance(self, action: Any) -> Native:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        reset, self._ended = self._ended, terminated | truncated
        if reset.any():
            reward = np.where(reset, 0, reward)
        return Native(obs, reward, terminated, truncated, reset, self._ended, self._never)

    def close(self) -> None:
        """Delete the environment; envpool's own close() does nothing."""
        self.env = None


def raw_loop(
    env_id: str, num_envs: int, seed: int, *, settings: Settings = NO_SETTINGS, threads: int = 1
) -> Callable[[], int] | None:
    """Return a plain loop over envpool; None if the action is a dict."""
    if is_game(env_id):
        return games_loop(env_id, num_envs, seed, threads, checked(env_id, settings))
    group = make(env_id, num_envs=num_envs, seeds=range(seed, seed + num_envs), threads=threads, settings=settings)
    space = group.env.action_space
    if len(group.spec.actions) > 1:
        return None
    space.seed(seed)
    group.env.reset()
    dtype = space.dtype
    actions = [np.stack([space.sample() for _ in range(num_envs)]).astype(dtype) for _ in range(64)]
    turn = itertools.count()

    def step() -> int:
        group.env.step(actions[next(turn) % len(actions)])
        return num_envs

    return step


def make(
    env_id: str, *, num_envs: int, seeds: Sequence[int], threads: int = 1, settings: Settings = NO_SETTINGS,
    drop: Sequence[str] = (), agent_id: bool = False,
) -> Group:  # fmt: skip
    """Build a group of one task.

    threads: envpool's threads per group. settings: all others, for `envpool.make_gymnasium`. drop: leaves of the
    observation that are left out. agent_id: append the number of the player to the observation of a game.
    """
    try:
        given = checked(env_id, settings)
        if is_game(env_id):
            if drop:
                raise EnvError(f"envpool/{env_id}: env.drop is not possible here, the observation is one board")
            return GameGroup(env_id, num_envs, seeds, threads, given, agent_id)
        if agent_id:
            raise EnvError(f"envpool/{env_id}: env.agent-id is for games of several players")
        return EnvpoolGroup(env_id, num_envs, seeds, threads, given, drop)
    except ModuleNotFoundError as error:
        raise missing_package(f"envpool/{env_id}", "envpool", "envpool") from error
