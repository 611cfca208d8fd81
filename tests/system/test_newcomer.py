"""A newcomer's transcript: every command of the README as it is written, in an empty folder.

Blocks marked `measured` are shortened: what trains stops after a few thousand steps, few games are played. What starts
processes with torch is a copy of the tests' process, as the runs below it are; the shell starts the rest. Commands
within sentences (`make`, `pip`, `watch`, `tensorboard`) are not run here: the first two are how this test came to run.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks
from forked_processes import run_forked

README = ROOT / "README.md"
SMOKE = {  # verb -> what is added to it in a block marked `measured`
    "train": "--stop.env-steps 6k",
    "resume": "--stop.env-steps 12k",
    "eval": "--episodes 2 --max-steps 50",
    "sweep": "--stop.env-steps 4k --seeds 0..1",
    "verify-resume": "--steps 10k --kills 1",
    "check-env": "--seconds 1",
    "bench": "--seconds 2",
    "profile": "--seconds 1",
}
WITH_TORCH = ("train", "resume", "eval", "export", "sweep", "verify-resume", "bench", "profile")
BLOCKS = [block for block in blocks(README, "bash") if block.text.startswith("sfactory ")]


def smoke(line):
    """A line of a block marked `measured`, with less work: before a redirection and a comment."""
    command, _, _ = line.partition("  #")
    command, arrow, file = command.strip().partition(" > ")
    verb = command.split()[1]
    return f"{command} {SMOKE.get(verb, '')}".rstrip() + arrow + file


@pytest.mark.newcomer
@pytest.mark.timeout(400)
@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_readme_command_works_as_written(tmp_path, number):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    lines = BLOCKS[number].text.splitlines()
    assert len(lines) >= 5
    for line in lines:
        typed = smoke(line) if BLOCKS[number].mark == "measured" else line
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 200}
        if " > " not in typed and typed.split()[1] in WITH_TORCH:
            done = run_forked(shlex.split(typed, comments=True), **options)
        else:
            done = subprocess.run(["bash", "-c", typed], **options)
        assert done.returncode == 0, f"{typed}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    if number == 0:
        left = {path.name for path in tmp_path.iterdir()}
        assert left >= {"runs", "game.mp4", "policy.onnx", "my.toml", "plot.png"}
        assert (tmp_path / "runs/first/report.html").stat().st_size > 10_000


def test_readme_states_where_its_commands_are_run():
    assert "tests/system/test_newcomer.py" in README.read_text()
    assert len(BLOCKS) >= 2
    assert all(block.mark == "measured" for block in BLOCKS)


@pytest.mark.newcomer
def test_readme_python_example_trains_and_loads_a_policy(tmp_path):
    (block,) = blocks(README, "python")
    code, count = re.subn(r"1_000_000\}", '6_000}, log={"quiet": True}', block.text)
    assert count == 1
    (tmp_path / "script.py").write_text(code + '    print("trained", policy.env_steps)\n')
    done = run_forked([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 6000
