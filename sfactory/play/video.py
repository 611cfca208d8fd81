"""Films of games: what environment 0 did in an evaluation, one .mp4 for each game, a picture before its first step and
one after every step.

H.264 in yuv420p, which browsers play. Pictures go to the encoder as they come: a whole Atari game would be gigabytes.
A file appears under its name only when its game was scored; until then it is a temporary one beside it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.play.episodes import ENVS, share

SIDE = 400  # pixels the shorter side has at least; small pictures grow by a whole factor and stay crisp


def check_video(path: Path, games: int, episodes: int) -> None:
    """ValueError for a film that could not be made, before anything is played."""
    if path.suffix != ".mp4":
        raise ValueError(f"video {path}: films are written as .mp4 (H.264), not {path.suffix or 'without a suffix'}")
    if find_spec("av") is None:
        raise ValueError("video needs the package av, which is not installed: pip install 'sfactory[video]'")
    if not path.parent.is_dir():
        raise ValueError(f"video {path}: there is no folder {path.parent}")
    played = share(episodes, min(episodes, ENVS))[0]
    if not 1 <= games <= played:
        raise ValueError(
            f"video-games is {games}; environment 0 plays {played} of {episodes} games, so it must be 1 to {played}"
        )


def video_path(path: Path, task: str) -> Path:
    """out.mp4 -> out-atari-pong.mp4 for one of several tasks."""
    return path.with_stem(f"{path.stem}-{task.replace('/', '-')}") if task else path


def prepared(picture: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] as it is encoded: large enough to look at, and with even sides, as yuv420p needs."""
    factor = -(-SIDE // min(picture.shape[:2]))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = large.shape[:2]
    return np.pad(large, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


@dataclass(frozen=True)
class Filmed:
    """One game on disk: length + 1 pictures."""

    file: str
    episodic_return: float
    length: int


class Video:
    """Implements `sfactory.play.episodes.Film`. A context manager: what is unfinished at its end leaves nothing behind.

    path: of the first game; with more than one, out.mp4 becomes out-1.mp4, out-2.mp4.
    """

    def __init__(self, path: Path, games: int = 1) -> None:
        self.path, self.games = path, games
        self.filmed: list[Filmed] = []
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._container: Any = None
        self._stream: Any = None

    @property
    def wanted(self) -> bool:
        return len(self.filmed) < self.games

    def begin(self, group: Any) -> None:
        """A new game; one that was under way is dropped."""
        self._drop()
        import av

        picture = prepared(group.render(0))
        options = {"movflags": "+faststart"}  # the index first: a browser can begin before it has everything
        self._container = av.open(str(self._temporary), "w", format="mp4", options=options)
        rate = Fraction(group.render_fps).limit_denominator(1000)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        self._stream.height, self._stream.width = picture.shape[:2]
        self._stream.pix_fmt = "yuv420p"
        self._encode(picture)

    def add(self, group: Any) -> None:
        """The picture after a step."""
        self._encode(prepared(group.render(0)))

    def end(self, episodic_return: float, length: int) -> None:
        """The game was scored: its file gets its name."""
        self._container.mux(self._stream.encode())
        self._container.close()
        self._container = None
        number = len(self.filmed) + 1
        path = self.path.with_stem(f"{self.path.stem}-{number}") if self.games > 1 else self.path
        self._temporary.replace(path)
        self.filmed.append(Filmed(str(path), episodic_return, length))

    def _encode(self, picture: np.ndarray) -> None:
        import av

        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

    def _drop(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()
