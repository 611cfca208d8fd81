"""Atari 2600 through ale-py's own C++ vector environment: `atari/pong`, and every other game it ships.

Observations are [4, 84, 84] uint8: four grey frames, newest last, each the maximum of the last two of four skipped
frames. Rewards are raw here; clipping is the learner's (`env.reward_clip`), so that what is reported is the full game.

Two protocols that must never meet in one table:

    dqn       no sticky actions, up to 30 no-ops at the start, a life loss ends the training episode, minimal actions
    machado   actions repeat with probability 0.25, no no-ops, a life loss ends nothing, minimal actions
              (Machado et al. 2018, arXiv 1709.06009; `env.settings.full_action_space = true` for their 18)

A game ends after 108,000 frames at the latest (truncation).

ale-py's vector environment cannot be saved. Where a run must resume exactly, the same games are stepped one by one
(`atari_exact`): the same frames, rewards and random numbers, and slower. The same where a game is filmed: the vector
environment shows no colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sfactory_envs.atari_scores import SCORES

from sfactory.envs import EnvError, missing_package, suggest
from sfactory.envs.saved_state import decode, encode
from sfactory.envs.vector_adapter import Native, VectorGroup

PROTOCOLS: dict[str, dict[str, Any]] = {
    "dqn": {"repeat_action_probability": 0.0, "noop_max": 30, "life_loss_info": True, "use_fire_reset": True},
    "machado": {"repeat_action_probability": 0.25, "noop_max": 0, "life_loss_info": False, "use_fire_reset": False},
}
FRAMES, SKIP = 108_000, 4
FATAL = frozenset({"combat", "joust", "maze_craze", "warlords"})  # loading them alone ends the process (ale-py 0.12)


class AtariGroup(VectorGroup):
    """E games of one kind."""

    def __init__(
        self, game: str, num_envs: int, seeds: Sequence[int], protocol: str, threads: int, settings: dict[str, Any]
    ) -> None:
        from ale_py import roms

        games = set(roms.get_all_rom_ids()) - FATAL
        if game not in games:
            raise EnvError(f"ale-py ships no game {game!r}{suggest(game, games)}")
        if protocol not in PROTOCOLS:
            raise EnvError(f"atari/{game}: protocol is {protocol!r}; it must be {' or '.join(PROTOCOLS)}")
        rules = {**PROTOCOLS[protocol], **settings}
        self.env = self.native(game, num_envs, threads, rules)
        self.lives_end_episodes = bool(rules["life_loss_info"])
        actions = self.env.single_action_space.n
        said = (
            f"atari {protocol}, {actions} actions, sticky {rules['repeat_action_probability']:g}, "
            f"{rules['noop_max']} no-ops, {'a life' if self.lives_end_episodes else 'the game'} is an episode"
        )
        super().__init__(
            f"atari/{game}", self.env.single_observation_space, self.env.single_action_space, num_envs, seeds,
            frame_skip=SKIP, protocol=said, max_episode_steps=FRAMES // SKIP, reference=SCORES.get(game),
        )  # fmt: skip
        self._frame = np.zeros(num_envs, np.int32)
        self._seeded = False

    @staticmethod
    def native(game: str, num_envs: int, threads: int, rules: dict[str, Any]) -> Any:
        """What plays the games: ale-py's threads."""
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
        reset = frame < self._frame  # ale-py has no flag for it; a life loss does not turn the counter back
        self._frame = frame.copy()
        if not self.lives_end_episodes:
            return Native(obs, reward, terminated, truncated, reset, terminated | truncated, self._never)
        life_lost = terminated & (info["lives"] > 0)
        # Whether a lost life was the last one is certain a step later only: then the game begins anew, or it does not.
        return Native(obs, reward, terminated, truncated, reset, reset, life_lost)

    def close(self) -> None:
        self.env.close()


class ExactAtariGroup(AtariGroup):
    """The same games, stepped one by one in this thread, and with a snapshot."""

    @staticmethod
    def native(game: str, num_envs: int, threads: int, rules: dict[str, Any]) -> Any:
        from sfactory_envs.atari_exact import SteppedAtari

        return SteppedAtari(game, num_envs, max_num_frames_per_episode=FRAMES, frameskip=SKIP, **rules)

    def snapshot(self) -> Any:
        """JSON of everything that decides what comes next: consoles, random numbers, frames seen, the tally."""
        own = [self.seeds, self._seeded, self._frame, self.tally.returns, self.tally.lengths]
        return {"native": self.env.snapshot(), "group": encode(own)}

    render_fps = 60 / SKIP

    def render(self, env: int) -> np.ndarray:
        """The console's own picture in colour, uint8 [210, 160, 3] (some games have 250 lines)."""
        return self.env.games[env].ale.getScreenRGB()

    def restore(self, state: Any) -> None:
        """The inverse, into a group built with the same settings. Games under way are played again, unseen."""
        self.env.restore(state["native"])
        self.seeds, self._seeded, self._frame, self.tally.returns, self.tally.lengths = decode(state["group"])


def ids() -> list[str]:
    """Every game ale-py ships; `atari_scores.SCORES` are the 57 of the benchmark."""
    try:
        from ale_py import roms
    except ModuleNotFoundError as error:
        raise missing_package("atari", "ale-py", "atari") from error
    return sorted(set(roms.get_all_rom_ids()) - FATAL)


def raw_loop(env_id: str, num_envs: int, seed: int, protocol: str = "dqn", **settings: Any) -> Callable[[], int]:
    """ale-py's vector environment on one thread."""
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
    protocol: str = "dqn", threads: int = 1, **settings: Any,
) -> AtariGroup:  # fmt: skip
    """A group of one game. threads: of ale-py, per group. Further settings go to `ale_py.AtariVectorEnv`."""
    stepped = exact or render_mode
    try:
        return (ExactAtariGroup if stepped else AtariGroup)(env_id, num_envs, seeds, protocol, threads, settings)
    except ModuleNotFoundError as error:
        raise missing_package(f"atari/{env_id}", "ale-py", "atari") from error
