"""A reaper ends everything that its command started, even if it is killed itself, and exits as the command did."""

import os
import random
import secrets
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sfactory.supervisor import reaper
from sfactory.supervisor.reaped_process import reaper_command
from sfactory.supervisor.spawn import OrphanKiller

SIMULATOR = "import time; time.sleep(600)"
CODE = f"""
import os, subprocess, sys, time
SIMULATOR = {SIMULATOR!r}
run = [sys.executable, "-c", SIMULATOR, sys.argv[1]]
plain = subprocess.Popen(run)
session = subprocess.Popen(run, start_new_session=True)
empty = subprocess.Popen(run, start_new_session=True, env={{}})
if os.fork() == 0:  # a daemon: its parent exits at once
    os.setsid()
    subprocess.Popen(run, env={{}})
    os._exit(0)
os.wait()
print("ready", flush=True)
how = sys.argv[2]
if how == "sleep":
    time.sleep(600)
if how.startswith("kill"):
    os.kill(os.getpid(), int(how[4:]))
sys.exit(int(how))
"""


def tagged(tag):
    """Processes of the simulator with this tag."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if {tag, SIMULATOR} <= set(process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def tag():
    tag = secrets.token_hex(8)
    yield tag
    for process in tagged(tag):
        process.kill()


def start(tmp_path, tag, how, mark="run/worker/0/", parent=None):
    """A reaper whose command starts four simulators: waits until they run."""
    output = tmp_path / "output.txt"
    command = [sys.executable, "-c", CODE, tag, how]
    code_r, code_w = os.pipe()
    words = [
        *reaper_command(),
        "worker",
        str(parent or os.getpid()),
        str(code_w),
        mark,
        str(output),
        "SOME_VARIABLE=1",
        "--",
        *command,
    ]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, pass_fds=(code_w,))
    os.close(code_w)
    process.code = os.fdopen(code_r)
    eventually(lambda: output.exists() and "ready" in output.read_text())
    return process


def command_of(process):
    """The command that a reaper runs."""
    (command,) = (child for child in psutil.Process(process.pid).children() if CODE in child.cmdline())
    return command


@pytest.mark.sampled(2)  # an exit code and two signals
@pytest.mark.parametrize(("how", "code"), [("7", 7), ("0", 0), ("kill9", -9), ("kill11", -11), ("kill6", -6)])
def test_reaper_ends_what_its_command_leaves_and_exits_as_it_did(tmp_path, tag, how, code):
    process = start(tmp_path, tag, how)
    assert process.wait(10) == code
    assert process.code.read() == str(code), "the end of the pipe is the end of the reaper: nothing inherits it"
    assert not tagged(tag)


def test_reaper_kills_its_command_on_stop(tmp_path, tag):
    process = start(tmp_path, tag, "sleep")
    assert len(tagged(tag)) == 4
    process.send_signal(reaper.STOP)
    assert process.wait(10) == -signal.SIGKILL
    assert not tagged(tag)


def test_reaper_ends_everything_when_its_command_is_killed_from_outside(tmp_path, tag):
    process = start(tmp_path, tag, "sleep")
    command_of(process).kill()
    assert process.wait(10) == -signal.SIGKILL
    assert not tagged(tag)


NOT_KILLED = """
import os, signal, sys, time
from sfactory.supervisor import reaper
kill = reaper.kill
reaper.kill = lambda pids, number: None  # as if the system could not end it
reaper.GIVE_UP_S = 0.3
waited_for = {signal.SIGCHLD, reaper.STOP, reaper.STACKS}
signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
child = os.fork()
if child == 0:
    time.sleep(30)
    os._exit(0)
for number in (reaper.STOP, reaper.STACKS, reaper.STOP):
    os.kill(os.getpid(), number)
