"""Videos hold every frame of the episode that was counted, and no frame of another one."""

import fcntl
import io
from types import SimpleNamespace

import av
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sfactory.envs import EnvFault, Episode, Step
from sfactory.errors import FileRefused
from sfactory.monitor.writers import MOST_RECORDS
from sfactory.play import video
from sfactory.play.episodes import play
from sfactory.play.video import VideoRecorder, check_video, prepare_frame, task_video_path
from sfactory.play.video_event import animated, show_pictures, show_videos


class CountingGroup:
    """E environments with episodes of 5 steps. A frame is one grey: 10 x the steps, 150 more in the second episode.

    late: an episode is reported at the reset step after it, as in ale-py. breaks: the step at which the first episode
    of the first environment 0 fails.
    """

    render_fps, length = 12.5, 5

    def __init__(self, num_envs, first_env, late=False, breaks=0):
        self.E, self.late, self.breaks = num_envs, late, breaks if first_env == 0 else 0
        self.t, self.over, self.episodes, self.drawn = 0, False, 0, 0

    def reset(self):
        return {"obs": np.zeros((self.E, 1), np.float32)}

    def step(self, action):
        valid, none = np.ones(self.E, bool), np.zeros(self.E, bool)
        episodes, faults = (), ()
        if self.over:
            valid, self.over, self.t = ~valid, False, 0
            episodes = self.report() if self.late else ()
        else:
            self.t += 1
            if self.t == self.breaks:
                faults, valid[0], self.breaks = (EnvFault(0, "broken"),), False, 0
            if self.t == self.length:
                self.over, self.episodes = True, self.episodes + 1
                episodes = () if self.late else self.report()
        reward = valid.astype(np.float32)
        return Step({"obs": np.zeros((self.E, 1), np.float32)}, reward, none, none, valid, ~valid, episodes, faults)

    def report(self):
        return tuple(Episode(env, 5.0, 5) for env in range(self.E))

    def render(self, env):
        assert env == 0
        self.drawn += 1
        return np.full((3, 5, 3), 10 * self.t + 150 * (self.episodes - self.over), np.uint8)

    def close(self):
        pass


def record(path, num_videos=1, episodes=4, max_steps=100, **how):
    groups = []

    def make(num_envs, first_env):
        groups.append(CountingGroup(num_envs, first_env, **how))
        return groups[-1]

    with VideoRecorder(path, num_videos) as recorder:
        played = play(make, lambda obs, first: {"action": np.zeros(len(first), int)}, episodes, max_steps, recorder)
    return recorder.videos, played, groups


