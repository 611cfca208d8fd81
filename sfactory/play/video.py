"""Record episodes of environment 0 as .mp4 files: the first observation and one frame after every step.

H.264 in yuv420p, which browsers play. Frames are encoded as they come: a whole Atari game would need gigabytes. A file
gets its name only when its episode is complete; until then it is a temporary file beside it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.errors import CommandError
from sfactory.files import require_writable
from sfactory.play.episodes import split_evenly
from sfactory.run.folder import path_component

MIN_SIDE = 400  # pixels; smaller frames are enlarged by a whole factor and stay sharp


def check_video(path: Path, num_videos: int, episodes: int, num_envs: int) -> None:
    """Raise ValueError for videos that cannot be recorded, before anything is played.

    num_envs: environments that play at the same time, at most.
    """
    if path.suffix != ".mp4":
        raise ValueError(f"video {path}: videos are written as .mp4 (H.264), got {path.suffix or 'no suffix'}")
    if find_spec("av") is None:
        raise ValueError("video needs the package av, which is not installed: pip install 'sfactory[video]'")
    try:
        require_writable(path)
    except CommandError as error:
        raise ValueError(f"video {error}") from None
    played = split_evenly(episodes, min(episodes, num_envs))[0]
    if not 1 <= num_videos <= played:
        more = "; with num-envs 1 it plays all" if played < episodes else ""
        raise ValueError(
            f"video-episodes must be 1 to {played} (got {num_videos}): environment 0 plays {played} of {episodes} "
            f"episodes{more}"
        )


def task_video_path(path: Path, task: str) -> Path:
    """Insert the task's name: out.mp4 -> out-atari-pong.mp4. An empty task leaves the path as it is."""
    return path.with_stem(f"{path.stem}-{path_component(task)}") if task else path


def remove_unfinished(folder: Path, mark: str) -> None:
    """Delete the files that a recorder of a process that was ended did not complete."""
    for path in folder.glob(f".*.mp4.{mark}"):
        path.unlink(missing_ok=True)


def prepare_frame(frame: np.ndarray) -> np.ndarray:
    """Enlarge a frame [H, W, 3] to at least MIN_SIDE and pad it to even sides, as yuv420p requires."""
    factor = -(-MIN_SIDE // min(frame.shape[:2]))
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = large.shape[:2]
    return np.pad(large, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


@dataclass(frozen=True)
class VideoFile:
    """One recorded episode on disk: length + 1 frames."""

    file: str
    episodic_return: float
    length: int


class VideoRecorder:
    """Write .mp4 files of the first `num_videos` episodes (a `sfactory.play.episodes.Recorder`).

    A context manager: on exit an unfinished file is deleted. path: file of the first episode; with more than one,
    out.mp4 becomes out-1.mp4, out-2.mp4.
    """

    def __init__(self, path: Path, num_videos: int = 1, mark: str = "") -> None:
        """mark: end of the name of a file that is not complete; empty: the id of this process."""
        self.path, self.num_videos = path, num_videos
        self.videos: list[VideoFile] = []
        self._temporary = path.with_name(f".{path.name}.{mark or os.getpid()}")
        self._container: Any = None
        self._stream: Any = None

    @property
    def wanted(self) -> bool:
        return len(self.videos) < self.num_videos

    def begin(self, group: Any) -> None:
        """Start a file for a new episode; delete an unfinished one."""
        self._discard()
        import av

        frame = prepare_frame(group.render(0))
        options = {"movflags": "+faststart"}  # index first: a browser can play before it has the whole file
        self._container = av.open(str(self._temporary), "w", format="mp4", options=options)
        rate = Fraction(group.render_fps).limit_denominator(1000)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        self._stream.height, self._stream.width = frame.shape[:2]
        self._stream.pix_fmt = "yuv420p"
        self._encode(frame)

    def add(self, group: Any) -> None:
        """Encode the frame after a step."""
        self._encode(prepare_frame(group.render(0)))

    def end(self, episodic_return: float, length: int) -> None:
        """Complete the file of the episode and give it its name."""
        self._container.mux(self._stream.encode())
        self._container.close()
        self._container = None
        number = len(self.videos) + 1
        path = self.path.with_stem(f"{self.path.stem}-{number}") if self.num_videos > 1 else self.path
        self._temporary.replace(path)
        self.videos.append(VideoFile(str(path), episodic_return, length))

    def _encode(self, frame: np.ndarray) -> None:
        import av

        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def _discard(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()
