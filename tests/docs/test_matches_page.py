"""docs/matches.md: its commands and its script are run, with fewer episodes and a smaller game."""

import json
import shutil
import sys

import pytest
from documents import ROOT, blocks, commands, named
from forked_processes import run_forked
from match_runs import write_run

from sfactory.config.toml_file import from_toml
from sfactory.run.trust import record_run
from sfactory.supervisor import env_task

PAGE = ROOT / "docs" / "matches.md"
pytestmark = pytest.mark.timeout(300)


def labels(text):
    """First words of the lines of a report."""
    return [line.split()[0] for line in text.splitlines()[1:]]


def test_matches_page_commands_and_script_run(tmp_path, monkeypatch, typed):
    (tmp_path / "runs").mkdir()
    for name in ("c4", "other"):
        run = write_run(tmp_path / "runs" / name, "pettingzoo/match_envs:Highest", 51_910, 200_039)
        record_run(run, from_toml(run / "config.toml"))  # as training in this folder does
    evaluations = [words for words in commands(PAGE) if words[0] == "eval" and "RUN" not in words]
    assert len(evaluations) == 3
    with monkeypatch.context() as patch:
        patch.setattr(env_task, "run_env_task", lambda job, env: job.run())  # the script starts a process
        for words in evaluations:
            words = ["newest" if word == "best" else word for word in words]  # these runs have no training return
            code, out, line = typed(*words, "--episodes", 8)
            assert code == 0, line
            assert f"8 episodes against {words[3]}: " in line
            if "--json" in words:
                assert json.loads(out)["episodes"] == 8
            else:
                assert labels(out) == labels(blocks(PAGE, "text")[0].text)
    (tmp_path / "match.py").write_text(named(PAGE, "match.py"))
    shutil.copy(ROOT / "tests" / "match_envs.py", tmp_path)
    done = run_forked([sys.executable, "match.py"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("40 0.")
    assert "{'p0': Score(wins=" in done.stdout
