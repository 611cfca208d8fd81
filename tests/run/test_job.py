"""The run folder of a job with several ranks."""

import os
import threading
import time

import pytest

import sfactory
from sfactory.device.ranks import ALONE, Ranks
from sfactory.errors import CommandError
from sfactory.run import job
from sfactory.run.job import check_job, settings_of_rank, wait_for_leader
from sfactory.run.lock import lock_folder

FIRST, SECOND = Ranks(0, 2, 0, 2), Ranks(1, 2, 1, 2)


def config(**sections):
    return sfactory.make_config("classic/cartpole", **{"run": {"dir": "runs/a"}, **sections})


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"run": {"dir": ""}}, "2 ranks need run.dir"),
        ({"sampling": {"auto": True}}, "sampling.auto"),
        ({"selfplay": {"share": 0.5}}, "selfplay.share"),
        ({"surrogate": {"objective": "bapo"}}, "surrogate.objective bapo needs a single rank: it moves its bounds"),
        ({"surrogate": {"mask": "m2po"}}, "surrogate.mask m2po needs a single rank: it sorts the samples"),
    ],
)
def test_check_job_refuses_what_several_ranks_cannot_have(sections, named):
    check_job(config(**sections), ALONE)
    with pytest.raises(CommandError, match=named):
        check_job(config(**sections), FIRST)


def test_rank_0_alone_evaluates_and_reports():
    given = config(eval={"every": 1000, "episodes": 5, "greedy": True, "video": True})
    assert settings_of_rank(given, FIRST) == given
    followed = settings_of_rank(given, SECOND)
    assert (followed.eval.every, followed.log.quiet, followed.log.wandb) == (0, True, False)


def test_wait_for_leader_returns_when_rank_0_has_opened_the_folder_and_not_before(tmp_path):
    opened = []

    def open_folder():
        time.sleep(0.3)
        lock = lock_folder(tmp_path)
        (tmp_path / "config.toml").touch()
        opened.append(lock)

    wait_for_leader(tmp_path, FIRST)  # rank 0 does not wait
    (tmp_path / "config.toml").touch()  # of an earlier run, which has ended
    thread = threading.Thread(target=open_folder)
    thread.start()
    wait_for_leader(tmp_path, SECOND)
    assert opened
    thread.join()
    os.close(opened[0])


def test_wait_for_leader_ends_with_exit_7_and_asks_for_a_shared_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "LEADER_S", 0.1)
    with pytest.raises(
        CommandError, match=r"rank 1 of 2: rank 0 has not opened .* do all ranks see this folder"
    ) as error:
        wait_for_leader(tmp_path / "missing", SECOND)
    assert error.value.exit_code == 7
