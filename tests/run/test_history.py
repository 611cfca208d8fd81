"""pbt.json: read, written, refused."""

import json

import pytest

from sfactory.errors import CommandError
from sfactory.run.history import History, Record, read_history, write_history

RECORDS = (
    Record(0, 1, 100, 1.5, 0.1, {"optim.lr": 1e-3}, "ab", next_settings={"optim.lr": 1e-3}),
    Record(1, 1, 110, None, 0.0, {"optim.lr": 1.0}, "cd", True, 0, 100, {"optim.lr": 1.2e-3}),
)


def test_history_is_read_as_it_was_written(tmp_path):
    assert read_history(tmp_path) is None
    history = History({"members": 2}, [{"optim.lr": 1e-3}, {"optim.lr": 1.0}], RECORDS, 0, True)
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history
    assert [path.name for path in tmp_path.iterdir()] == ["pbt.json"]


def test_history_settings_of_a_member_are_the_first_ones_or_those_of_its_newest_record():
    history = History({}, [{"optim.lr": 1e-3}, {"optim.lr": 1.0}])
    assert history.settings(1) == {"optim.lr": 1.0}
    assert history.extended(RECORDS).settings(1) == {"optim.lr": 1.2e-3}
    assert history.extended(RECORDS).newest() == {0: RECORDS[0], 1: RECORDS[1]}
    assert history.extended(RECORDS).of(1) == [RECORDS[1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ("[]", "is no history of a population"),
        ('{"format": 1, "options": {}, "initial": [], "records": [{"member": 1}]}', "is no history of a population"),
    ],
)
def test_read_history_refuses_other_files_in_one_line(tmp_path, text, message):
    (tmp_path / "pbt.json").write_text(text)
    with pytest.raises(CommandError, match=message) as caught:
        read_history(tmp_path)
    assert caught.value.exit_code == 2


def test_write_history_keeps_numbers_exactly(tmp_path):
    history = History({}, [{"optim.lr": 0.1 + 0.2}], ())
    write_history(tmp_path, history)
    assert json.loads((tmp_path / "pbt.json").read_text())["initial"] == [{"optim.lr": 0.30000000000000004}]
