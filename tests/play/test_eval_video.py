"""Videos of episodes during training: few frames, in bounded time, of every task."""

import io
from dataclasses import replace
from itertools import count

import av
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sfactory.config import Config, Env, Eval
from sfactory.play import eval_video, video_event
from sfactory.play.eval_video import FilmedEpisode, LongEnough, check_eval_video, show_episodes
from sfactory.play.video_event import MAX_FRAMES, SampledFrames

TASK = "gymnasium/CartPole-v1"
CONFIG = Config(env=Env(TASK), eval=Eval(every=1000, video=True))


class Counter:
    """Environments whose image becomes brighter with every step."""

    render_fps = 50

    def __init__(self):
        self.t = self.drawn = 0

    def render(self, env):
        self.drawn += 1
        return np.full((40, 60, 3), self.t % 256, np.uint8)


def filmed(steps, expected=1.0):
    film, group = FilmedEpisode(expected), Counter()
    film.begin(group)
    for _ in range(steps):
        group.t += 1
        film.add(group)
    film.end(1.0, steps)
    assert not film.wanted
    return film, group


def brightness(picture):
    with av.open(io.BytesIO(picture)) as video:
        return [float(frame.to_ndarray(format="gray").mean()) for frame in video.decode(video=0)]


@pytest.mark.parametrize(("steps", "frames"), [(5, 6), (149, 150), (150, 76), (299, 150), (300, 76), (3000, 94)])
def test_filmed_episode_keeps_at_most_150_frames_over_the_whole_episode(monkeypatch, steps, frames):
    monkeypatch.setattr(video_event, "LARGEST_SIDE", 60)  # the smaller, the faster
    monkeypatch.setattr(eval_video, "MAX_SECONDS", 1000.0)  # on a busy machine too
    film, _ = filmed(steps)
    assert len(brightness(film.frames.gif(50)[0])) == frames <= MAX_FRAMES


def test_filmed_episode_shows_the_first_observation_and_then_every_kth_and_renders_no_other():
    film, group = filmed(200, expected=400)
    assert group.drawn == 67
    picture, width, height = film.frames.gif(50)
    assert (width, height) == (240, 160)
    seen = brightness(picture)
    assert np.abs(np.subtract(seen, range(0, 201, 3))).max() < 40, "a GIF of 256 colors has few shades of grey"
    assert seen[0] < 10


def test_filmed_episode_forgets_one_that_did_not_end():
    film, group = FilmedEpisode(), Counter()
    for _ in range(2):
        film.begin(group)
        film.add(group)
        assert film.wanted
    assert len(brightness(film.frames.gif(50)[0])) == 2


def test_filmed_episode_ends_when_its_time_is_over(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(eval_video.time, "monotonic", lambda: now[0])
    film, group = FilmedEpisode(), Counter()
    film.begin(group)
    now[0] += 19.9
    film.add(group)
    now[0] += 0.2
    with pytest.raises(LongEnough):
        film.add(group)
    assert group.drawn == 2


def test_sampled_frames_are_shown_in_the_time_of_the_video_if_that_can_be_seen():
    frames = SampledFrames()
    for t in range(40):
        frames.add(lambda t=t: av.VideoFrame.from_ndarray(np.full((8, 8, 3), 6 * t, np.uint8), format="rgb24"))
    for fps, rate in ((10, 10), (500, 20), (0.5, 1)):
        with av.open(io.BytesIO(frames.gif(fps)[0])) as video:
            assert round(float(video.streams.video[0].average_rate)) == rate


def shown(folder, tag="eval/video"):
    """[(step, number of pictures)] in TensorBoard."""
    found = EventAccumulator(str(folder / "tb/videos"))
    found.Reload()
    return [(image.step, len(brightness(image.encoded_image_string))) for image in found.Images(tag)]


def policy():
    """Balances the pole for a while."""
    turns = count()
    return lambda obs, first: {"action": np.full(len(first), next(turns) % 2)}


def test_show_episodes_shows_every_task_under_its_name(tmp_path):
    (tmp_path / "tb").mkdir()
    tasks = TASK, "gymnasium/CartPole-v0"
    show_episodes(tmp_path, replace(CONFIG, env=Env(",".join(tasks))), policy, 70, dict.fromkeys(tasks, 9.0))
    for task in tasks:
        ((step, frames),) = shown(tmp_path, f"eval/video/{task}")
        assert step == 70
        assert frames > 15


def test_show_episodes_cuts_a_long_episode_and_one_that_takes_long(tmp_path, monkeypatch):
    (tmp_path / "tb").mkdir()
    monkeypatch.setattr(eval_video, "MAX_STEPS", 4)
    show_episodes(tmp_path, CONFIG, policy, 70, {TASK: 9.0})
    monkeypatch.setattr(eval_video, "MAX_SECONDS", -1.0)
    show_episodes(tmp_path, CONFIG, policy, 80, {TASK: 9.0})
    assert shown(tmp_path) == [(70, 5), (80, 1)]


def test_show_episodes_writes_nothing_where_there_is_no_folder_of_tensorboard(tmp_path):
    show_episodes(tmp_path, CONFIG, policy, 70, {TASK: 9.0})
    assert not list(tmp_path.iterdir())


def test_check_eval_video_names_the_extra(monkeypatch):
    check_eval_video(CONFIG)
    monkeypatch.setattr(eval_video, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^eval\.video needs the package av.*pip install 'sfactory\[video\]'"):
        check_eval_video(CONFIG)
    check_eval_video(replace(CONFIG, eval=Eval()))
