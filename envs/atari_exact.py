"""Python version of ale-py's `AtariVectorEnv` that supports snapshots, equal frame by frame.

The C++ vector environment has no snapshot. This one steps `ale_py.ALEInterface` from Python and repeats the operations
of the C++ code: no-ops, frame skip, maximum over two frames, OpenCV's area interpolation to 84 x 84, frame stack,
next-step autoreset, the same random numbers (std::mt19937). On x86-64 Linux both give the same bits. ale-py's images
and no-ops differ on platforms whose compiler fuses multiply and add, or has another uniform_int_distribution.

An ALEState does not contain the complete console: the video chip's masks, a partly drawn frame and the last sticky
action are missing, and Q*bert and Tetris diverge at the first frame after restoreState. A snapshot is therefore the
ALEState before the last reset and every action since: the reset clears the chip, and the actions are replayed (about
15,000 frames/s). Sticky actions repeat too, because ALE's generator is in its state.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from ale_py import ALEInterface, ALEState, LoggerMode, roms
from gymnasium.spaces import Box, Discrete

from sfactory.envs import EnvError
from sfactory.envs.saved_state import decode, encode

SIDE = 84
NOOP, FIRE = 0, 1


def pack(data: bytes) -> str:
    """Compress bytes and encode them as text."""
    return base64.b64encode(zlib.compress(data, 1)).decode()


def unpack(text: str) -> bytes:
    """Decode the result of `pack`."""
    return zlib.decompress(base64.b64decode(text))


def mt19937(seed: int) -> np.random.MT19937:
    """Return the generator that equals std::mt19937 after `seed(seed)`; `random_raw` draws 32 bits."""
    bits, state = np.random.MT19937(), np.random.RandomState(seed).get_state(legacy=False)
    bits.state = state  # type: ignore[assignment]
    return bits


def below(bits: np.random.MT19937, bound: int) -> int:
    """Draw from [0, bound) like libstdc++'s uniform_int_distribution (Lemire 2019, arXiv 1805.10941)."""
    product = bits.random_raw() * bound
    while product % 2**32 < 2**32 % bound:
        product = bits.random_raw() * bound
    return product >> 32


