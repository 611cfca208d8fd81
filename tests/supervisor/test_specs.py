"""Specs are read in a process of their own: whatever a constructor does, this process is not touched."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sfactory.config import Config, Env, Eval, Run
from sfactory.envs import EnvError, make_spec
from sfactory.supervisor import specs as specs_module
from sfactory.supervisor.process_signals import exits_are_reported
from sfactory.supervisor.specs import check_rendering, read_specs

pytestmark = pytest.mark.usefixtures("forked")

ENVIRONMENTS = """
import ctypes, os, signal, subprocess, sys, time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Odd(CartPoleEnv):
    def __init__(self, how):
        self.how = how
        super().__init__()
        if how == "prints":
            print("python speaks")
            os.write(1, b"the descriptor speaks\\n")
            ctypes.CDLL(None).puts(b"C speaks")
        if how == "moves":
            os.chdir("/")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if how == "raises":
            raise RuntimeError("no licence")
        if how == "leaves":
            sys.exit(0)
        if how == "interrupts":
            raise KeyboardInterrupt
        if how == "ends":
            os._exit(3)
        if how == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "hangs":
            time.sleep(600)
        if how == "starts":
            subprocess.Popen(["sleep", "611"], start_new_session=True)
        if how == "slowly":
            time.sleep(1.5)
    def close(self):
        if self.how == "never ends":
            time.sleep(600)

class Pictures(CartPoleEnv):
    def __init__(self, how, render_mode=None):
        self.how = how
        super().__init__(render_mode=render_mode)
    def render(self):
        if self.how == "has no display":
            raise RuntimeError("no display")
        if self.how == "crashes in render":
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().render()

gymnasium.register("Odd-v0", Odd)
gymnasium.register("Pictures-v0", Pictures)
"""


@pytest.fixture
def specs(tmp_path, monkeypatch):
    """Read the spec of the environment that does something odd in its constructor."""
    (tmp_path / "odd_envs.py").write_text(ENVIRONMENTS)
    monkeypatch.syspath_prepend(tmp_path)

    def read(how, build_timeout=60.0):
        env = Env("gymnasium/odd_envs:Odd-v0", settings={"how": how}, build_timeout=build_timeout)
        return read_specs(Config(env=env))

    return read


def test_read_specs_returns_what_make_spec_returns(specs):
    (spec,) = specs("is fine")
    plain = make_spec("gymnasium/CartPole-v1")
    assert (spec.obs, spec.actions) == (plain.obs, plain.actions)
    tasks = "gymnasium/CartPole-v1", "gymnasium/CartPole-v0"
    assert [spec.name for spec in read_specs(Config(env=Env(",".join(tasks))))] == list(tasks)


def test_check_rendering_refuses_environments_that_cannot_be_rendered_here(specs, monkeypatch):
    def check(name, how="is fine", video=True):
        env = Env(name, settings={"how": how} if "odd" in name else {})
        check_rendering(Config(env=env, eval=Eval(every=1000, video=video)))

    check("gymnasium/CartPole-v1")
    check("gymnasium/odd_envs:Pictures-v0")
    for name, how, reason in [
        ("gymnasium/odd_envs:Odd-v0", "is fine", "Odd-v0"),
        ("gymnasium/odd_envs:Pictures-v0", "has no display", "cannot be rendered on this machine"),
        ("gymnasium/odd_envs:Pictures-v0", "crashes in render", r"it ended its process \(killed by SIGSEGV\)"),
    ]:
        with pytest.raises(EnvError, match=rf"^eval\.video: .*{reason}.*; train without it: --eval\.video false$"):
            check(name, how)
    monkeypatch.setattr(specs_module, "run_env_task", lambda *_: pytest.fail("nothing is started"))
    check("gymnasium/CartPole-v1", video=False)


def test_read_specs_sends_what_an_environment_prints_to_stderr(specs, capfd):
    specs("prints")
    out, err = capfd.readouterr()
    assert out == ""
    assert {"python speaks", "the descriptor speaks", "C speaks"} <= set(err.splitlines())


def test_read_specs_keeps_folder_and_signals_of_this_process(specs):
    before = os.getcwd(), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)]
    specs("moves")
    assert (os.getcwd(), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)]) == before


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "could not be built: RuntimeError: no licence"),
        ("leaves", "could not be built: SystemExit: 0"),
        ("interrupts", "could not be built: KeyboardInterrupt:"),
        ("ends", r"it ended its process \(exit code 3\)"),
        ("crashes", r"it ended its process \(killed by SIGSEGV\)"),
    ],
)
def test_read_specs_reports_an_environment_that_cannot_be_built(specs, how, message):
    with pytest.raises(EnvError, match=message) as raised:
        specs(how)
    assert raised.value.exit_code == 6
    assert "gymnasium/odd_envs:Odd-v0" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("how", ["hangs", "never ends"])
def test_read_specs_limits_the_time_of_building_and_closing(specs, how):
    began = time.monotonic()
    limit = r"could not be built, reset and closed within 0.5 s \(env.build-timeout\)"
    with pytest.raises(EnvError, match=limit) as raised:
        specs(how, 0.5)
    assert raised.value.exit_code == 6
    assert time.monotonic() - began < 20.0
    assert not [p for p in psutil.Process().children() if "reaper.py" in " ".join(p.cmdline())]


def test_read_specs_keeps_the_kind_of_a_wrong_request(specs):
    with pytest.raises(EnvError, match="gymnasium knows no environment 'Absent-v7'") as raised:
        read_specs(Config(env=Env("gymnasium/Absent-v7")))
    assert raised.value.exit_code == 2


def test_read_specs_ends_what_an_environment_starts_and_does_not_close(specs):
    specs("starts")
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "611"]]


def test_read_specs_builds_nothing_in_this_process_in_lockstep_either(specs, monkeypatch):
    before = os.getcwd()
    env = Env("gymnasium/odd_envs:Odd-v0", settings={"how": "moves"})
    read_specs(Config(run=Run(mode="lockstep"), env=env))
    assert os.getcwd() == before
    assert "odd_envs" not in sys.modules


IGNORING = """
import signal, sys
from sfactory.config import Config, Env
from sfactory.envs import EnvError
from sfactory.supervisor.process_signals import exits_are_reported
from sfactory.supervisor.specs import read_specs
if __name__ == "__main__":
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    with exits_are_reported():
        try:
            read_specs(Config(env=Env("gymnasium/odd_envs:Odd-v0", settings={"how": "ends"})))
        except EnvError as error:
            print(error)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
"""


def test_exits_are_reported_to_a_process_that_was_started_with_sigchld_ignored(tmp_path):
    (tmp_path / "odd_envs.py").write_text(ENVIRONMENTS)
    script = tmp_path / "script.py"
    script.write_text(IGNORING)
    done = subprocess.run(
        [sys.executable, script],
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "it ended its process (exit code 3)" in done.stdout
    with exits_are_reported():  # no effect here
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
