"""Environments that do what no environment should, against every command that builds one.

Each must end with the command's own last line and its documented exit code, leave nothing running, and change nothing
in the process of the command: here that is the process of the tests.
"""

import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from builders import trained

from sfactory.cli import main as cli

HOSTILE = '''
import atexit, ctypes, os, resource, signal, subprocess, sys, threading, time
import gymnasium, numpy as np
from gymnasium import spaces


def crash():
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def interrupt():
    raise KeyboardInterrupt


def hang():
    time.sleep(1000)


def signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def output():
    print("PRINTED by Python")
    os.write(1, b"PRINTED by the descriptor\\n")
    ctypes.CDLL(None).puts(b"PRINTED by C")


def surroundings():
    os.chdir("/")
    os.umask(0o777)
    os.environ.clear()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def threads():
    threading.Thread(target=hang).start()
    atexit.register(hang)
    atexit.register(os._exit, 5)


def files():
    os.close(0)
    output()
    os.close(1)
    os.close(2)


def all_files():
    os.closerange(0, 4096)


def forks():
    for _ in range(4):
        if os.fork() == 0:
            os.setsid()
            hang()
    subprocess.Popen(["sleep", "1000"], start_new_session=True)


def copies():
    os.fork()  # the copy goes on as if it were the process itself


def stops():
    os.kill(os.getpid(), signal.SIGSTOP)


DEEDS = {
    "exit 0": lambda: sys.exit(0),
    "exit text": lambda: sys.exit("sfactory: finished (exit 0): all is well"),
    "_exit 0": lambda: os._exit(0),
    "_exit 3": lambda: os._exit(3),
    **{deed.__name__: deed for deed in (
        crash, interrupt, hang, signals, output, surroundings, threads, files, all_files, forks, copies, stops
    )},
}


class Hostile(gymnasium.Env):
    """Does its deeds once in a process, in one of its methods. Otherwise an episode is 8 steps."""

    done = False
    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, how="", where="init"):
        self.how, self.where = how.split(",") if how else [], where
        self.act("init")

    def act(self, where):
        if where == self.where and not Hostile.done:
            Hostile.done = True
            for how in self.how:
                DEEDS[how]()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.act("reset")
        self.t = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self.act("step")
        self.t += 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), float(action), self.t >= 8, False, {}

    def close(self):
        self.act("close")


gymnasium.register("Hostile-v0", Hostile)
'''
TARGET = "gymnasium/hostile:Hostile-v0"
HARMLESS = "output,surroundings,signals,threads,forks,files"
"""Deeds that only concern the process in which they happen: the command works as if nothing were."""
LIMIT_S = 6
TINY = [
    "--sampling.num-samplers", "1", "--sampling.groups-per-sampler", "1", "--sampling.envs-per-group", "2",
    "--sampling.rollout-length", "16", "--batch.minibatches", "1", "--model.hidden", "8", "--stop.env-steps", "200",
    "--run.dir", "runs/mine",
]  # fmt: skip

CASES = [
    # deeds, method, commands, exit code, words of the last line
    (HARMLESS, "init", "train check eval", 0, ""),
    (HARMLESS, "step", "train check eval", 0, ""),
    ("copies", "init", "check", 0, ""),
    ("exit 0", "init", "train check eval", 6, "could not be built: SystemExit: 0"),
    ("exit text", "init", "train check", 6, "could not be built: SystemExit: sfactory: finished"),
    ("interrupt", "init", "train check eval", 6, "could not be built: KeyboardInterrupt"),
    ("_exit 0", "init", "train check eval", 6, "could not be built: it ended its process (exit code 0)"),
    ("_exit 3", "init", "train check", 6, "could not be built: it ended its process (exit code 3)"),
    ("crash", "init", "train check eval", 6, "could not be built: it ended its process (killed by SIGSEGV)"),
    ("signals,threads,hang", "init", "train check", 6, f"within {LIMIT_S} s (env.build-timeout)"),
    ("stops", "init", "check", 6, f"within {LIMIT_S} s (env.build-timeout)"),
    ("all_files", "init", "check", 6, "it ended its process"),
    ("exit 0", "step", "eval", 6, "step raised SystemExit: 0"),
    ("exit text", "step", "eval", 6, "step raised SystemExit: sfactory: finished"),
    ("interrupt", "step", "check", 6, "data"),
    ("_exit 0", "step", "check eval", 6, "failed in a step: it ended its process (exit code 0)"),
    ("_exit 3", "step", "check", 6, "failed in a step: it ended its process (exit code 3)"),
    ("crash", "step", "check eval", 6, "failed in a step: it ended its process (killed by SIGSEGV)"),
    ("hang", "step", "check eval", 6, f"did not return from a step within {LIMIT_S} s (env.step-timeout)"),
    ("hang", "reset", "check eval", 6, f"within {LIMIT_S} s (env.build-timeout)"),
    ("hang", "close", "check eval", 6, f"within {LIMIT_S} s (env.build-timeout)"),
]
TABLE = [(command, *case[:2], *case[3:]) for case in CASES for command in case[2].split()]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of the same environment without any deeds; `eval` gives it some."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.py").write_text(HOSTILE)
    sys.path.insert(0, str(folder))
    try:
        yield trained(folder / "run", TARGET, checkpoint={"exact": False})
    finally:
        sys.path.remove(str(folder))


