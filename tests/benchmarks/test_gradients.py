"""The benchmark of gradient quality: its rows, and that it continues where it was stopped."""

import gradients
import pytest
import torch

from sfactory.algo.surrogates.options import MASK_USES
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.config import with_settings


def test_every_objective_and_mask_has_a_row_that_is_accepted():
    config = gradients.make_run_spec(1, 1000).config
    accepted = [with_settings(config, settings).surrogate for settings in gradients.ESTIMATORS.values()]
    assert {one.objective for one in accepted} == set(SURROGATES)
    assert {one.mask for one in accepted} == set(MASK_USES)


@pytest.fixture
def rows():
    return {name: gradients.ESTIMATORS[name] for name in ("no correction", "sapo, behavior")}


def test_finished_cells_are_not_computed_again(tmp_path, monkeypatch, rows, capsys):
    """Also after a line that was half written when the benchmark was stopped."""
    calls = []
    frozen = gradients.Frozen(torch.zeros(17, 3), {})
    monkeypatch.setattr(gradients, "train", lambda seed, steps, folder: frozen)
    monkeypatch.setattr(gradients, "play", lambda weights, seed, batches: [])

    def gradient(config, frozen, batches, lag, settings):
        calls.append((lag, settings["surrogate.objective"]))
        return torch.ones(3) * len(calls)

    monkeypatch.setattr(gradients, "gradient", gradient)
    results = gradients.Results(tmp_path)
    cells = gradients.cells_of(1, rows)
    gradients.measure(1, 10, 1, results, rows, gradients.Clock(len(cells)))
    assert len(calls) == 1 + len(cells) == 1 + 5 * 2 + 1
    assert set(results.found) == set(cells)
    assert capsys.readouterr().out.count(" left, ") == len(cells)
    first = dict(results.found)
    *complete, last = results.path.read_text().splitlines()
    results.path.write_text("\n".join([*complete, last[:9]]))
    calls.clear()
    again = gradients.Results(tmp_path)
    gradients.measure(1, 10, 1, again, rows, gradients.Clock(1))
    assert len(calls) == 1
    assert set(again.found) == set(gradients.Results(tmp_path).found) == set(first)
    assert len(gradients.table(again, [1], list(rows), 0)) == 2 + len(rows) + 1
