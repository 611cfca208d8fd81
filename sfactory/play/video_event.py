"""Show the videos of an evaluation in TensorBoard: animated pictures in the run's folder tb/videos.

TensorBoard reads one event file of a folder after the other, so a training run that still writes into tb/ is not
disturbed. TensorBoard shows tb/videos as a run of its own. All videos of a run, of all its launches and of
`sfactory eval`, are in one event file there; a new one begins only behind one that a killed process left incomplete, or
while another process writes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

from sfactory.files import is_folder, require
from sfactory.monitor.writers import TensorBoard

TAG = "eval/video"
MAX_FRAMES = 150  # even, see SampledFrames.add
LARGEST_SIDE = 240
SLOWEST, FASTEST = 1, 20  # pictures per second


def show_videos(run_dir: Path, files: Sequence[Path], env_steps: int) -> Path | None:
    """Add videos to a run's TensorBoard folder; return the folder, or None if the run has none.

    env_steps: trained steps of the policy that is seen. Raises OSError or ValueError if something cannot be read or
    written.
    """
    folder = videos_folder(run_dir) if files else None
    if folder is None:
        return None
    tags = [TAG] if len(files) == 1 else [f"{TAG}-{number}" for number in range(1, len(files) + 1)]
    show_pictures(folder, {tag: animated(file) for tag, file in zip(tags, files, strict=True)}, env_steps)
    return folder


def videos_folder(run_dir: Path) -> Path | None:
    """Folder of the videos in the TensorBoard of a run; None if the run has no TensorBoard. FileRefused for a link."""
    if not is_folder(run_dir / "tb"):
        return None
    folder = run_dir / "tb" / "videos"
    require(folder, "a folder")
    return folder


Animated: TypeAlias = tuple[bytes, int, int]
"""An animated GIF, its width and its height."""


def show_pictures(folder: Path, pictures: Mapping[str, Animated], env_steps: int) -> None:
    """Add animated pictures by their tags to a folder of TensorBoard. env_steps: see `show_videos`."""
    writer = TensorBoard(folder, None, append=True)
    try:
        for tag, (picture, width, height) in pictures.items():
            writer.picture(tag, picture, width, height, env_steps)
    finally:
        writer.close()


def animated(file: Path) -> Animated:
    """Return a video as an animated GIF of at most MAX_FRAMES pictures."""
    import av

    frames = SampledFrames()
    with av.open(str(file)) as source:
        stream = source.streams.video[0]
        for frame in source.decode(stream):
            frames.add(lambda frame=frame: frame)  # type: ignore[misc]
        return frames.gif(float(stream.average_rate or 30))


class SampledFrames:
    """At most MAX_FRAMES frames of a video, at equal distances over the whole of it, as small pictures."""

    def __init__(self, every: int = 1) -> None:
        """every: keep one frame in so many; more are left out as soon as MAX_FRAMES are kept."""
        self._frames: list[Any] = []
        self._every, self._count = every, 0
        self._size = 0, 0

    def add(self, frame: Callable[[], Any]) -> None:
        """The next frame of the video. frame: returns it as a `av.VideoFrame`; not called for one that is left out."""
        number, self._count = self._count, self._count + 1
        if number % self._every:
            return
        if len(self._frames) == MAX_FRAMES:  # an even number: this frame belongs to every second one too
            self._frames, self._every = self._frames[::2], 2 * self._every
        picture = frame()
        if not self._frames:
            scale = min(1.0, LARGEST_SIDE / max(picture.width, picture.height))
            self._size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        self._frames.append(picture.reformat(*self._size, "rgb8"))

    def gif(self, fps: float) -> Animated:
        """Return the frames as an animated GIF. fps: frames per second of the whole video."""
        import av

        seconds = self._count / fps
        rate = round(min(max(len(self._frames) / max(seconds, 1e-3), SLOWEST), FASTEST))
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="gif") as target:
            out: Any = target.add_stream("gif", rate=Fraction(rate))
            (out.width, out.height), out.pix_fmt = self._size, "rgb8"
            for number, frame in enumerate(self._frames):
                frame.pts, frame.time_base = number, Fraction(1, rate)
                target.mux(out.encode(frame))
            target.mux(out.encode())
        return buffer.getvalue(), *self._size