def greys(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12.5
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert all(p.shape[0] % 2 == p.shape[1] % 2 == 0 and p.shape[0] >= 400 for p in frames)
    return [round(float(p.mean()) / 10) for p in frames]


@pytest.mark.parametrize("late", [False, True])
def test_video_has_a_frame_before_the_first_step_and_one_after_every_step(tmp_path, late):
    (one,), played, _ = record(tmp_path / "out.mp4", late=late)
    assert (one.length, one.episodic_return) == (5, 5.0) == (played.lengths[0], played.returns[0])
    assert greys(tmp_path / "out.mp4") == [0, 1, 2, 3, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("late", [False, True])
def test_video_recorder_writes_one_file_per_episode(tmp_path, late):
    found, _, groups = record(tmp_path / "out.mp4", num_videos=2, episodes=96, late=late)
    assert [one.file for one in found] == [str(tmp_path / f"out-{n}.mp4") for n in (1, 2)]
    assert greys(tmp_path / "out-1.mp4") == [0, 1, 2, 3, 4, 5]
    assert greys(tmp_path / "out-2.mp4") == [15, 16, 17, 18, 19, 20]
    assert groups[0].drawn == 12, "the third episode is played and not rendered"


class LoggedContainer:
    """An av container that logs its close."""

    def __init__(self, container, notes):
        self.container, self.notes = container, notes

    def close(self):
        self.notes.append("closed")
        self.container.close()

    def __getattr__(self, name):
        return getattr(self.container, name)


def test_video_holds_no_frame_of_a_failed_episode(tmp_path, monkeypatch):
    """Its file is closed before the next one is opened: closing it later would write into the new file."""
    notes, real = [], av.open
    monkeypatch.setattr(
        av, "open", lambda *how, **more: notes.append("opened") or LoggedContainer(real(*how, **more), notes)
    )
    (one,), played, groups = record(tmp_path / "out.mp4", breaks=3)
    monkeypatch.undo()
    assert notes == ["opened", "closed"] * 2
    assert (len(groups), played.faults, len(played.returns)) == (2, 1, 4)
    assert one.length == 5
    assert greys(tmp_path / "out.mp4") == [0, 1, 2, 3, 4, 5]


def test_video_of_a_capped_episode_ends_at_the_cap(tmp_path):
    (one,), played, _ = record(tmp_path / "out.mp4", max_steps=3)
    assert (one.length, played.capped) == (3, 4)
    assert greys(tmp_path / "out.mp4") == [0, 1, 2, 3]


def test_video_recorder_deletes_an_unfinished_file(tmp_path):
    class FailingGroup(CountingGroup):
        length = 300  # so long that the encoder has written some of it

        def render(self, env):
            if self.t == 200:
                assert list(tmp_path.iterdir()), "otherwise this test could not fail"
                raise RuntimeError("render failed")
            return np.zeros((64, 64, 3), np.uint8)

    recorder = VideoRecorder(tmp_path / "out.mp4")
    with pytest.raises(RuntimeError, match="render failed"), recorder:
        play(lambda n, first: FailingGroup(n, first), lambda obs, first: {"action": first}, 2, 1000, recorder)
    assert not list(tmp_path.iterdir())


def test_prepare_frame_enlarges_and_pads_to_even_sides():
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    large = prepare_frame(frame)
    assert large.shape == (400, 600, 3)
    assert (large[::200, ::200] == frame).all()
    assert prepare_frame(np.zeros((451, 403, 3), np.uint8)).shape == (452, 404, 3)


def test_check_video_rejects_videos_that_cannot_be_recorded(tmp_path, monkeypatch):
    check_video(tmp_path / "out.mp4", 4, 100, 32)
    check_video(tmp_path / "out.mp4", 100, 100, 1)
    (tmp_path / "folder.mp4").mkdir()
    for path, num_videos, message in [
        (tmp_path / "out.gif", 1, "written as .mp4"),
        (tmp_path / "none" / "out.mp4", 1, "does not exist"),
        (tmp_path / "folder.mp4", 1, "folder.mp4 is a folder; name a file"),
        (tmp_path / "out.mp4", 5, "environment 0 plays 4 of 100 episodes"),
        (tmp_path / "out.mp4", 0, "must be 1 to 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_video(path, num_videos, 100, 32)
    with pytest.raises(ValueError, match="environment 0 plays 1 of 64 episodes; with num-envs 1 it plays all"):
        check_video(tmp_path / "out.mp4", 2, 64, 64)
    with pytest.raises(ValueError, match=r"environment 0 plays 10 of 10 episodes$"):
        check_video(tmp_path / "out.mp4", 11, 10, 1)
    monkeypatch.setattr(video, "find_spec", lambda name: None if name == "av" else SimpleNamespace())
    with pytest.raises(ValueError, match=r"pip install 'sfactory\[video\]'"):
        check_video(tmp_path / "out.mp4", 1, 100, 32)


def test_video_episodes_requires_video(typed):
    code, _, line = typed("eval", "runs/none", "--video-episodes", 2)
    assert (code, line.endswith("add --video FILE.mp4")) == (2, True)


def test_task_video_path_inserts_the_task(tmp_path):
    assert task_video_path(tmp_path / "out.mp4", "atari/pong").name == "out-atari-pong.mp4"
    assert task_video_path(tmp_path / "out.mp4", "").name == "out.mp4"


def test_animated_video_is_a_small_gif_of_the_whole_episode(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoRecorder(path) as recorder:
        group = Scene(frames=200)
        recorder.begin(group)
        for _ in range(199):
            recorder.add(group)
        recorder.end(1.0, 199)
    picture, width, height = animated(path)
    assert picture.startswith(b"GIF89a")
    assert max(width, height) <= 240
    with av.open(io.BytesIO(picture)) as video:
        shades = [frame.to_ndarray(format="gray").mean() for frame in video.decode(video=0)]
    assert len(shades) == 100
    assert shades[0] < 20
    assert shades[-1] > 200, "the end is seen too"


class Scene:
    """Environments whose image becomes brighter with every step."""

    render_fps = 50

    def __init__(self, frames):
        self.frames, self.t = frames, 0

    def render(self, env):
        self.t += 1
        return np.full((300, 400, 3), 255 * self.t // self.frames, np.uint8)


def test_videos_are_shown_in_tensorboard_at_the_steps_of_the_policy(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoRecorder(path) as recorder:
        recorder.begin(group := Scene(frames=2))
        recorder.add(group)
        recorder.end(1.0, 1)
    assert show_videos(tmp_path / "run", [path], 700) is None
    (tmp_path / "run/tb").mkdir(parents=True)
    for steps in (700, 300):  # an older policy after a newer one: both are kept
        folder = show_videos(tmp_path / "run", [path], steps)
    found = EventAccumulator(str(folder))
    found.Reload()
    images = found.Images("eval/video")
    assert sorted(image.step for image in images) == [300, 700]
    assert images[0].encoded_image_string.startswith(b"GIF89a")
    assert not list((tmp_path / "run/tb").glob("events.*")), "training writes there"


def event_files(run):
    return sorted((run / "tb/videos").glob("events.*"))


def steps_of(run):
    found = EventAccumulator(str(run / "tb/videos"))
    found.Reload()
    return [image.step for image in found.Images("eval/video")]


def show(run, env_steps):
    show_pictures(run / "tb/videos", {"eval/video": (b"GIF89a" + bytes(100_000), 4, 4)}, env_steps)


def test_all_videos_of_a_run_are_in_one_event_file(tmp_path):
    running = EventAccumulator(str(tmp_path / "tb/videos"))
    for number, env_steps in enumerate((100, 200, 300), start=1):
        show(tmp_path, env_steps)
        running.Reload()  # a TensorBoard that is open meanwhile
        assert len(running.Images("eval/video")) == number
    assert steps_of(tmp_path) == [100, 200, 300]
    assert len(event_files(tmp_path)) == 1


def test_videos_after_a_kill_in_the_middle_of_one_are_in_a_new_event_file(tmp_path):
    show(tmp_path, 100)
    (first,) = event_files(tmp_path)
    complete = first.read_bytes()
    of_video = complete[int.from_bytes(complete[:8], "little") + 16 :]  # behind the record of the version
    for length in (5, 50_000):  # within the head of the next record, and within its picture
        first.write_bytes(complete + of_video[:length])
        show(tmp_path, 200)
        show(tmp_path, 300)
        files = event_files(tmp_path)
        assert len(files) == 2
        assert files[0].read_bytes().startswith(complete)
        assert steps_of(tmp_path) == [100, 200, 300]
        files[1].unlink()
    for contents in (b"", bytes(16 * (MOST_RECORDS + 1))):  # without a version; a stranger's, with very many records
        first.write_bytes(contents)
        show(tmp_path, 200)
        assert len(event_files(tmp_path)) == 2
        event_files(tmp_path)[1].unlink()


def test_videos_of_two_processes_at_once_are_in_two_event_files(tmp_path):
    show(tmp_path, 100)
    (first,) = event_files(tmp_path)
    with first.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        show(tmp_path, 200)
    assert len(event_files(tmp_path)) == 2
    assert steps_of(tmp_path) == [100, 200]


def test_videos_are_not_appended_through_a_link(tmp_path):
    show(tmp_path, 100)
    (first,) = event_files(tmp_path)
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileRefused):
        show(tmp_path, 200)


def test_videos_are_not_written_through_a_link(tmp_path):
    (tmp_path / "run/tb").mkdir(parents=True)
    (tmp_path / "run/tb/videos").symlink_to(tmp_path)
    with pytest.raises(FileRefused):
        show_videos(tmp_path / "run", [tmp_path / "a.mp4"], 1)
