"""The lines after a training run: what it reached, and whether it had been better before."""

import pytest
import torch

from sfactory.cli.main import main
from sfactory.cli.train import report
from sfactory.config import Config, Env
from sfactory.errors import Exit
from sfactory.run.checkpoint import PARTS, Contents
from sfactory.run.checkpoint_writer import save
from sfactory.run.outcome import Outcome


def lines_of(capsys, run, returns, last):
    """The lines of a run with a checkpoint of every training return, which ended with `last`."""
    for number, value in enumerate(returns):
        parts = {part: {"w": torch.zeros(3)} for part in PARTS}
        save(run, Contents({"env_steps": 1000 * (number + 1), "launch": 0, "training_return": value}, parts), keep=9)
    outcome = Outcome.of(Exit.FINISHED, "stop.env-steps 3,000 was reached (3,000)")
    outcome.run_dir, outcome.training_return, outcome.env_steps, outcome.episodes = str(run), last, 3000, 100
    report(outcome, Config(env=Env("a/b")), as_json=False)
    return capsys.readouterr().out.splitlines()


def test_run_that_ends_worse_than_it_was_says_so_and_how_to_play_the_better_policy(tmp_path, capsys):
    run = tmp_path / "my run"
    lines = lines_of(capsys, run, [100.0, 500.0, 440.0], 440.0)
    assert "training return 440.00" in lines[1]
    (best,) = [line for line in lines if line.startswith("  best")]
    assert best.split("best", 1)[1].strip() == f"500.00 at 2,000 steps; sfactory eval '{run}' --best"


@pytest.mark.parametrize(("returns", "last"), [([1.0, 2.0, 3.0], 3.0), ([-5.0], -4.0), ([], 3.0), ([7.0], None)])
def test_run_that_ends_as_well_as_before_says_nothing_more(tmp_path, capsys, returns, last):
    assert not [line for line in lines_of(capsys, tmp_path / "run", returns, last) if line.startswith("  best")]


def test_best_is_short_for_the_checkpoint_with_the_best_return(tmp_path, capsys):
    run = tmp_path / "run"
    lines_of(capsys, run, [], None)
    for words in (["--best"], ["--checkpoint", "best"]):
        with pytest.raises(SystemExit):
            main(["eval", str(run), *words])
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first == second
