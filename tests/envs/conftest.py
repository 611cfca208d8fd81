"""Fixtures for environments in files of the user's own."""

import sys

import gymnasium
import pytest
from builders import MY_ENV

from sfactory.envs import env_copies


@pytest.fixture
def short_retries(monkeypatch):
    """What fails at every start is tried again for 0.1 s, not for 2 s; `test_retry.py` has the whole time."""
    monkeypatch.setattr(env_copies, "START_S", 0.1)


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """Return a function that writes a Python file into the current folder, which is empty at first.

    Modules, import paths and registered ids are as before at the end of the test.
    """
    monkeypatch.chdir(tmp_path)
    modules, path, registry = set(sys.modules), list(sys.path), dict(gymnasium.registry)

    def write(name, text="", base=True):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text((MY_ENV if base else "") + text)
        return file

    yield write
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.path[:] = path
    gymnasium.registry.clear()
    gymnasium.registry.update(registry)
