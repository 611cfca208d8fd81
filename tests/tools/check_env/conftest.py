"""What the tests of `check-env` share."""

import pytest

from sfactory.tools import check_env


@pytest.fixture(autouse=True)
def _no_slow_machine(monkeypatch):
    """How long a reset takes is measured; whether that is told rightly is tested with a clock of our own."""
    monkeypatch.setattr(check_env, "SLOW_RESETS", 2.0)
