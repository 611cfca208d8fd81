"""Fixtures for all tests."""

import errno
import fcntl
import functools
import gc
import os

import pytest

from sfactory.cli import main as cli

gc.disable()  # while the tests are collected: what is loaded and made then stays


def pytest_collection_finish():
    """Collect garbage from here on, and never look at what was loaded before."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before tests that are marked slow are deselected
def pytest_collection_modifyitems(items):
    """Leave one case in k of a large table for `make test`; all others are marked slow."""
    seen = {}
    for item in items:
        if marker := item.get_closest_marker("sampled"):
            function = item.nodeid.partition("[")[0]
            seen[function] = number = seen.get(function, -1) + 1
            if number % marker.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadscope` the tests of a module with a fixture for all of them run in one process, all others
    anywhere: what the fixture makes is made once, not once for every process.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if 'scope="module"' in _text(config.rootpath / file) else nodeid

    return Scheduler(config, log)


@functools.cache
def _text(path):
    return path.read_text()


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory):
    """Records of trained runs (`sfactory.run.trust`) do not go to the home folder of the person who runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def forked(monkeypatch):
    """Workers of runs that are started in the process of the tests are copies of it (`forked_processes.py`)."""

    def start(words, fds):
        from forked_processes import fork_reaper  # imports torch, which most tests of a command do not need

        return fork_reaper(words, fds)

    monkeypatch.setattr("sfactory.supervisor.reaped_process.start_reaper", start)


@pytest.fixture(scope="session")
def envpool_loaded():
    """Loading envpool takes seconds: no copy of this process has to load it."""
    import envpool  # noqa: F401


@pytest.fixture
def flock_fails(monkeypatch):
    """flock fails with the error of this name."""

    def fail(name):
        def flock(*_):
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

        monkeypatch.setattr(fcntl, "flock", flock)

    return fail


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys, forked):
    """Run a command in an empty folder; return exit code, stdout and the last line of stderr."""
    monkeypatch.chdir(tmp_path)

    def type_(*words):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        return exit_.value.code, captured.out, lines[-1] if lines else ""

    return type_
