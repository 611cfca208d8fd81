"""Atari 2600 games of ale-py, for example `atari/pong`, stepped by its C++ vector environment.

Observations are [4, 84, 84] uint8: four grayscale frames, newest last, each the maximum of the last two of four skipped
frames. Rewards are raw; the learner clips them (`env.reward_clip`), so that reported returns are those of the game.

There are two protocols, whose scores are not comparable:

    dqn       no sticky actions, up to 30 no-ops at the start, a life loss ends the training episode, minimal actions
    machado   actions repeat with probability 0.25, no no-ops, a life loss does not end an episode, minimal actions
              (Machado et al. 2018, arXiv 1709.06009; `env.settings.full_action_space = true` for their 18 actions)

A game is truncated after 108,000 frames.

ale-py's vector environment cannot be saved, and it has no color images. For exact resume and for videos, the games are
stepped one by one (`atari_exact`), which is slower but gives the same frames, rewards and random numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sfactory_envs.atari_scores import SCORES

from sfactory.envs import NO_SETTINGS, EnvError, Settings, missing_package, suggest
from sfactory.envs.saved_state import decode, encode
from sfactory.envs.vector_adapter import Native, VectorGroup

PROTOCOLS: dict[str, dict[str, Any]] = {
    "dqn": {"repeat_action_probability": 0.0, "noop_max": 30, "life_loss_info": True, "use_fire_reset": True},
    "machado": {"repeat_action_probability": 0.25, "noop_max": 0, "life_loss_info": False, "use_fire_reset": False},
}
FRAMES, SKIP = 108_000, 4
OURS = frozenset(
    {"game", "num_envs", "num_threads", "reward_clipping", "episodic_life", "max_num_frames_per_episode", "frameskip"}
)
"""Arguments of ale-py's vector environment that are no settings."""
FATAL = frozenset({"combat", "joust", "maze_craze", "warlords"})  # loading these ends the process (ale-py 0.12)


class AtariGroup(VectorGroup):
    """Group of E copies of one game."""

    def __init__(
        self, game: str, num_envs: int, seeds: Sequence[int], protocol: str, threads: int, settings: dict[str, Any]
    ) -> None:
        from ale_py import roms

        games = set(roms.get_all_rom_ids()) - FATAL
        if game not in games:
            raise EnvError(f"ale-py ships no game {game!r}{suggest(game, games)}")
        if protocol not in PROTOCOLS:
            raise EnvError(f"atari/{game}: protocol must be {' or '.join(PROTOCOLS)} (got {protocol!r})")
        for setting in settings.keys() & OURS:
            raise EnvError(f"atari/{game}: {setting!r} is decided by the protocol and by sfactory; leave it out")
        rules = {**PROTOCOLS[protocol], **settings}
        self.env = self.native(game, num_envs, threads, rules)
        self.lives_end_episodes = bool(rules["life_loss_info"])
        actions = self.env.single_action_space.n
        protocol_text = (
            f"atari {protocol}, {actions} actions, sticky {rules['repeat_action_probability']:g}, "
            f"{rules['noop_max']} no-ops, {'a life' if self.lives_end_episodes else 'the game'} is an episode"
        )
        super().__init__(
            f"atari/{game}", self.env.single_observation_space, self.env.single_action_space, num_envs, seeds,
            frame_skip=SKIP, protocol=protocol_text, max_episode_steps=FRAMES // SKIP, reference=SCORES.get(game),
        )  # fmt: skip
        self._frame = np.zeros(num_envs, np.int32)
        self._seeded = False

    @staticmethod
    def native(game: str, num_envs: int, threads: int, rules: dict[str, Any]) -> Any:
        """Build ale-py's vector environment."""
        from ale_py.vector_env import AtariVectorEnv

        return AtariVectorEnv(
            game, num_envs, num_threads=threads, reward_clipping=False, episodic_life=False,
            max_num_frames_per_episode=FRAMES, frameskip=SKIP, **rules,
        )  # fmt: skip

    def begin(self) -> np.ndarray:
        seeds = None if self._seeded else np.array(self.seeds)
        self._seeded = True
        obs, info = self.env.reset(seed=seeds)
        self._frame = info["episode_frame_number"].copy()
        return obs

    def advance(self, action: np.ndarray) -> Native:
        obs, reward, terminated, truncated, info = self.env.step(action)
        frame = info["episode_frame_number"]
        reset = frame < self._frame  # ale-py has no reset flag; a life loss does not set the counter to zero
        self._frame = frame.copy()
        if not self.lives_end_episodes:
            return Native(obs, reward, terminated, truncated, reset, terminated | truncated, self._never)
        life_lost = terminated & (info["lives"] > 0)
        # Only the next step shows whether a lost life was the last one: the game then either restarts or continues.
        return Native(obs, reward, terminated, truncated, reset, reset, life_lost)

    def close(self) -> None:
        self.env.close()


