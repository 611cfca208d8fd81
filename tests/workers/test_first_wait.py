"""The first update of a job says once which ranks it waits for, if that is long."""

from pathlib import Path

import pytest

from sfactory.device.ranks import Ranks
from sfactory.workers.first_wait import REPORT_S, FirstWait


@pytest.mark.parametrize(
    ("own", "folder", "others", "expected"),
    [
        (0, "runs/a", [1], "waits for rank 1, which starts or fills its first batch; see runs/a/rank-1/log.txt"),
        (1, "runs/a/rank-1", [0, 2], "waits for rank 0, 2, which starts or fills its first batch; see runs/a/log.txt"),
    ],
)
def test_first_wait_names_the_ranks_and_a_log_once_if_it_is_long(own, folder, others, expected):
    now = [100.0]
    wait = FirstWait(Ranks(own, 3, own, 3), Path(folder), clock=lambda: now[0])
    assert wait.line(others) == ""
    now[0] += REPORT_S - 0.1
    assert wait.line(others) == ""
    now[0] += 0.2
    assert wait.line(others).endswith(expected)
    now[0] += REPORT_S
    assert wait.line(others) == ""


def test_first_wait_has_no_line_after_the_first_update():
    now = [100.0]
    wait = FirstWait(Ranks(0, 2, 0, 2), Path("runs/a"), clock=lambda: now[0])
    wait.line([1])
    wait.done = True
    now[0] += 10 * REPORT_S
    assert wait.line([1]) == ""
