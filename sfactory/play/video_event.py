"""Show the videos of an evaluation in TensorBoard: an animated picture in the run's folder tb/videos.

TensorBoard reads one event file of a folder after the other, so a training run that still writes into tb/ is not
disturbed. TensorBoard shows tb/videos as a run of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from sfactory.files import is_folder, require
from sfactory.monitor.writers import TensorBoard

TAG = "eval/video"
MAX_FRAMES = 150
LARGEST_SIDE = 240
SLOWEST, FASTEST = 1, 20  # pictures per second


def show_videos(run_dir: Path, files: Sequence[Path], env_steps: int) -> Path | None:
    """Add videos to a run's TensorBoard folder; return the folder, or None if the run has none.

    env_steps: trained steps of the policy that is seen. Raises OSError or ValueError if something cannot be read or
    written.
    """
    if not files or not is_folder(run_dir / "tb"):
        return None
    folder = run_dir / "tb" / "videos"
    require(folder, "a folder")
    pictures = [animated(file) for file in files]
    writer = TensorBoard(folder, env_steps, start=False)
    try:
        for number, (picture, width, height) in enumerate(pictures, start=1):
            tag = TAG if len(pictures) == 1 else f"{TAG}-{number}"
            writer.picture(tag, picture, width, height, env_steps)
    finally:
        writer.close()
    return folder


def animated(file: Path) -> tuple[bytes, int, int]:
    """Return a video as an animated GIF of at most MAX_FRAMES pictures, and its width and height."""
    import av

    with av.open(str(file)) as source:
        stream = source.streams.video[0]
        frames = list(source.decode(stream))
        seconds = len(frames) / float(stream.average_rate or 30)
    every = max(1, -(-len(frames) // MAX_FRAMES))
    frames = frames[::every]
    rate = round(min(max(len(frames) / max(seconds, 1e-3), SLOWEST), FASTEST))
    scale = min(1.0, LARGEST_SIDE / max(frames[0].width, frames[0].height))
    width, height = (max(1, round(side * scale)) for side in (frames[0].width, frames[0].height))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="gif") as target:
        out: Any = target.add_stream("gif", rate=Fraction(rate))
        out.width, out.height, out.pix_fmt = width, height, "rgb8"
        for number, frame in enumerate(frames):
            small = frame.reformat(width, height, "rgb8")
            small.pts, small.time_base = number, Fraction(1, rate)
            target.mux(out.encode(small))
        target.mux(out.encode())
    return buffer.getvalue(), width, height