def area_weights(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute which of `size` pixels each of SIDE pixels covers: indices and float32 weights, both [taps, SIDE].

    OpenCV's INTER_AREA for shrinking: weights in double, rounded to float once. A missing tap has weight 0.
    """
    scale = size / SIDE
    index, weight = (np.zeros((int(scale) + 2, SIDE), kind) for kind in (np.intp, np.float32))
    for target in range(SIDE):
        begin = target * scale
        end, width = begin + scale, min(scale, size - begin)
        last = min(int(end), size - 1)
        whole = min(int(np.ceil(begin)), last)
        taps = [(whole - 1, (whole - begin) / width)] if whole - begin > 1e-3 else []
        taps += [(pixel, 1.0 / width) for pixel in range(whole, last)]
        if end - last > 1e-3:
            taps.append((last, min(end - last, 1.0, width) / width))
        for tap, (pixel, share) in enumerate(taps):
            index[tap, target], weight[tap, target] = pixel, share
    used = weight.any(axis=1)
    return index[used], weight[used]


class AreaResize:
    """Resize screens [E, height, width] uint8 to [E, SIDE, SIDE] uint8 like cv::resize with INTER_AREA.

    The order of the sums is OpenCV's, in float32, columns first. Values of exactly one half are common in flat images,
    and the last bit decides how they are rounded. Fused multiply-add or a matrix product would change the result.
    """

    def __init__(self, height: int, width: int) -> None:
        self.rows, self.row_weights = area_weights(height)
        self.columns, self.column_weights = area_weights(width)

    def __call__(self, screens: np.ndarray) -> np.ndarray:
        across = np.take(screens, self.columns[0], axis=2) * self.column_weights[0]
        for column, weight in zip(self.columns[1:], self.column_weights[1:], strict=True):
            across += np.take(screens, column, axis=2) * weight
        small = np.take(across, self.rows[0], axis=1) * self.row_weights[0][:, None]
        for row, weight in zip(self.rows[1:], self.row_weights[1:], strict=True):
            small += np.take(across, row, axis=1) * weight[:, None]
        return np.rint(small, out=small).astype(np.uint8)


class Game:
    """One console with its random numbers, frame counter and lives."""

    def __init__(self, rom: str, frame_skip: int, max_frames: int, sticky: float, noop_max: int) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale, self.rom = ALEInterface(), rom
        self.ale.setFloat("repeat_action_probability", sticky)
        self.frame_skip, self.max_frames, self.noop_max = frame_skip, max_frames, max(noop_max, 1)
        self.before: ALEState | None = None  # the ROM is loaded by the first `seed`: it takes 75 ms
        self.fires = self.over = self.life_lost = False
        self.frames = self.lives = 0

    def seed(self, seed: int) -> None:
        """Load a new console; ALE and the no-ops have one generator each, both with this seed."""
        self.noops = mt19937(seed)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(self.rom)

    def _restart(self) -> None:
        self.before, self.played = self.ale.cloneState(include_rng=True), bytearray()
        self.ale.reset_game()

    def _act(self, action: int) -> int:
        self.played.append(action)
        return self.ale.act(action)

    def reset(self, screens: np.ndarray) -> None:
        """Start a game. screens: [2, height, width], newest first."""
        self._restart()
        if self.fires:
            self._act(FIRE)
        for _ in range(below(self.noops, self.noop_max) - self.fires):
            self._act(NOOP)
            if self.ale.game_over():
                self._restart()
        self.ale.getScreenGrayscale(screens[0])
        screens[1] = 0
        self.frames, self.lives, self.over, self.life_lost = 0, self.ale.lives(), False, False

    def step(self, action: int, screens: np.ndarray) -> int:
        """Run up to `frame_skip` frames and return their reward. As in C++, the last frame of a game is not drawn."""
        reward = 0
        for left in reversed(range(self.frame_skip)):
            reward += self._act(action)
            self.over, lives = self.ale.game_over(), self.ale.lives()
            self.frames += 1
            if self.over or self.frames >= self.max_frames:
                break
            if left < 2:
                self.ale.getScreenGrayscale(screens[left])
        self.life_lost, self.lives = 0 < lives < self.lives, lives
        return reward

    def snapshot(self) -> Any:
        assert self.before is not None, "snapshot() needs a game that was reset"
        counters = [self.noops.state, self.frames, self.lives, self.over]
        before, played = pack(self.before.serialize()), pack(bytes(self.played))
        return {"before": before, "played": played, "own": encode(counters), "check": self._check()}

    def restore(self, state: Any) -> None:
        self.seed(0)  # a new console without state of the last game
        self.ale.restoreState(ALEState(unpack(state["before"])))
        self._restart()
        for action in unpack(state["played"]):
            self._act(action)
        if self._check() != state["check"]:
            raise EnvError(f"{self.rom}: the replay differs from the saved game; was it saved with another ale-py?")
        self.noops.state, self.frames, self.lives, self.over = decode(state["own"])

    def _check(self) -> int:
        return zlib.crc32(self.ale.cloneState(include_rng=True).serialize())


class SteppedAtari:
    """Replacement for `ale_py.vector_env.AtariVectorEnv` with snapshots, on one thread."""

    def __init__(
        self, game: str, num_envs: int, *, frameskip: int, max_num_frames_per_episode: int,
        repeat_action_probability: float, noop_max: int, life_loss_info: bool, use_fire_reset: bool,
        full_action_space: bool = False, stack_num: int = 4, maxpool: bool = True, **others: Any,
    ) -> None:  # fmt: skip
        if others:
            raise EnvError(f"atari/{game}: no exact checkpoints with {', '.join(others)}; set checkpoint.exact = false")
        self.life_loss_info, self.maxpool, self.max_frames = life_loss_info, maxpool, max_num_frames_per_episode
        console = str(roms.get_rom_path(game)), frameskip, self.max_frames, repeat_action_probability, noop_max
        self.games = [Game(*console) for _ in range(num_envs)]
        self.games[0].seed(0)  # load one console to read its actions and screen size
        ale = self.games[0].ale
        legal = ale.getLegalActionSet() if full_action_space else ale.getMinimalActionSet()
        self.actions = [action.value for action in legal]
        for each in self.games:
            each.fires = use_fire_reset and FIRE in self.actions
        height, width = ale.getScreenDims()
        self.resize = AreaResize(height, width)
        self.screens = np.zeros((2, num_envs, height, width), np.uint8)  # the last two drawn frames, newest first
        self.obs = np.zeros((num_envs, stack_num, SIDE, SIDE), np.uint8)
        self.single_observation_space = Box(0, 255, self.obs.shape[1:], np.uint8)
        self.single_action_space = Discrete(len(self.actions))

    def reset(self, *, seed: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start every game, with new consoles if `seed` is given."""
        for env, game in enumerate(self.games):
            if seed is not None:
                game.seed(int(seed[env]))
            game.reset(self.screens[:, env])
        self._push_frames(range(len(self.games)))
        return self.obs, self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Step every game. action: [E] indices of the action set. A game that has ended is restarted instead."""
        rewards, restarted = np.zeros(len(self.games), np.int32), []
        for env, (game, number) in enumerate(zip(self.games, action.tolist(), strict=True)):
            if game.over or game.frames >= self.max_frames:
                game.reset(self.screens[:, env])
                restarted.append(env)
            else:
                rewards[env] = game.step(self.actions[number], self.screens[:, env])
        self._push_frames(restarted)
        terminated = np.array([game.over or (self.life_loss_info and game.life_lost) for game in self.games])
        truncated = np.array([game.frames >= self.max_frames for game in self.games]) & ~terminated
        return self.obs, rewards, terminated, truncated, self._info()

    def _push_frames(self, restarted: Iterable[int]) -> None:
        """Add the newest frame to every stack; clear the stacks of `restarted` first."""
        newest, older = self.screens
        if self.maxpool:
            np.maximum(newest, older, out=newest)  # in place: a game that ends early uses it again
        self.obs[:, :-1] = self.obs[:, 1:]
        self.obs[list(restarted), :-1] = 0
        self.obs[:, -1] = self.resize(newest)

    def _info(self) -> dict[str, np.ndarray]:
        frames = np.array([game.ale.getEpisodeFrameNumber() for game in self.games], np.int32)
        return {"lives": np.array([game.lives for game in self.games], np.int32), "episode_frame_number": frames}

    def snapshot(self) -> Any:
        """Return every console and the last frames as JSON."""
        frames = [pack(array.tobytes()) for array in (self.screens, self.obs)]
        return {"games": [game.snapshot() for game in self.games], "seen": frames}

    def restore(self, state: Any) -> None:
        """Load the state of `snapshot` into an environment that was built with the same settings."""
        for game, saved in zip(self.games, state["games"], strict=True):
            game.restore(saved)
        for array, saved in zip((self.screens, self.obs), state["seen"], strict=True):
            array[...] = np.frombuffer(unpack(saved), np.uint8).reshape(array.shape)

    def close(self) -> None:
        """Do nothing: consoles are freed with the object."""
