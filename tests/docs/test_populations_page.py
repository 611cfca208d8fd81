"""docs/populations.md: the examples are taken from the page and run with fewer steps."""

import subprocess
import sys

import pytest
from documents import ROOT, blocks, commands

from sfactory.cli import main as cli
from sfactory.population.plan import Options
from sfactory.run.history import read_history

PAGE = ROOT / "docs" / "populations.md"
SMALL = {
    "pbt": ["--members", "2", "--period", "1k", "--start", "0", "--stop.env-steps", "1k", "--run.mode", "lockstep"],
    "sweep": ["--seeds", "0..0", "--stop.env-steps", "1k", "--run.mode", "lockstep"],
    "eval": ["--episodes", "2"],
    "resume": ["--stop.env-steps", "2k"],
}
pytestmark = pytest.mark.timeout(300)


def run(folder, words):
    """The last line on standard error, where the commands that train or play say how they ended."""
    words = [sys.executable, "-m", "sfactory", *words, *SMALL.get(words[0], [])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stderr.rpartition("\n")[0].rpartition("\n")[2]


def examples(mark):
    (block,) = [block for block in blocks(PAGE, "bash") if block.mark == mark]
    return [words for words in commands(PAGE) if f"sfactory {' '.join(words)}" in block.text.splitlines()]


@pytest.mark.slow
def test_populations_page_example_trains_a_population_whose_members_are_runs(tmp_path):
    pbt, *others = examples("pbt")
    last = run(tmp_path, pbt)
    history = read_history(tmp_path / "runs/pbt")
    assert f"the winner is runs/pbt/m{history.winner} with score" in last
    assert (tmp_path / "runs/pbt/report.html").is_file()
    assert [words[0] for words in others] == ["eval", "resume"]
    for words in others:
        run(tmp_path, words)
    assert run(tmp_path, pbt) == last, "a finished population answers at once"


@pytest.mark.slow
def test_populations_page_example_of_a_sweep(tmp_path):
    sweep, compare = (words for words in commands(PAGE) if "runs/sweep" in words)
    assert "finished (exit 0): 2 of 2 runs finished" in run(tmp_path, sweep)
    run(tmp_path, compare)


def test_populations_page_table_has_the_defaults_of_the_command():
    text = PAGE.read_text()
    given = cli.parse(["pbt", "minatar/breakout", "--dir", "p"])
    for name, value in {"members": "8", "period": "5M", "start": "20M", "replace": "0.3", "gap": "0"}.items():
        assert f"| `--{name}` | {value} |" in text
    assert "| `--mutation-rate` | 0.15 |" in text
    defaults = Options()
    for name in ("members", "period", "start", "replace", "gap", "mutation_rate"):
        assert getattr(given, name) == getattr(defaults, name), name