begun = time.monotonic()
print(reaper._wait_for(child, waited_for), time.monotonic() - begun)
kill([child], signal.SIGKILL)
os.waitpid(child, 0)
"""


def test_reaper_gives_up_a_command_that_sigkill_does_not_end():
    found = subprocess.run([sys.executable, "-c", NOT_KILLED], capture_output=True, text=True, timeout=20, check=True)
    status, seconds = map(float, found.stdout.split())
    assert os.waitstatus_to_exitcode(int(status)) == -signal.SIGKILL
    assert 0.3 <= seconds < 5.0


def test_end_marked_returns_what_it_cannot_kill(monkeypatch):
    monkeypatch.setattr(reaper, "GIVE_UP_S", 0.1)
    monkeypatch.setattr(reaper, "kill", lambda pids, number: None)
    mark = f"{secrets.token_hex(8)}/worker/0/"
    assert reaper.end_marked(mark) == []
    with subprocess.Popen([sys.executable, "-c", SIMULATOR, mark]) as process:
        eventually(lambda: reaper.end_marked(mark) == [process.pid])
        process.kill()


def test_reaper_ignores_what_a_scheduler_sends_to_all_processes(tmp_path, tag):
    process = start(tmp_path, tag, "sleep")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(reaper.STOP)
    process.wait(10)


def test_reaper_collects_simulators_that_exit_while_the_command_runs(tmp_path, tag):
    process = start(tmp_path, tag, "sleep")
    ours = psutil.Process(process.pid)
    eventually(lambda: len(ours.children()) == 2)  # the command, and the daemon, whose parent is gone
    (daemon,) = (child for child in ours.children() if SIMULATOR in child.cmdline())
    daemon.kill()
    eventually(lambda: len(ours.children()) == 1)
    process.send_signal(reaper.STOP)
    process.wait(10)


def test_reaper_gives_its_command_the_variables_and_no_others(tmp_path, tag):
    process = start(tmp_path, tag, "sleep")
    command = command_of(process)
    environ = command.environ()
    assert (environ["SOME_VARIABLE"], environ[reaper.MARK]) == ("1", "run/worker/0/")
    assert "SOME_VARIABLE" not in os.environ
    assert reaper.MARK not in os.environ
    process.send_signal(reaper.STOP)
    process.wait(10)


def test_end_marked_kills_what_a_killed_reaper_left(tmp_path, tag):
    """Two of the four simulators have an environment of their own without the mark: they cannot be found."""
    mark = f"{secrets.token_hex(8)}/worker/0/"
    process = start(tmp_path, tag, "sleep", mark)
    command = command_of(process)
    process.kill()
    process.wait(10)
    eventually(lambda: not command.is_running() or command.status() == psutil.STATUS_ZOMBIE)  # by its death signal
    assert len(tagged(tag)) == 4
    reaper.end_marked(mark)
    assert len(tagged(tag)) == 2


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_reaper import start
print(start(Path(sys.argv[2]), sys.argv[3], "sleep").pid, flush=True)
time.sleep(600)
"""


def test_reaper_ends_everything_when_its_parent_is_killed_and_there_is_no_orphan_killer(tmp_path, tag):
    words = [sys.executable, "-c", PARENT, os.path.dirname(__file__), str(tmp_path), tag]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline()
    assert len(tagged(tag)) == 4
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not tagged(tag), 1.0)


