"""Environments like those that drive an external simulator: slow, heavy, loud, and with processes of their own.

Tests put this folder on PYTHONPATH and train `gymnasium/simulators:NAME-v0`.
"""

import os
import socket
import subprocess
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces


class Base(gymnasium.Env):
    """Twenty steps of noise, reward 1."""

    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t >= 20, {}


def in_evaluator():
    return os.nice(0) == 19


def in_sampler():
    return "/sampler-" in os.environ.get("SFACTORY_WORKER", "")


class Simulator(Base):
    """Starts a process in a session of its own, optionally without our environment; slow to close."""

    def __init__(self, tag, close_s=0.0, clean=False, closed=""):
        self.close_s, self.closed = close_s * in_sampler(), closed
        self.process = subprocess.Popen(["sleep", str(tag)], start_new_session=True, env={} if clean else None)

    def close(self):
        time.sleep(self.close_s)
        self.process.kill()
        self.process.wait()
        if self.closed:
            with open(self.closed, "a") as file:
                file.write("closed\n")


class Port(Base):
    """Needs one of eight ports, which its process inherits."""

    def __init__(self, tag, first_port):
        self.socket = socket.socket()
        self.socket.set_inheritable(True)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for port in range(first_port, first_port + 8):
            try:
                self.socket.bind(("127.0.0.1", port))
                self.socket.listen()
                break
            except OSError:
                continue
        else:
            raise RuntimeError("no port is free")
        self.process = subprocess.Popen(["sleep", str(tag)], start_new_session=True, close_fds=False)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.socket.close()


class Slow(Base):
    """Takes time to build, to reset first and to step."""

    def __init__(self, build_s=0.0, reset_s=0.0, step_s=0.0):
        self.reset_s, self.step_s = reset_s, step_s
        time.sleep(build_s)

    def reset(self, **options):
        time.sleep(self.reset_s)
        self.reset_s = 0.0
        return super().reset(**options)

    def step(self, action):
        time.sleep(self.step_s)
        return super().step(action)


class SlowAgain(Base):
    """Breaks once, and takes time to be built again."""

    def __init__(self, marker, build_s):
        self.marker = Path(marker)
        if self.marker.exists():
            time.sleep(build_s)

    def step(self, action):
        if not self.marker.exists():
            self.marker.touch()
            raise RuntimeError("crash")
        return super().step(action)


class Stuck(Base):
    """Can be built `times` times in all; then a constructor hangs or fails."""

    def __init__(self, count, times, how="hangs"):
        with open(count, "a") as file:
            file.write(".")
        if Path(count).stat().st_size > times:
            if how == "hangs":
                time.sleep(600)
            raise RuntimeError("no licence")


class HangsLater(Base):
    """Hangs in its fourth reset, after three complete episodes."""

    resets = 0

    def reset(self, **options):
        self.resets += 1
        if self.resets > 3:
            time.sleep(3600)
        return super().reset(**options)


class Chatty(Base):
    """Prints in every step."""

    def __init__(self, size=80):
        self.size = size

    def step(self, action):
        print("x" * self.size)
        return super().step(action)


class Counted(Base):
    """Records in a file how many are open."""

    def __init__(self, file):
        self.file = file
        self._write("+")

    def _write(self, text):
        with open(self.file, "a") as file:
            file.write("e" * in_evaluator() + text + "\n")

    def close(self):
        self._write("-")


for name in ("Simulator", "Port", "Slow", "SlowAgain", "Stuck", "HangsLater", "Chatty", "Counted"):
    gymnasium.register(f"{name}-v0", entry_point=f"simulators:{name}")