class ExactAtariGroup(AtariGroup):
    """Group of the same games, stepped one by one in this thread; supports snapshots and images."""

    @staticmethod
    def native(game: str, num_envs: int, threads: int, rules: dict[str, Any]) -> Any:
        from sfactory_envs.atari_exact import SteppedAtari

        return SteppedAtari(game, num_envs, max_num_frames_per_episode=FRAMES, frameskip=SKIP, **rules)

    def snapshot(self) -> Any:
        """Return the state as JSON: consoles, random numbers, recent frames, the tally."""
        group = [self.seeds, self._seeded, self._frame, self.tally.returns, self.tally.lengths]
        return {"native": self.env.snapshot(), "group": encode(group)}

    render_fps = 60 / SKIP

    def render(self, env: int) -> np.ndarray:
        """Return the console's color image, uint8 [210, 160, 3] (some games have 250 lines)."""
        return self.env.games[env].ale.getScreenRGB()

    def restore(self, state: Any) -> None:
        """Load the state of `snapshot` into a group that was built with the same settings. Replays unfinished games."""
        self.env.restore(state["native"])
        self.seeds, self._seeded, self._frame, self.tally.returns, self.tally.lengths = decode(state["group"])


def ids() -> list[str]:
    """List every game of ale-py; `atari_scores.SCORES` has the 57 of the benchmark."""
    try:
        from ale_py import roms
    except ModuleNotFoundError as error:
        raise missing_package("atari", "ale-py", "atari") from error
    return sorted(set(roms.get_all_rom_ids()) - FATAL)


def raw_loop(
    env_id: str, num_envs: int, seed: int, *, settings: Settings = NO_SETTINGS, protocol: str = "dqn", threads: int = 1
) -> Callable[[], int]:
    """Return a plain loop over ale-py's vector environment on one thread, whatever `threads` is."""
    env = AtariGroup.native(env_id, num_envs, 1, {**PROTOCOLS[protocol], **settings})
    env.reset(seed=np.arange(seed, seed + num_envs))
    actions = np.random.default_rng(seed).integers(env.single_action_space.n, size=(256, num_envs))
    turn = itertools.count()

    def step() -> int:
        env.step(actions[next(turn) % len(actions)])
        return num_envs

    return step


def make(
    env_id: str, *, num_envs: int, seeds: Sequence[int], exact: bool = False, render_mode: str | None = None,
    protocol: str = "dqn", threads: int = 1, settings: Settings = NO_SETTINGS,
) -> AtariGroup:  # fmt: skip
    """Build a group of one game.

    threads: ale-py's threads per group. settings: all others, for `ale_py.AtariVectorEnv`.
    """
    kind = ExactAtariGroup if exact or render_mode else AtariGroup
    try:
        return kind(env_id, num_envs, seeds, protocol, threads, dict(settings))
    except ModuleNotFoundError as error:
        raise missing_package(f"atari/{env_id}", "ale-py", "atari") from error
