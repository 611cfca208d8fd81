"""`eval` and `load_policy` from where people call them: with Ctrl-C, without a guard, from notebooks and pipes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from builders import MY_ENV, trained
from forked_processes import ForkedCommand
from run_helpers import command, wait_for

SLOW = (
    MY_ENV.replace("self.t += 1\n", "self.t += 1; __import__('time').sleep(0.05)\n")
    + """
    metadata, render_mode = {"render_modes": ["rgb_array"], "render_fps": 30}, "rgb_array"
    def __init__(self, render_mode=None): pass
    def render(self): return np.zeros((40, 40, 3), np.uint8)
"""
)
GOLDEN = Path(__file__).parent.parent / "golden" / "run_folders" / "async"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "run", "gymnasium/CartPole-v1")


def test_ctrl_c_ends_an_evaluation_in_order(tmp_path, monkeypatch):
    """Nothing is left: no process, and no part of a video."""
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", "slow:MyEnv", checkpoint={"exact": False}, stop={"env_steps": 64})
    words = command("eval", run, "--episodes", "9999", "--video", "film.mp4")
    process = ForkedCommand(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob(".film*")), seconds=90, process=process)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("sfactory: interrupted (exit 130): ")
    wait_for(lambda: not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], seconds=5)
    assert sorted(path.suffix for path in tmp_path.glob("*film*")) in ([], [".mp4"])
    assert not list(tmp_path.glob(".film*"))


PLAY = """
import sfactory, sys
def main():
    result = sfactory.evaluate({run!r}, episodes=2, max_steps=5)
    print("played", len(result.returns), "acts", sfactory.load_policy({old!r}).act([0.0] * 4) in (0, 1))
"""


@pytest.fixture
def play(run_dir, tmp_path):
    """A script that evaluates a run, and loads a policy of an earlier version, which recorded no spaces."""
    old = shutil.copytree(GOLDEN, tmp_path / "old")
    return PLAY.format(run=str(run_dir), old=str(old))


def python(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=110, **options)


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_evaluate_and_load_policy_work_in_scripts_pipes_and_notebooks(play, tmp_path, how):
    guard = 'if __name__ == "__main__":\n    main()\n' if how == "file" else "main()\n"
    (tmp_path / "my.py").write_text(play + guard)
    words = {"file": ["my.py"], "-c": ["-c", play + guard], "-": ["-"]}[how]
    done = python(*words, cwd=tmp_path, input=play + guard if how == "-" else None)
    assert (done.returncode, done.stdout) == (0, "played 2 acts True\n"), done.stderr


def test_evaluate_in_a_script_without_a_guard_says_what_is_missing(play, tmp_path):
    (tmp_path / "my.py").write_text(play + "main()\n")
    done = python("my.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1, "from this process, not from the one that it started"
    assert 'put what it does below  if __name__ == "__main__":' in done.stderr


def test_load_policy_builds_no_environment_if_the_checkpoint_records_its_spaces(tmp_path, monkeypatch):
    (tmp_path / "once.py").write_text(MY_ENV)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        run = trained(tmp_path / "run", "once:MyEnv", checkpoint={"exact": False}, stop={"env_steps": 64})
    (tmp_path / "once.py").unlink()
    code = f"import sfactory; print(sfactory.load_policy({str(run)!r}).act([0.0] * 3) in (0, 1))"
    done = python("-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
