"""The lock of a folder: exclusive, with the holder's process id, released on close."""

import os
from pathlib import Path

import pytest
from builders import NO_LOCKS

from sfactory.errors import RunBusy
from sfactory.run.lock import lock_folder


@pytest.mark.parametrize("name", NO_LOCKS)
def test_lock_folder_goes_on_with_a_warning_where_the_file_system_has_no_locks(tmp_path, flock_fails, name):
    flock_fails(name)
    lines = []
    os.close(lock_folder(tmp_path, lines.append))
    assert (tmp_path / ".lock").read_text() == str(os.getpid())
    (line,) = lines
    assert line.startswith(f"warning: the file system of {tmp_path} has no locks (")
    assert "it would not be refused" in line


@pytest.mark.parametrize("name", ["EWOULDBLOCK", "EACCES"])
def test_lock_folder_calls_only_a_lock_of_another_process_busy(tmp_path, flock_fails, name):
    flock_fails(name)
    with pytest.raises(RunBusy, match="is in use by process unknown"):
        lock_folder(tmp_path)


def test_a_sweep_works_without_locks(typed, flock_fails, capsys):
    from sfactory.population.runner import locked_folder

    flock_fails("ENOSYS")
    with locked_folder(Path("s")):
        assert "the file system of s has no locks" in capsys.readouterr().err


def test_lock_folder_refuses_a_second_lock_and_names_the_holder(tmp_path):
    lock = lock_folder(tmp_path)
    with pytest.raises(RunBusy, match=f"{tmp_path} is in use by process {os.getpid()}"):
        lock_folder(tmp_path)
    os.close(lock)
    os.close(lock_folder(tmp_path))


def test_lock_folder_leaks_no_descriptor_when_refused(tmp_path):
    lock = lock_folder(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RunBusy):
        lock_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(lock)
