"""episodes.csv: one line for every complete episode, also after a resume, a crash, and new numbers."""

import csv

import pytest

from sfactory.errors import FileRefused
from sfactory.monitor.episode_file import EPISODES_FILE, EpisodeFile, EpisodeLine, read_episodes


def line(env_steps, value=1.0, task="a/b", **infos):
    return EpisodeLine(env_steps, env_steps / 10, task, value, 7, infos)


def written(folder, *batches, names=(), count=0, env_steps=-1):
    file = EpisodeFile(folder, names, count, env_steps)
    for batch in batches:
        file.add(batch)
    file.close()
    return table(folder)


def table(folder):
    with open(folder / EPISODES_FILE, newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows):
    return [int(row["episode"]) for row in rows]


def test_episode_file_has_a_line_for_every_episode(tmp_path):
    rows = written(tmp_path, [line(10, -0.5), line(10, 3.0, "c,d")], [line(20, 1e-7)])
    assert rows[0] == {
        "episode": "1",
        "env_steps": "10",
        "seconds": "1.0",
        "task": "a/b",
        "return": "-0.5",
        "length": "7",
    }
    assert [row["task"] for row in rows] == ["a/b", "c,d", "a/b"]
    assert [float(row["return"]) for row in rows] == [-0.5, 3.0, 1e-7]
    assert numbers(rows) == [1, 2, 3]


def test_episode_file_is_complete_on_disk_after_every_call(tmp_path):
    file = EpisodeFile(tmp_path, (), 0, -1)
    file.add([line(10)])
    assert numbers(table(tmp_path)) == [1]
    file.close()


@pytest.mark.parametrize("count", [0, 2, 5])
def test_episode_file_keeps_the_episodes_of_the_checkpoint_and_goes_on_counting(tmp_path, count):
    written(tmp_path, [line(step) for step in range(10, 60, 10)])
    rows = written(tmp_path, [line(70)], count=count)
    assert numbers(rows) == [*range(1, count + 1), count + 1]
    assert rows[-1]["env_steps"] == "70"


def test_episode_file_of_a_rank_keeps_the_steps_of_the_checkpoint(tmp_path):
    written(tmp_path, [line(step) for step in range(10, 60, 10)])
    rows = written(tmp_path, [line(70)], count=None, env_steps=30)
    assert [(int(row["episode"]), row["env_steps"]) for row in rows] == [(1, "10"), (2, "20"), (3, "30"), (4, "70")]


def test_episode_file_drops_a_line_that_a_killed_process_left_incomplete(tmp_path):
    written(tmp_path, [line(10), line(20)])
    path = tmp_path / EPISODES_FILE
    path.write_text(path.read_text() + "3,30,3.0,a/b,1,7")  # complete cells, but no line end: the last may be cut
    assert numbers(written(tmp_path, [line(40)], count=3)) == [1, 2, 4]


def test_episode_file_gives_a_number_that_comes_later_a_column_in_the_whole_file(tmp_path):
    rows = written(tmp_path, [line(10, success=1.0)], [line(20, speed=2.5, success=0.0)], names=("first",))
    assert [(row["first"], row["success"], row["speed"]) for row in rows] == [("", "1", ""), ("", "0", "2.5")]
    rows = written(tmp_path, [line(30)], count=2)
    assert list(rows[0])[-3:] == ["first", "success", "speed"]
    many = {f"n{i}": 1.0 for i in range(100)}
    assert len(written(tmp_path, [line(40, **many)], count=3)[0]) == 6 + 40


def test_episode_file_keeps_its_own_columns_apart_from_numbers_of_info_with_the_same_name(tmp_path):
    infos = {"return": 99.0, "episode": 7.0, "length": 1.0, "task": 3.0}
    written(tmp_path, [line(10, 5.0)._replace(infos=infos)], [line(20, 6.0, new=1.0)], names=("return",))
    rows = written(tmp_path, [line(30, 8.0)], count=2)
    assert [(row["episode"], row["return"], row["length"], row["task"]) for row in rows] == [
        ("1", "5", "7", "a/b"), ("2", "6", "7", "a/b"), ("3", "8", "7", "a/b"),
    ]  # fmt: skip
    assert [rows[0][f"info/{name}"] for name in infos] == ["99", "7", "1", "3"]


def test_read_episodes_takes_the_first_of_columns_with_the_same_name(tmp_path):
    path = tmp_path / EPISODES_FILE
    path.write_text("episode,env_steps,seconds,task,return,length,return\n1,10,1.0,a/b,5,7,99\n")
    (row,) = read_episodes(path)
    assert row["return"] == "5"
    (kept, _) = written(tmp_path, [line(20)], count=1)
    assert (kept["return"], kept["info/return"]) == ("5", "")


def test_episode_file_never_goes_back_in_time(tmp_path):
    rows = written(tmp_path, [line(20)._replace(seconds=5.0), line(20)._replace(seconds=4.0)])
    assert [row["seconds"] for row in rows] == ["5.0", "5.0"]


def test_episode_file_of_another_program_is_replaced_and_a_link_is_refused(tmp_path):
    path = tmp_path / EPISODES_FILE
    path.write_text("r,l,t\n1,2,3\n")
    assert not list(read_episodes(path))
    assert numbers(written(tmp_path, [line(10)])) == [1]
    other = tmp_path / "other"
    path.rename(other)
    path.symlink_to(other)
    before = other.read_text()
    with pytest.raises(FileRefused):
        EpisodeFile(tmp_path, (), 0, -1)
    assert other.read_text() == before
