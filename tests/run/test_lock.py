"""The lock of a folder: exclusive, with the holder's process id, released on close."""

import os

import pytest

from sfactory.errors import RunBusy
from sfactory.run.lock import lock_folder


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