@pytest.fixture
def command(run_dir, tmp_path, monkeypatch, capfd):
    """Run a command in this process, in an empty folder; return exit code, stdout and the lines of stderr."""
    monkeypatch.chdir(tmp_path)
    words = {"train": ["train", TARGET, *TINY], "check": ["check-env", TARGET, "--seconds", "0.5", "--json"],
             "eval": ["eval", str(run_dir), "--episodes", "4", "--num-envs", "2", "--json"]}  # fmt: skip

    def run(name, *more):
        with pytest.raises(SystemExit) as exit_:
            cli.main([*words[name], *more])
        captured = capfd.readouterr()
        return exit_.value.code, captured.out, captured.err.splitlines()

    return run


def surroundings_of_this_process():
    signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)]
    umask = os.umask(0o22)
    os.umask(umask)
    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)]
    threads = [thread for thread in threading.enumerate() if not thread.daemon]
    files = [os.fstat(number).st_ino for number in range(3)]
    return os.getcwd(), signals, umask, dict(os.environ), limits, threads, files


def left_running(mark):
    """Command lines of other processes that have `mark` in their environment."""
    found = []
    for process in psutil.process_iter(["pid"]):
        try:
            if process.pid != os.getpid() and mark in process.environ():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [line for line in found if "resource_tracker" not in line]  # of multiprocessing, one per process


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "how", "where", "code", "words"), TABLE, ids=[":".join(row[:3]) for row in TABLE])
def test_commands_end_in_their_own_way_whatever_an_environment_does(
    command, tmp_path, monkeypatch, name, how, where, code, words
):
    mark = f"SFACTORY_TEST_{os.getpid()}_{time.monotonic_ns()}"
    monkeypatch.setenv(mark, "1")
    before = surroundings_of_this_process()
    limits = [word for kind in ("build", "step") if f"env.{kind}-timeout" in words
              for word in (f"--env.{kind}-timeout", str(LIMIT_S))]  # fmt: skip
    got, out, err = command(name, "--env.settings.how", how, "--env.settings.where", where, *limits)
    assert surroundings_of_this_process() == before
    last = err[-1]
    assert got == code, err[-20:]
    outcome = {"train": "finished", "check": "checked", "eval": "evaluated"}[name] if code == 0 else "environment fault"
    outcomes = outcome, "checks failed" if name == "check" and code else outcome
    assert last.startswith(tuple(f"sfactory: {outcome} (exit {code}): " for outcome in outcomes))
    assert words in last
    assert "PRINTED" not in out, "stdout is for the result"
    assert [line for line in err if "PRINTED" in line] or "output" not in how or name == "train"
    if "hang" in how and code:
        assert any("hostile.py" in line and " in hang" in line for line in err), "the stack says where it hangs"
    assert left_running(mark) == []
    if name == "train":
        assert [path.name for path in tmp_path.iterdir()] == (["runs"] if code == 0 else [])
        assert code != 0 or (Path("runs/mine") / "status.json").is_file()
