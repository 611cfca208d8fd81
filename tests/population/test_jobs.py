"""Expanding seeds and a grid into jobs, without any process or file."""

from pathlib import Path

import pytest

from sfactory.config import presets, to_dict
from sfactory.config.parsing import RawValue, build
from sfactory.config.python_values import layer_of
from sfactory.errors import SettingError
from sfactory.population.jobs import grid_cells, parse_seeds, plan_jobs


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..2", [0, 1, 2]), ("7..7", [7]), ("5,1,7", [5, 1, 7]), ("3,3,4", [3, 4])]
)
def test_parse_seeds_reads_ranges_and_lists(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["4..0", "few", "-1,2", "", "1..", "1.5"])
def test_parse_seeds_rejects_everything_else(text):
    with pytest.raises(SettingError, match="seeds:"):
        parse_seeds(text)


def test_grid_cells_are_the_product_of_the_axes_in_their_order():
    cells = grid_cells(["optim.lr=1e-3,2e-3", "batch.epochs=1,2"])
    assert [list(cell) for cell in cells] == [["optim.lr", "batch.epochs"]] * 4
    assert [tuple(raw.value for raw in cell.values()) for cell in cells] == [
        ("1e-3", "1"), ("1e-3", "2"), ("2e-3", "1"), ("2e-3", "2"),
    ]  # fmt: skip
    assert grid_cells([]) == [{}]


@pytest.mark.parametrize(
    ("grid", "expected", "names"),
    [
        (
            ["env.settings.config.lanes=1,2", "env.settings.config.rows=3"],
            [{"config": {"lanes": 1, "rows": 3}}, {"config": {"lanes": 2, "rows": 3}}],
            ["env.settings.config.lanes=1_env.settings.config.rows=3_s0",
             "env.settings.config.lanes=2_env.settings.config.rows=3_s0"],
        ),
        (['env.settings.x=[1,2],"a,b",don\'t,f(1'], [{"x": [1, 2]}, {"x": "a,b"}, {"x": "don't"}, {"x": "f(1"}],
         ["env.settings.x=1,2_s0", "env.settings.x=a,b_s0", "env.settings.x=don-t_s0", "env.settings.x=f-1_s0"]),
        (['env.settings.x={"a": 1, "b": 2},none'], [{"x": {"a": 1, "b": 2}}, {"x": None}],
         ["env.settings.x=-a-1,-b-2-_s0", "env.settings.x=none_s0"]),
    ],
)  # fmt: skip
def test_plan_jobs_varies_values_in_tables_and_lists(grid, expected, names):
    base = [*presets.target_layers("gymnasium/CartPole-v1", []), {}]
    _, jobs = plan_jobs("gymnasium/CartPole-v1", base, grid, [0], Path("s"))
    assert [job.config.env.settings for job in jobs] == expected
    assert [job.name for job in jobs] == names


def test_plan_jobs_trains_cells_whose_names_are_the_same_and_equal_cells_once():
    base = [*presets.target_layers("gymnasium/CartPole-v1", []), {}]
    grid = ["optim.lr=1.0000001e-3,1e-3,0.001", "env.settings.x=a:b,a-b"]
    _, jobs = plan_jobs("gymnasium/CartPole-v1", base, grid, [0], Path("s"))
    assert [(job.config.optim.lr, job.config.env.settings["x"]) for job in jobs] == [
        (1.0000001e-3, "a:b"), (1.0000001e-3, "a-b"), (1e-3, "a:b"), (1e-3, "a-b"),
    ]  # fmt: skip
    first = "optim.lr=1e-3_env.settings.x=a-b_s0"
    assert [job.name for job in jobs] == [first, f"{first}-2", f"{first}-3", f"{first}-4"]
    assert all(Path(job.config.run.dir) == job.run_dir == Path("s") / job.name for job in jobs)


def test_plan_jobs_refuses_a_seed_of_a_file_and_reads_a_file_with_every_setting():
    target = "gymnasium/CartPole-v1"
    layers = presets.target_layers(target, [])
    every = layer_of(to_dict(build(*layers, {})))
    assert len(plan_jobs(target, [*layers, every, {}], [], [3, 4], Path("s"))[1]) == 2
    with pytest.raises(SettingError, match=r"run\.seed: a sweep sets it itself; use --seeds"):
        plan_jobs(target, [*layers, {"run.seed": RawValue(7)}, {}], [], [3, 4], Path("s"))
    with pytest.raises(SettingError, match=r"run\.seed: a sweep sets it itself"):
        plan_jobs(target, [*layers, {"run.seed": RawValue("0")}], [], [3, 4], Path("s"))


def test_plan_jobs_writes_nothing_and_gives_every_run_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = [*presets.target_layers("minatar/breakout", []), {}]
    folder, jobs = plan_jobs("minatar/breakout", base, ["optim.lr=1e-3,2e-3"], [0, 1], Path("s"))
    assert folder == Path("s")
    assert [job.name for job in jobs] == [
        "optim.lr=1e-3_s0",
        "optim.lr=2e-3_s0",
        "optim.lr=1e-3_s1",
        "optim.lr=2e-3_s1",
    ]
    assert [(job.config.optim.lr, job.config.run.seed) for job in jobs] == [(1e-3, 0), (2e-3, 0), (1e-3, 1), (2e-3, 1)]
    assert all(Path(job.config.run.dir) == job.run_dir == folder / job.name for job in jobs)
    assert list(tmp_path.iterdir()) == []
