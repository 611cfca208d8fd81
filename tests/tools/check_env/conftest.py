"""Fixtures of the tests of `check-env`."""

import pytest

from sfactory.tools import env_rules


@pytest.fixture(autouse=True)
def _no_slow_machine(monkeypatch):
    """Disable the rule on slow resets, which depends on the machine; it has a test with a fake clock."""
    monkeypatch.setattr(env_rules, "SLOW_RESETS", 2.0)
