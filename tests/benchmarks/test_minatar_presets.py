"""`benchmarks/minatar_presets.py` without its runs: what it compares with, and what it says of finished ones."""

import re
from types import SimpleNamespace

import minatar_presets
import numpy as np
import pytest
from grid import Cell, Run
from scores import BLOCKS, Curve, Scores

from sfactory.config.presets import presets_dir


@pytest.mark.parametrize("game", list(minatar_presets.PUBLISHED))
def test_published_returns_are_those_that_the_preset_names(game):
    text = (presets_dir() / "minatar" / f"{game}.toml").read_text()
    (found,) = re.findall(r"PPO at 5M frames, training return: ([\d.]+);", text)
    assert minatar_presets.PUBLISHED[game] == float(found)


def test_report_has_the_median_of_the_seeds_and_the_machines_of_their_runs(tmp_path, monkeypatch):
    finals = {0: 10.0, 1: 30.0, 2: 20.0}

    def curve(self: Run, _kept):
        if "asterix" not in self.cell.name:
            return None
        row = {"processor": "B" if self.seed else "A"}
        return Curve(np.full(BLOCKS, finals[self.seed]), {}, 60.0 * (1 + self.seed), row)

    monkeypatch.setattr(Run, "curve", curve)
    drawn = []
    monkeypatch.setattr(minatar_presets, "picture", lambda found: drawn.append(list(found)))
    page = minatar_presets.report(Scores(tmp_path / "none.csv"), 3)
    assert [line for line in page if line.startswith("| `")] == [
        "| `minatar/asterix` | 20.0 | 10.0, 30.0, 20.0 | 26 | A, B |"
    ]
    assert drawn == [["asterix"]]


def test_report_without_a_finished_run_has_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(minatar_presets, "picture", SimpleNamespace())  # calling it would fail
    assert not any("svg" in line for line in minatar_presets.report(Scores(tmp_path / "none.csv"), 3))


def test_every_cell_trains_the_preset_as_it_is():
    for game, cell in minatar_presets.cells().items():
        assert isinstance(cell, Cell)
        assert (cell.target, cell.base, cell.steps) == (f"minatar/{game}", "", 5_000_000)
