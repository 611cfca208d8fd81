"""`benchmarks/learners.py` keeps what it has measured, and shares a page with `benchmarks/allreduce.py`."""

import allreduce
import learners
import pytest
from peers import with_section


@pytest.fixture
def kept(tmp_path):
    return learners.Kept(tmp_path / "out")


def test_kept_measurements_are_not_repeated_and_an_interrupted_one_is(kept):
    calls = []

    def measure(run_dir, fails=False):
        calls.append(run_dir.name)
        run_dir.mkdir(exist_ok=True)
        if fails:
            raise KeyboardInterrupt
        return {"steps/s": 7.0}

    with pytest.raises(KeyboardInterrupt):
        kept.get("a", lambda run_dir: measure(run_dir, fails=True))
    first = kept.get("a", measure)
    assert learners.Kept(kept.out).get("a", measure) == first
    assert calls == ["a", "a"]
    assert first["steps/s"] == 7.0
    assert {"machine", "date", "load"} < set(first)
    assert [path.name for path in kept.out.iterdir()] == ["a.json"], "the run is removed"


def test_slow_rank_is_compared_with_twice_the_speed_of_the_slower_rank_alone(kept, monkeypatch):
    runs = []
    monkeypatch.setattr(learners, "train", lambda ranks, words, run_dir, **options: runs.append((ranks, options)))
    monkeypatch.setattr(learners, "speed", lambda run_dir: {"steps/s": 570.0 if "_2_" in run_dir.name else 300.0})
    heading, lines = learners.slow_rank(kept, 1, 5.0)
    assert "| rank 1 always five times slower | 300 | 600 | 570 | 0.95 (0.95) |" in lines
    alone_as = [(ranks, options["torchrun"], options["SLOW_RANK"], options["ALONE_AS"]) for ranks, options in runs]
    assert alone_as[:2] == [(1, False, "always", "1"), (2, True, "always", "1")]
    assert alone_as[2] == (1, False, "in turns", "0")
    assert heading == "A rank with a slow environment"


@pytest.mark.parametrize(("under", "word"), [(97.0, "reached"), (96.0, "MISSED")])
def test_torchrun_is_compared_in_pairs(kept, monkeypatch, under, word):
    order = []
    monkeypatch.setattr(learners, "train", lambda ranks, words, run_dir, torchrun: order.append(torchrun))
    monkeypatch.setattr(learners, "speed", lambda run_dir: {"steps/s": 100.0 if "without" in run_dir.name else under})
    _, lines = learners.torchrun(kept, 2, 5.0)
    assert order == [False, True, True, False]
    assert lines[-1] == f"The bar is 0.97: {word}."


def test_sections_of_both_scripts_are_kept_in_one_page():
    sizes = {1: 1e-4, **{allreduce.FlatParameters(list(allreduce.network(w).parameters())).gradient.numel(): 1e-3
                         for w in allreduce.WORKLOADS}}  # fmt: skip
    cost = allreduce.section(sizes, {w.name: 0.1 for w in allreduce.WORKLOADS})
    page = with_section(learners.TITLE, "One rank under torchrun", "fast")
    page = with_section(page, allreduce.HEADING, "old")
    page = with_section(page, "Breakout to a return of 9", "reached")
    page = with_section(page, allreduce.HEADING, cost)
    headings = [line for line in page.splitlines() if line.startswith(("# ", "## "))]
    assert headings == [
        learners.TITLE.strip(), "## One rank under torchrun", f"## {allreduce.HEADING}", "## Breakout to a return of 9",
    ]  # fmt: skip
    assert "### Model" in page
    assert "old" not in page
