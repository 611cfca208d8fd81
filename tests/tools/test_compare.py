"""`sfactory compare`: grouping, cutting to a common length, protocols, tables and plots."""

import json
import math
import os

import numpy as np
import pytest

from sfactory.monitor.statistics import bootstrap, iqm
from sfactory.run.lock import lock_folder
from sfactory.tools.comparison import compare


def test_compare_groups_runs_of_the_same_settings_and_labels_differences(fabricate, runs):
    for seed in (1, 2, 3):
        fabricate(f"a{seed}", [0, seed], **{"optim.lr": 1e-3, "run.seed": seed, "log.every_seconds": seed})
        fabricate(f"b{seed}", [0, 10 + seed], **{"optim.lr": 2.5e-4, "run.seed": seed, "env.step_timeout": 50 + seed})
    (panel,) = compare([runs]).panels
    assert [label for label, _ in panel.groups] == ["optim.lr=1e-3", "optim.lr=2.5e-4"]
    first, second = (panel.row(label) for label, _ in panel.groups)
    assert (first["iqm"], second["iqm"]) == (2.0, 12.0)
    assert first["interval"] == pytest.approx(bootstrap([np.array([1.0, 2.0, 3.0])], iqm))
    assert (first["improvement"], second["improvement"]) == (None, (1.0, 1.0, 1.0))
    assert [p.rsplit("/", 1)[1] for p in second["runs"]] == ["b1", "b2", "b3"]


def test_compare_reads_scores_where_the_shortest_run_ends(fabricate, runs):
    fabricate("a1", [1, 2, 3, 4], **{"optim.lr": 1e-3})
    fabricate("b1", [5, 6], **{"optim.lr": 1e-4})
    found = compare([runs])
    assert found.panels[0].end == 2000
    assert [panel_row["iqm"] for panel_row in map(found.panels[0].row, ("optim.lr=1e-3", "optim.lr=1e-4"))] == [2, 6]
    assert any("compared at 2,000 steps, where" in n and "runs/b1 ends" in n for n in found.notes)
    assert found.panels[0].row("optim.lr=1e-3")["s"] == 20.0


def test_compare_by_seconds_reads_a_faster_run_at_more_steps(fabricate, runs):
    fabricate("a1", [1, 2, 3, 4], speed=200.0, **{"optim.lr": 1e-3})
    fabricate("b1", [1, 2, 3, 4], speed=100.0, **{"optim.lr": 1e-4})
    panel = compare([runs], "seconds").panels[0]
    assert panel.end == 20.0
    assert [panel.row(label)["iqm"] for label, _ in panel.groups] == [4, 2]
    assert [panel.row(label)["steps"] for label, _ in panel.groups] == [4000, 2000]


def test_compare_interpolates_curves_between_rows(fabricate, runs):
    fabricate("a1", [0, 10])
    (panel,) = compare([runs]).panels
    bands = panel.bands("env_steps")[""]
    assert bands[0] == pytest.approx((panel.grids["env_steps"] - 1000) / 100)


def test_compare_separates_run_lengths_only_with_a_linear_schedule(fabricate, runs):
    fabricate("a1", [1], **{"stop.env_steps": 1000})
    fabricate("a2", [1], **{"stop.env_steps": 2000, "run.seed": 2})
    assert len(compare([runs]).panels[0].groups) == 1
    linear = {"optim.schedule": "linear"}
    fabricate("b1", [1], **linear, **{"stop.env_steps": 1000})
    fabricate("b2", [1], **linear, **{"stop.env_steps": 2000, "run.seed": 2})
    assert len(compare([runs / "b1", runs / "b2"]).panels[0].groups) == 2


def test_compare_groups_runs_by_the_values_in_tables_and_lists(fabricate, runs):
    nested = {"env.settings.x": [1, {"a": 2}], "env.settings.y": {"z": None, "lanes": 3}, "env.settings.n": math.nan}
    target = "gymnasium/CartPole-v1"
    fabricate("a1", [1], target=target, **nested)
    fabricate("a2", [1], target=target, **nested, **{"run.seed": 2})
    (panel,) = compare([runs]).panels
    assert [(label, len(group.runs)) for label, (group,) in panel.groups] == [("", 2)]


def record_protocol(run, protocol):
    """A checkpoint that says under which protocol the run was trained."""
    checkpoint = run / "checkpoints/000000001000"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"env_steps": 1000, "protocol": protocol}))