SUPERVISOR = """
import subprocess, sys, time
from sfactory.supervisor.spawn import OrphanKiller
killer = OrphanKiller()
sys.path.insert(0, sys.argv[1])
from test_reaper import start
from pathlib import Path
process = start(Path(sys.argv[2]), sys.argv[3], "sleep", killer.mark("worker", 0))
killer.watch(process.pid)
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def supervisor(tmp_path, tag):
    """A process with an orphan killer and a worker; (process, reaper of the worker)."""
    words = [sys.executable, "-c", SUPERVISOR, os.path.dirname(__file__), str(tmp_path), tag]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    yield process, psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("state", ["running", "stopped", "killed"])
def test_nothing_is_left_a_second_after_the_supervisor_was_killed(supervisor, tag, state):
    """Whatever state the worker and its reaper are in."""
    process, its_reaper = supervisor
    if state == "stopped":
        for one in (its_reaper, *its_reaper.children(recursive=True)):
            one.suspend()
    if state == "killed":
        its_reaper.kill()
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    time.sleep(1.0)
    left = tagged(tag)
    assert len(left) == (2 if state == "killed" else 0), "two without the mark, if nothing knows them any more"
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE and p not in left]


SUPERVISOR_OF_FIVE = """
import os, subprocess, sys, time
from sfactory.supervisor.reaped_process import reaper_command
from sfactory.supervisor.spawn import OrphanKiller
killer, seconds, reapers = OrphanKiller(), sys.argv[1], []
start = f"sleep {seconds} & setsid sleep {seconds} & setsid sh -c 'sleep {seconds} &'; sleep {seconds}"
code_w = os.pipe()[1]
for number in range(5):
    words = ["worker", str(os.getpid()), str(code_w), killer.mark("worker", number), os.devnull, "--"]
    process = subprocess.Popen([*reaper_command(), *words, "/bin/sh", "-c", start], pass_fds=(code_w,))
    killer.watch(process.pid)
    reapers.append(process)
print(*[process.pid for process in reapers], flush=True)
time.sleep(600)
"""


def test_nothing_is_left_if_supervisor_and_reapers_are_killed_at_the_same_moment():
    """Twenty-five workers of five supervisors, each with plain children, sessions of their own and a daemon.

    The commands are those of /bin/sh, which is dash on many systems.
    """
    seconds = str(secrets.randbelow(10**6) + 10**7)

    def running():
        found = psutil.process_iter(["cmdline", "status", "name"])
        return [p for p in found if seconds in " ".join(p.info["cmdline"] or ()) and p.info["status"] != "zombie"]

    words = [sys.executable, "-c", SUPERVISOR_OF_FIVE, seconds]
    supervisors = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    reapers = [[int(word) for word in process.stdout.readline().split()] for process in supervisors]
    simulators = lambda: [p for p in running() if p.info["name"] == "sleep"]  # noqa: E731
    eventually(lambda: len(simulators()) == 5 * 5 * 4, 30.0)
    for process, its_reapers in zip(supervisors, reapers, strict=True):
        victims = [process.pid, *its_reapers]
        random.Random(seconds).shuffle(victims)
        reaper.kill(victims, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    eventually(lambda: not running())


def test_orphan_killer_exits_with_nothing_to_do_after_an_orderly_end():
    killer = OrphanKiller()
    began = time.monotonic()
    killer.watch(2**22 + 1)  # no process has this id
    killer.forget(2**22 + 1)
    killer.close()
    assert killer._process.returncode == 0
    assert time.monotonic() - began < 2.0


COLLECT = """
import subprocess, sys, time
from sfactory.supervisor import reaper
from sfactory.supervisor.spawn import OrphanKiller
import os

reaper.prctl(36, 1)  # a subreaper, as process 1 of a container is one
before = subprocess.Popen(["sh", "-c", "exit 3"], start_new_session=True)
killer = OrphanKiller()
inside = subprocess.Popen(["sh", "-c", "exit 4"])
subprocess.run(["setsid", "-f", "sleep", "0.1"])  # becomes a child of this process
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    killer.collect([])
    if len(reaper.children_of(os.getpid())) == 3 and time.monotonic() > deadline - 29:
        break
    time.sleep(0.05)
print(len(reaper.children_of(os.getpid())), before.wait(), inside.wait())
killer.close()
"""


def test_orphan_killer_collects_orphans_where_it_is_process_1_and_no_other_children():
    done = subprocess.run([sys.executable, "-c", COLLECT], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3", "3", "4"], done.stderr
