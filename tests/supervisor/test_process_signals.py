"""Signal handlers that are restored, and the death signal of a child whose parent exits."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil

from sfactory.supervisor.process_signals import signal_handlers


def test_signal_handlers_are_installed_and_restored():
    before, received = signal.getsignal(signal.SIGUSR1), []
    with signal_handlers([signal.SIGUSR1], lambda number, frame: received.append(number)):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert received == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_signal_handlers_leave_an_ignored_signal_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with signal_handlers([signal.SIGUSR1], lambda number, frame: None):
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signal_handlers_have_no_effect_outside_the_main_thread():
    entered = []

    def install():
        with signal_handlers([signal.SIGUSR1], lambda number, frame: None):
            entered.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGUSR1)]


def test_death_signal_ends_a_child_when_its_parent_is_killed():
    code = (
        "import signal, subprocess, time\n"
        "from sfactory.supervisor.process_signals import death_signal\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=death_signal(signal.SIGTERM))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10.0
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child is still running"
        time.sleep(0.02)
