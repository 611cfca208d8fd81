"""The exit code of a reaped process is known also where the system does not report the exits of children."""

import os
import subprocess
import sys

import pytest

TASKS = """
import os, signal
class Exits:
    def __init__(self, how): self.how = how
    def run(self, name, fds):
        if self.how == "reaper killed":
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        if self.how < 0:
            os.kill(os.getpid(), -self.how)
        return self.how
"""
PROGRAM = """
import os, signal, sys, threading, time
from sfactory.supervisor.spawn import STDERR, OrphanKiller, SpawnMessage, spawn
from tasks import Exits

def collect(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

def exit_codes():
    processes = [spawn(SpawnMessage("worker", (), Exits(how)), killer.mark("worker", number), STDERR)
                 for number, how in enumerate((0, 7, -11, "reaper killed"))]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and None in [process.exitcode for process in processes]:
        time.sleep(0.02)
    print([process.exitcode for process in processes], flush=True)

if __name__ == "__main__":
    handlers = {"ignored": signal.SIG_IGN, "collected": collect, "reported": signal.SIG_DFL}
    signal.signal(signal.SIGCHLD, handlers[sys.argv[1]])
    killer = OrphanKiller()
    thread = threading.Thread(target=exit_codes)  # where no handler can be set
    thread.start()
    thread.join()
    killer.close()
    os._exit(0)
"""


@pytest.mark.parametrize("exits", ["ignored", "collected", "reported"])
def test_reaped_process_has_an_exit_code_if_exits_of_children_are(tmp_path, exits):
    """Ignored: SIGCHLD was, at the start or later. Collected: by a handler of the program that trains."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", exits],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stdout.strip() == "[0, 7, -11, -9]", done.stderr[-2000:]
