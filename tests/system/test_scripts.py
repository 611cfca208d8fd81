"""`sfactory.train` in a script with and without the guard of its main module, in a child process, and on stdin."""

import subprocess
import sys
import textwrap

import psutil
import pytest
from builders import SHORT

BODY = f"""\
import sfactory
GUARD
    outcome = sfactory.train("classic/cartpole", **{SHORT!r})
    print("ended", outcome.code, outcome.run_dir, outcome.env_steps >= 2000)
    print("acts", sfactory.load_policy(outcome.run_dir).act([0.0, 0.0, 0.0, 0.0]) in (0, 1))
"""


def script(text, folder, *words, stdin=None):
    (folder / "my.py").write_text(text)
    command = [sys.executable, *(words or ["my.py"])]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True, timeout=90)


def test_train_in_a_script_with_the_guard(tmp_path):
    done = script(BODY.replace("GUARD", 'if __name__ == "__main__":'), tmp_path)
    assert done.returncode == 0, done.stderr
    ended, acts = done.stdout.splitlines()
    assert ended.startswith("ended 0 runs/classic-cartpole_s1_")
    assert ended.endswith("True")
    assert acts == "acts True"


def test_train_in_a_script_without_the_guard_fails_once_and_leaves_no_run(tmp_path):
    """Each worker imports the script and would train again: no second run, no fork bomb, one error."""
    done = script(BODY.replace("GUARD", "if True:"), tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1
    assert "RuntimeError: this script was imported again" in done.stderr.splitlines()[-1]
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert list(tmp_path.glob("runs/*")) == []
    mine = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path)]
    assert mine == []


def test_train_in_a_child_process_of_the_user_without_the_guard_fails(tmp_path):
    """The process is not a worker of sfactory: a silent exit would hide the mistake."""
    done = script(
        textwrap.dedent("""\
        import multiprocessing, sfactory
        if multiprocessing.current_process().name == "MainProcess":
            child = multiprocessing.get_context("spawn").Process(target=print, name="other")
            child.start()
            child.join()
        else:
            sfactory.train("classic/cartpole")
        """),
        tmp_path,
    )
    assert "RuntimeError: this script was imported again" in done.stderr
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", [["-"], ["-i", "-q"]])
def test_train_without_a_script_file_needs_no_guard(tmp_path, how):
    """`python -` and interactive sessions (notebooks): there is no file to import again."""
    text = "\n".join(line.removeprefix("    ") for line in BODY.replace("GUARD", "").splitlines())
    done = script("", tmp_path, *how, stdin=text + "\n")
    assert done.returncode == 0, done.stderr
    assert "ended 0" in done.stdout
    assert "acts True" in done.stdout