def test_compare_refuses_different_settings_of_the_environment_without_a_protocol(fabricate, runs, typed):
    fabricate("a1", [1], target="gymnasium/CartPole-v1")
    fabricate("a2", [1], target="gymnasium/CartPole-v1", **{"env.settings.max_episode_steps": 100})
    code, out, line = typed("compare", runs / "a1", runs / "a2")
    assert (code, out) == (2, "")
    assert "runs/a2 was trained on gymnasium/CartPole-v1 under another protocol than" in line
    assert '"max_episode_steps": 100' in line


def test_compare_accepts_the_same_protocol_from_different_settings(fabricate, runs):
    record_protocol(fabricate("a1", [1], target="atari/pong", **{"env.protocol": ""}), "atari dqn")
    record_protocol(fabricate("a2", [1], target="atari/pong", **{"env.protocol": "dqn", "run.seed": 2}), "atari dqn")
    third = fabricate("a3", [1], target="atari/pong", **{"env.protocol": "machado", "run.seed": 3})
    record_protocol(third, "atari machado")
    assert len(compare([runs / "a1", runs / "a2"]).panels) == 1
    assert len(compare([runs / "a1", runs / "a2"]).panels[0].groups) == 1
    with pytest.raises(ValueError, match=r"a3 was trained on atari/pong under another protocol .*machado is not atari"):
        compare([runs])


def test_compare_uses_the_protocol_stored_in_checkpoints_first(fabricate, runs):
    """The same settings under another version of an environment's package are another protocol."""
    for name, protocol in (("a1", "minatar v0, 6 actions"), ("a2", "minatar v1, 3 actions")):
        record_protocol(fabricate(name, [1]), protocol)
    with pytest.raises(ValueError, match="minatar v1, 3 actions is not minatar v0, 6 actions"):
        compare([runs])


def test_compare_does_not_average_tasks_of_different_scale(fabricate, runs):
    for task in ("breakout", "asterix"):
        fabricate(f"{task}1", [1], target=f"minatar/{task}")
    found = compare([runs])
    assert [panel.title for panel in found.panels] == ["minatar/asterix", "minatar/breakout"]
    assert "not averaged" in " ".join(found.notes)


def test_compare_averages_human_normalised_scores_stratified_by_task(fabricate, runs):
    def row(raw, relative):
        return {"charts/episodic_return": raw, "charts/human_normalized": relative}

    for seed in (1, 2):
        for task, scale in (("pong", 1.0), ("boxing", 3.0)):
            for lr, gain in ((1e-3, 1.0), (1e-4, 2.0)):
                name = f"{task}_{lr}_{seed}"
                values = {"optim.lr": lr, "run.seed": seed}
                fabricate(name, [row(7.0, gain * scale + seed)], target=f"atari/{task}", **values)
    panels = compare([runs]).panels
    assert [panel.title for panel in panels] == ["atari/boxing", "atari/pong", "all 2 tasks"]
    together = panels[2].row("optim.lr=1e-3")
    assert sorted(together["scores"]) == [2.0, 3.0, 4.0, 5.0]
    assert together["iqm"] == pytest.approx(3.5)
    low, high = together["interval"]
    assert (low, high) == (pytest.approx(3.0), pytest.approx(4.0))  # both tasks in every draw: never 2, 2
    pong = (0 + 0.5 + 0 + 0) / 4  # 2 and 3 against 3 and 4
    boxing = 0.0  # 4 and 5 against 7 and 8
    assert together["improvement"][0] == pytest.approx((pong + boxing) / 2)


def test_compare_shows_a_panel_per_task_of_a_multi_task_run(fabricate, runs):
    row = {"charts/episodic_return": 3.0, "charts/episodic_return/minatar/breakout": 2.0}
    row["charts/episodic_return/minatar/asterix"] = 4.0
    fabricate("m", [row], target="minatar/breakout,minatar/asterix")
    panels = compare([runs]).panels
    assert [(p.title, p.row("")["iqm"]) for p in panels] == [("minatar/breakout", 2.0), ("minatar/asterix", 4.0)]


# -- incomplete runs


