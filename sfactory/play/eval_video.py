"""Show episodes of the policy in TensorBoard during training (eval.video).

The episodes are played beside those of the evaluation, in one environment: an environment that can be rendered is often
another, slower one, and scores must not depend on whether there is a video.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfactory.config import Config
from sfactory.play.episodes import ActFunction, play_task
from sfactory.play.video import prepare_frame
from sfactory.play.video_event import MAX_FRAMES, TAG, Animated, SampledFrames, show_pictures, videos_folder
from sfactory.play.watched_group import NO_CLOCK, EnvClock

MAX_STEPS = 3000
"""Steps of an episode that are filmed, at most: a game of Atari can have 27,000."""
MAX_SECONDS = 20.0
"""Time for one video, after which it ends where it is: MuJoCo without a GPU can need 0.4 s for a picture."""


def check_eval_video(config: Config) -> None:
    """Raise ValueError if eval.video is set and its package is not installed."""
    if config.eval.video and find_spec("av") is None:
        raise ValueError("eval.video needs the package av, which is not installed: pip install 'sfactory[video]'")


def show_episodes(
    run_dir: Path,
    config: Config,
    policy: Callable[[], ActFunction],
    env_steps: int,
    lengths: Mapping[str, float],
    clock: EnvClock = NO_CLOCK,
    env_index: int = 0,
) -> None:
    """Play one episode of every task and add it to the run's TensorBoard folder.

    policy: returns the policy at the start of an episode. env_steps: its trained steps.
    lengths: task -> steps that an episode is expected to have. env_index: number of the environment.
    Raises EnvError, OSError or ValueError if something cannot be played, rendered or written.
    """
    folder, pictures = videos_folder(run_dir), dict[str, Animated]()
    if folder is None:
        return
    for task in config.env.tasks:
        film = FilmedEpisode(min(lengths[task], MAX_STEPS))
        with contextlib.suppress(LongEnough):
            play_task(
                task,
                config.env.options,
                policy(),
                1,
                config.run.seed,
                squash=config.model.squash,
                max_steps=MAX_STEPS,
                num_envs=1,
                recorder=film,
                clock=clock,
                env_index=env_index,
            )
        pictures[TAG if len(config.env.tasks) == 1 else f"{TAG}/{task}"] = film.frames.gif(film.fps)
    show_pictures(folder, pictures, env_steps)


class LongEnough(Exception):
    """Ends an episode whose video has taken MAX_SECONDS."""


class FilmedEpisode:
    """Keeps frames of the first complete episode (a `sfactory.play.episodes.Recorder`)."""

    def __init__(self, length: float = 1) -> None:
        """length: expected steps of the episode, so that few frames are rendered that are not kept."""
        self._every = max(1, math.ceil(length / MAX_FRAMES))
        self._end = time.monotonic() + MAX_SECONDS
        self.frames, self.fps, self.wanted = SampledFrames(self._every), 30.0, True

    def begin(self, group: Any) -> None:
        """Start with the first observation of an episode; forget one that was begun and did not end."""
        self.frames, self.fps = SampledFrames(self._every), group.render_fps
        self._keep(group)

    def add(self, group: Any) -> None:
        """The frame after a step, which is rendered only if it is kept. Raises LongEnough after MAX_SECONDS."""
        if time.monotonic() > self._end:
            raise LongEnough
        self._keep(group)

    def _keep(self, group: Any) -> None:
        self.frames.add(lambda: _picture(group.render(0)))

    def end(self, episodic_return: float, length: int) -> None:
        """The episode is complete."""
        self.wanted = False


def _picture(frame: Any) -> Any:
    import av

    return av.VideoFrame.from_ndarray(prepare_frame(frame), format="rgb24")
