"""A film shows the game that was scored, picture by picture, and nothing of any other."""

from types import SimpleNamespace

import av
import numpy as np
import pytest

from sfactory.envs import EnvFault, Episode, Step
from sfactory.play import video
from sfactory.play.episodes import play
from sfactory.play.video import Video, check_video, prepared, video_path


class Counting:
    """E games of 5 steps each. Its picture is one grey: 10 x the steps played, 150 more in the second game.

    late: a game is reported at the reset step after it, as ale-py does. breaks: the step at which the first game of the
    first environment 0 breaks.
    """

    render_fps, length = 12.5, 5

    def __init__(self, num_envs, first_env, late=False, breaks=0):
        self.E, self.late, self.breaks = num_envs, late, breaks if first_env == 0 else 0
        self.t, self.over, self.games, self.drawn = 0, False, 0, 0

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
                self.over, self.games = True, self.games + 1
                episodes = () if self.late else self.report()
        reward = valid.astype(np.float32)
        return Step({"obs": np.zeros((self.E, 1), np.float32)}, reward, none, none, valid, ~valid, episodes, faults)

    def report(self):
        return tuple(Episode(env, 5.0, 5) for env in range(self.E))

    def render(self, env):
        assert env == 0
        self.drawn += 1
        return np.full((3, 5, 3), 10 * self.t + 150 * (self.games - self.over), np.uint8)

    def close(self):
        pass


def filmed(path, games=1, episodes=4, max_steps=100, **how):
    groups = []

    def make(num_envs, first_env):
        groups.append(Counting(num_envs, first_env, **how))
        return groups[-1]

    with Video(path, games) as film:
        played = play(make, lambda obs, first: {"action": np.zeros(len(first), int)}, episodes, max_steps, film)
    return film.filmed, played, groups


def greys(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12.5
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert all(p.shape[0] % 2 == p.shape[1] % 2 == 0 and p.shape[0] >= 400 for p in pictures)
    return [round(float(p.mean()) / 10) for p in pictures]


@pytest.mark.parametrize("late", [False, True])
def test_a_film_has_a_picture_before_the_first_step_and_one_after_every_step(tmp_path, late):
    (one,), played, _ = filmed(tmp_path / "out.mp4", late=late)
    assert (one.length, one.episodic_return) == (5, 5.0) == (played.lengths[0], played.returns[0])
    assert greys(tmp_path / "out.mp4") == [0, 1, 2, 3, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("late", [False, True])
def test_several_games_are_a_file_each(tmp_path, late):
    found, _, groups = filmed(tmp_path / "out.mp4", games=2, episodes=96, late=late)
    assert [one.file for one in found] == [str(tmp_path / f"out-{n}.mp4") for n in (1, 2)]
    assert greys(tmp_path / "out-1.mp4") == [0, 1, 2, 3, 4, 5]
    assert greys(tmp_path / "out-2.mp4") == [15, 16, 17, 18, 19, 20]
    assert groups[0].drawn == 12, "the third game is played and not drawn"


class Noted:
    """A container of av's that notes its end."""

    def __init__(self, container, notes):
        self.container, self.notes = container, notes

    def close(self):
        self.notes.append("closed")
        self.container.close()

    def __getattr__(self, name):
        return getattr(self.container, name)


def test_a_game_that_broke_is_not_in_the_film(tmp_path, monkeypatch):
    """And its file is closed before another one takes its place: closing it later would write into that."""
    notes, real = [], av.open
    monkeypatch.setattr(av, "open", lambda *how, **more: notes.append("opened") or Noted(real(*how, **more), notes))
    (one,), played, groups = filmed(tmp_path / "out.mp4", breaks=3)
    monkeypatch.undo()
    assert notes == ["opened", "closed"] * 2
    assert (len(groups), played.faults, len(played.returns)) == (2, 1, 4)
    assert one.length == 5
    assert greys(tmp_path / "out.mp4") == [0, 1, 2, 3, 4, 5]


def test_a_game_that_was_cut_is_filmed_to_the_cut(tmp_path):
    (one,), played, _ = filmed(tmp_path / "out.mp4", max_steps=3)
    assert (one.length, played.capped) == (3, 4)
    assert greys(tmp_path / "out.mp4") == [0, 1, 2, 3]


def test_what_ends_in_the_middle_leaves_no_file(tmp_path):
    class Torn(Counting):
        length = 300  # so long that the encoder has written some of it

        def render(self, env):
            if self.t == 200:
                assert list(tmp_path.iterdir()), "or this test could not fail"
                raise RuntimeError("torn")
            return np.zeros((64, 64, 3), np.uint8)

    film = Video(tmp_path / "out.mp4")
    with pytest.raises(RuntimeError, match="torn"), film:
        play(lambda n, first: Torn(n, first), lambda obs, first: {"action": first}, 2, 1000, film)
    assert not list(tmp_path.iterdir())


def test_pictures_grow_crisp_and_get_even_sides():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    large = prepared(picture)
    assert large.shape == (400, 600, 3)
    assert (large[::200, ::200] == picture).all()
    assert prepared(np.zeros((451, 403, 3), np.uint8)).shape == (452, 404, 3)


def test_films_that_cannot_be_made_are_refused_before_anything_is_played(tmp_path, monkeypatch):
    check_video(tmp_path / "out.mp4", 4, 100)
    for path, games, said in [
        (tmp_path / "out.gif", 1, "written as .mp4"),
        (tmp_path / "none" / "out.mp4", 1, "there is no folder"),
        (tmp_path / "out.mp4", 5, "environment 0 plays 4 of 100 games"),
        (tmp_path / "out.mp4", 0, "must be 1 to 4"),
    ]:
        with pytest.raises(ValueError, match=said):
            check_video(path, games, 100)
    monkeypatch.setattr(video, "find_spec", lambda name: None if name == "av" else SimpleNamespace())
    with pytest.raises(ValueError, match=r"pip install 'sfactory\[video\]'"):
        check_video(tmp_path / "out.mp4", 1, 100)


def test_how_many_games_needs_to_know_where(typed):
    code, _, line = typed("eval", "runs/none", "--video-games", 2)
    assert (code, line.endswith("say where: --video FILE.mp4")) == (2, True)


def test_every_task_has_a_film_of_its_own(tmp_path):
    assert video_path(tmp_path / "out.mp4", "atari/pong").name == "out-atari-pong.mp4"
    assert video_path(tmp_path / "out.mp4", "").name == "out.mp4"