def test_compare_notes_torn_rows_and_skips_nulls(fabricate, runs):
    folder = fabricate("a1", [1, 2, 3])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 4000, "seconds": 40, "charts/episodic_return": null}\n{"env_steps": 50')
    found = compare([runs])
    assert (found.panels[0].end, found.panels[0].row("")["iqm"]) == (3000, 3)
    assert "1 line of metrics.jsonl left out" in " ".join(found.notes)


def test_compare_notes_empty_and_running_runs(fabricate, runs):
    fabricate("a1", [1, 2])
    fabricate("a2", [], **{"run.seed": 2})
    fabricate("a3", [None, None], **{"run.seed": 3})
    killed = fabricate("a4", [1, 2], **{"run.seed": 4})
    (killed / "status.json").write_text(json.dumps({"state": "running", "pid": 2**22 + 1}))
    live = fabricate("a5", [1, 2], **{"run.seed": 5})
    (live / "status.json").write_text(json.dumps({"state": "running", "pid": os.getpid()}))
    (runs / "notes").mkdir()
    lock = lock_folder(live)
    found = compare(sorted(runs.iterdir()))
    os.close(lock)
    assert len(found.panels[0].row("")["runs"]) == 3
    notes = " ".join(found.notes)
    for text in ("a2 has no training return yet", "a3 has no training return yet", "a4 did not finish (killed)",
                  "a5 is still running", "notes contains no run"):  # fmt: skip
        assert text in notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected RUNS, got none"),
        ("runs/a1 runs/absent", "runs/absent does not exist"),
        (
            "runs/empty",
            "none of the 1 folders contains a run with a training return; runs/empty has no training return",
        ),
        ("runs/a1 --by step", "by: 'step' is not one of env_steps, seconds"),
        ("runs/a1 --optim.lr 1", "optim.lr: compare takes runs as they are"),
        ("runs/a1 -o plot.gif", "plot.gif: the suffix must be one of .png, .svg, .pdf"),
        ("runs/a1 -o absent/plot.png", "the folder absent does not exist"),
    ],
)
def test_compare_usage_errors_are_one_line(fabricate, typed, arguments, message):
    fabricate("a1", [1])
    fabricate("empty", [])
    code, out, line = typed("compare", *arguments.split())
    assert (code, out) == (2, "")
    assert message in line


def test_compare_plot_without_matplotlib_is_refused_before_any_work(fabricate, typed, monkeypatch):
    from sfactory.tools import compare_plot

    fabricate("a1", [1])
    monkeypatch.setattr(compare_plot, "find_spec", lambda name: None)
    code, out, line = typed("compare", "runs/a1", "-o", "plot.png")
    assert (code, out) == (2, "")
    assert "pip install 'sfactory[plots]'" in line


# -- output


def test_compare_table_and_json_agree(fabricate, typed):
    for seed in (1, 2, 3, 4):
        fabricate(f"a{seed}", [0, seed], **{"run.seed": seed, "optim.lr": 1e-3})
        fabricate(f"b{seed}", [0, 2 * seed], **{"run.seed": seed, "optim.lr": 1e-4})
    code, out, _ = typed("compare", "runs")
    assert code == 0
    assert "minatar/breakout: training return at 2,000 steps" in out
    row = next(line for line in out.splitlines() if line.strip().startswith("optim.lr=1e-4"))
    assert row.split()[1:3] == ["4", "5"]  # 2 4 6 8: the middle half is 4 and 6
    assert "-o plot.png" in out
    found = json.loads(typed("compare", "runs", "--json")[1])
    group = found["panels"][0]["groups"][1]
    assert (group["iqm"], group["scores"]) == (5.0, [2, 4, 6, 8])
    assert group["improvement"][0] == pytest.approx(13 / 16)  # 2 4 6 8 against 1 2 3 4: 1.5 + 3.5 + 4 + 4
    assert len(found["panels"][0]["curves"]["env_steps"]["x"]) == len(
        found["panels"][0]["curves"]["env_steps"]["optim.lr=1e-4"][0]
    )


def test_compare_plot_writes_png_and_svg_with_group_labels(fabricate, typed, tmp_path):
    for seed in (1, 2):
        fabricate(f"a{seed}", [0, seed], **{"run.seed": seed, "optim.lr": 1e-3})
        fabricate(f"b{seed}", [0, 2 * seed], **{"run.seed": seed, "optim.lr": 1e-4})
    assert typed("compare", "runs", "-o", "plot")[0] == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "plot.svg").read_text()
    for text in ("optim.lr=1e-3", "optim.lr=1e-4", "minatar/breakout", "by training time"):
        assert text in svg  # matplotlib writes every text as a comment beside its outlines
    before = (tmp_path / "plot.png").read_bytes()
    typed("compare", "runs", "-o", "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == before
    typed("compare", "runs", "-o", "steps.svg", "--by", "env_steps")
    assert "by training time" not in (tmp_path / "steps.svg").read_text()
