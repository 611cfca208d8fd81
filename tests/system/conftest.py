"""Fixtures for tests of whole runs."""

import pytest
import run_helpers


@pytest.fixture(autouse=True)
def no_run_left():
    """A run that a failed test leaves would train beside all later tests, and they would fail, too."""
    yield
    for process in run_helpers.STARTED:
        process.kill()  # its workers end with it
        process.wait()
    run_helpers.STARTED.clear()
