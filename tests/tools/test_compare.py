"""`sfactory compare`: grouping, cutting to a common length, protocols, tables and plots."""

import json
import math
import os
import re

import numpy as np
import pytest

from sfactory.monitor.statistics import bootstrap, iqm
from sfactory.run.lock import lock_folder
from sfactory.tools.compare import text as table_text
from sfactory.tools.comparison import GAMES, RETURN, compare, position
from sfactory.tools.group_labels import folder_labels


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


def test_compare_groups_runs_that_were_evaluated_at_other_steps(fabricate, runs):
    fabricate("a1", [1, 2], **{"eval.every": 1000, "eval.video": True})
    fabricate("a2", [1, 2], **{"run.seed": 2})
    fabricate("b1", [1, 2], **{"eval.every": 1000, "eval.greedy": True})
    assert [label for label, _ in compare([runs]).panels[0].groups] == ["eval.greedy=false", "eval.greedy=true"]


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
    constant = {"target": "classic/acrobot"}
    fabricate("a1", [1], **constant, **{"stop.env_steps": 1000})
    fabricate("a2", [1], **constant, **{"stop.env_steps": 2000, "run.seed": 2})
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


def test_compare_says_that_no_group_has_runs_of_every_task(fabricate, runs):
    row = {"charts/episodic_return": 7.0, "charts/human_normalized": 1.0}
    for name, task, lr in (("a", "pong", 1e-3), ("b", "pong", 1e-4), ("c", "boxing", 1e-3)):
        fabricate(name, [row], target=f"atari/{task}", **{"optim.lr": lr})
    found = compare([runs])
    assert len(found.panels) == 2
    assert "No group has runs of every task" in " ".join(found.notes)
    assert "different scales" not in " ".join(found.notes)


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
    (runs / "plot.png").write_text("")
    lock = lock_folder(live)
    found = compare(sorted(runs.iterdir()))
    os.close(lock)
    assert len(found.panels[0].row("")["runs"]) == 3
    notes = " ".join(found.notes)
    for text in ("runs/a3 have no training return yet; they are left out", "a4 did not finish (killed)",
                  "a5 is still running", "notes and ", "plot.png contain no run"):  # fmt: skip
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
        ("runs/a1 -o runs/folder.png", "runs/folder.png is a folder; name a file"),
    ],
)
def test_compare_usage_errors_are_one_line(fabricate, typed, arguments, message):
    fabricate("a1", [1])
    fabricate("empty", [])
    fabricate("folder.png", [1])
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


# -- metrics, labels, notes


def evaluated(**scores):
    """Rows of evaluations: step -> (step of the policy, score)."""
    return [{"eval/env_steps": at, "eval/iqm": value, "charts/episodic_return": 1.0} for at, value in scores.values()]


def test_compare_reads_any_metric_at_the_steps_of_the_evaluated_policies(fabricate, runs, typed):
    fabricate("a1", evaluated(x=(900, 1.0), y=(1800, 3.0)), **{"optim.lr": 1e-3})
    fabricate("b1", evaluated(x=(900, 5.0), y=(1800, 7.0)), **{"optim.lr": 1e-4})
    panel = compare([runs], metric="eval/iqm").panels[0]
    assert (panel.end, panel.quantity) == (1800, "eval/iqm")
    assert [panel.row(label)["iqm"] for label, _ in panel.groups] == [3, 7]
    assert panel.bands("env_steps")["optim.lr=1e-3"][0][[0, -1]].tolist() == [1.0, 3.0]
    out = typed("compare", "runs", "--metric", "eval/iqm")[1]
    assert "minatar/breakout: eval/iqm at 1,800 steps (interquartile mean of the evaluation's returns" in out
    assert "P(improvement)" in out
    assert "P(higher)" in typed("compare", "runs", "--metric", "eval/env_steps")[1]


def test_compare_says_what_to_do_where_no_run_has_the_metric(fabricate, typed):
    fabricate("a1", evaluated(x=(900, 1.0)))
    for metric, hint in (
        ("eval/iqn", "did you mean eval/iqm?"),
        ("eval/seconds_per_day", "a run evaluates its policy with eval.every"),
        ("my score", "docs/metrics.md lists all names"),
    ):
        code, out, line = typed("compare", "runs", "--metric", metric)
        assert (code, out) == (2, "")
        assert f": metric {metric}: no row of these runs has it; {hint}" in line


def test_compare_leaves_out_runs_without_the_metric(fabricate, runs):
    fabricate("a1", evaluated(x=(900, 1.0)))
    fabricate("a2", [1.0], **{"run.seed": 2})
    found = compare([runs], metric="eval/iqm")
    assert found.panels[0].row("")["runs"] == [str(runs / "a1")]
    assert "a2 has no eval/iqm yet" in found.notes[0]


def test_compare_shows_a_metric_of_all_tasks_together_once(fabricate, runs):
    row = {"charts/episodic_return": 3.0, "eval/iqm": 2.0, "eval/env_steps": 900}
    fabricate("m", [row], target="minatar/breakout,minatar/asterix")
    assert [p.title for p in compare([runs], metric="eval/iqm").panels] == ["minatar/breakout, minatar/asterix"]


def test_compare_begins_the_curve_of_a_group_where_all_its_runs_have_values(fabricate, runs):
    fabricate("a1", [1, 2, 3, 4], **{"optim.lr": 1e-3})
    fabricate("b1", [None, None, 6, 8], **{"optim.lr": 1e-4})
    panel = compare([runs]).panels[0]
    first, second = (panel.bands("env_steps")[label][0] for label, _ in panel.groups)
    assert np.isfinite(first).all()
    assert panel.grids["env_steps"][np.isfinite(second)][0] == pytest.approx(3000, abs=30)
    json_band = compare([runs]).as_dict()["panels"][0]["curves"]["env_steps"]["optim.lr=1e-4"]
    assert json_band[0][0] is None
    json.dumps(json_band, allow_nan=False)


MANY = ("optim.lr", "optim.eps", "trace.gamma", "trace.trace_lambda")


def test_compare_names_groups_by_their_folders_where_many_settings_differ(fabricate, runs):
    for name, factor in (("ours", 1.0), ("base", 0.5)):
        for seed in (11, 12):
            values = {setting: 0.5 * factor for setting in MANY}
            fabricate(f"{name}_s{seed}", [0, seed * factor], **values, **{"run.seed": seed})
    found = compare([runs / f"{name}_s{seed}" for name in ("ours", "base") for seed in (11, 12)])
    assert [label for label, _ in found.panels[0].groups] == ["ours", "base"]
    assert "settings differ in 4 places" in " ".join(found.notes)
    few = compare([runs / "ours_s11", fabricate("x", [1], **{name: 0.5 for name in MANY[:1]})])
    assert "optim.lr" not in few.panels[0].groups[0][0]


@pytest.mark.parametrize(
    ("groups", "labels"),
    [
        ([["a/ppo_s1", "a/ppo_s2"], ["a/atlas1", "a/atlas2"]], ["ppo", "atlas"]),
        ([["x/7/1", "x/7/2"], ["x/8/1", "x/8/2"]], ["x/7", "x/8"]),
        ([["a/ppo_seed=1", "b/ppo_seed=2"], ["c/best"]], ["ppo", "best"]),
        ([["a/run"], ["b/run"]], ["a/run", "b/run"]),
    ],
)
def test_folder_labels_are_short_and_unique(groups, labels, tmp_path):
    found = folder_labels([[tmp_path / folder for folder in folders] for folders in groups])
    assert found == labels


def test_compare_takes_labels_in_the_order_of_the_groups(fabricate, typed):
    for name, lr in (("a", 1e-3), ("b", 1e-4)):
        fabricate(name, [0, 1], **{"optim.lr": lr})
    groups = json.loads(typed("compare", "runs", "--labels", "new, old", "--json")[1])["panels"][0]["groups"]
    assert [group["label"] for group in groups] == ["new", "old"]
    assert groups[1]["improvement"] is not None
    assert "new and old: single runs have no interval" in typed("compare", "runs", "--labels", "new,old")[1]
    line = typed("compare", "runs", "--labels", "one,two,three")[2]
    assert ": labels: expected 2, one for each group in this order: optim.lr=1e-3, optim.lr=1e-4; got 3" in line
    assert "every group needs a name of its own" in typed("compare", "runs", "--labels", "one,one")[2]


def test_compare_says_the_same_about_many_groups_once(fabricate, runs):
    for number in range(9):
        fabricate(f"a{number}", [0, 1], **{"optim.lr": (number + 1) / 1000})
    (note,) = compare([runs]).notes
    assert note.endswith("optim.lr=5e-3 and 4 more: single runs have no interval; train more seeds.")


def test_compare_plot_draws_a_single_point_as_a_marker(fabricate, runs):
    from sfactory.tools import compare_plot

    fabricate("a1", evaluated(x=(900, 1.0)), **{"optim.lr": 1e-3})
    fabricate("b1", evaluated(x=(300, 1.0), y=(900, 2.0)), **{"optim.lr": 1e-4})
    figure = compare_plot.draw(compare([runs], metric="eval/iqm"), ["env_steps"])
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o" and len(line.get_xdata())]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in lines] == [([900.0], [1.0])]


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


def test_compare_table_fits_a_narrow_terminal(fabricate, runs):
    for seed in (1, 2):
        for lr in (1e-3, 1e-4):
            fabricate(f"{lr}-{seed}", [0, seed / lr], **{"run.seed": seed, "optim.lr": lr})
    found = compare([runs])
    whole, narrow = (table_text(found, columns).splitlines() for columns in (0, 70))
    assert max(map(len, whole)) > 80
    assert max(map(len, narrow)) <= 70
    assert sorted(" ".join(narrow).split()) == sorted([*" ".join(whole).split(), "optim.lr=1e-3", "optim.lr=1e-4"])
    assert max(map(len, table_text(found, 20).splitlines())) < 40, "never an empty block"


def compared(fabricate, typed, tmp_path, *options):
    """The page of a comparison of two long labels."""
    for seed in (1, 2):
        for lr, score in ((1.25e-3, 1.0), (1.25e-4, 20_000.0)):
            label = {"optim.lr": lr, "loss.entropy_coef": lr / 10}
            fabricate(f"{lr}-{seed}", [score, score * (2 + seed)], step=10**8, **{"run.seed": seed, **label})
    assert typed("compare", "runs", "-o", "page.html", *options)[0] == 0
    return tmp_path / "page.html"


def test_compare_writes_a_page_without_matplotlib(fabricate, typed, tmp_path, monkeypatch):
    from sfactory.tools import compare_plot

    monkeypatch.setattr(compare_plot, "find_spec", lambda name: None)
    text = compared(fabricate, typed, tmp_path).read_text()
    assert not re.search(r"<script|https?:|url\(|@import", text)
    for part in ("Comparison of 4 runs", "minatar/breakout", "training return by env steps", "by training time",
                 "training return at 200,000,000 steps", "Notes", "true intervals are wider"):  # fmt: skip
        assert part in text, part
    rows = re.findall(r'<tr>(<td data-head="">.*?)</tr>', text)
    cells = [dict(re.findall(r'<td data-head="(.*?)">(.*?)</td>', line)) for line in rows]
    assert [(line[""].split()[-1], line["runs"], line["IQM"]) for line in cells] == [
        ("optim.lr=1.25e-4", "2", "70,000"), ("optim.lr=1.25e-3", "2", "3.5")
    ]  # fmt: skip
    assert cells[1]["P(improvement)"] == "0 % (0 to 0)"
    scores = text[text.index('aria-label="scores"') :]
    assert (scores.count("<circle"), scores.count("<rect")) == (4, 2), "a dot for a run, a bar for an interval"


def test_compare_page_has_one_axis_with_by_and_shows_a_single_run(fabricate, typed, tmp_path):
    assert "by training time" not in compared(fabricate, typed, tmp_path, "--by", "env_steps").read_text()
    assert typed("compare", "runs/0.00125-1", "-o", "one.html")[0] == 0
    one = (tmp_path / "one.html").read_text()
    assert "Comparison of 1 run<" in one
    assert "all runs" in one


def test_compare_page_tells_nine_groups_apart(fabricate, typed, tmp_path):
    """Colors are seven; the eighth group has dashes. It had no color at all, and a black band."""
    for i in range(9):
        fabricate(f"r{i}", [1.0, 2.0 + i], **{"optim.lr": 1e-4 * (i + 1)})
    assert typed("compare", "runs", "-o", "page.html")[0] == 0
    text = (tmp_path / "page.html").read_text()
    classes = re.findall(r'<span class="key"><i class="(.*?)"', text)
    assert len(set(classes)) == 9
    assert set(" ".join(classes).split()) == {*(f"c{i}" for i in range(7)), "dash1"}
    assert set(re.findall(r'<path class="([^"]*) line"', text)) == set(classes)
    for name in set(" ".join(classes).split()):
        assert f".{name} {{" in text, "the style has it"


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_chromium_shows_a_comparison_without_cut_labels(width, fabricate, typed, tmp_path, in_chromium):
    found = in_chromium(compared(fabricate, typed, tmp_path), width)
    assert {"scores", "Comparison of 4 runs"} <= set(found["shown"])
    assert (found["scrollWidth"], found["clientWidth"]) == (width, width)
    assert found["cut"] == []


# -- what a number is


def test_compare_tells_groups_apart_whose_settings_look_the_same(fabricate, runs):
    for name, lr, score in (("a", 1.0000001e-3, 1.0), ("b", 1e-3, 5.0)):
        fabricate(name, [0, score], **{"optim.lr": lr})
    (panel,) = compare([runs]).panels
    labels = [label for label, _ in panel.groups]
    assert labels == ["optim.lr=0.0010000001", "optim.lr=0.001"]
    assert [panel.row(label)["iqm"] for label in labels] == [1.0, 5.0]


def test_compare_has_no_interval_of_an_improvement_over_a_single_run(fabricate, typed):
    for name, seed, value, lr in (("a1", 1, 1.0, 1e-3), ("b1", 1, 2.0, 1e-4), ("b2", 2, 3.0, 1e-4)):
        fabricate(name, [0, value], **{"run.seed": seed, "optim.lr": lr})
    out = typed("compare", "runs")[1]
    row = next(line for line in out.splitlines() if line.strip().startswith("optim.lr=1e-4"))
    assert row.rstrip().endswith(" 100 %")  # and not (100 to 100), as if it were certain
    group = json.loads(typed("compare", "runs", "--json")[1])["panels"][0]["groups"][1]
    assert group["improvement"] == [1.0, None, None]


def test_compare_plot_draws_an_improvement_without_interval(fabricate, runs):
    from sfactory.tools import compare_plot

    fabricate("a1", [0, 1.0], **{"optim.lr": 1e-3})
    fabricate("b1", [0, 2.0], **{"optim.lr": 1e-4})
    figure = compare_plot.draw(compare([runs]), ["env_steps"])
    lines = figure.axes[-1].get_lines()
    assert [line.get_xdata().tolist() for line in lines if line.get_marker() == "|"] == [[1.0]]
    assert not [line for line in lines if line.get_linewidth() == 5]  # the bar of an interval


def test_compare_says_which_returns_are_means_of_fewer_than_100_episodes(fabricate, runs):
    fabricate("few", [{RETURN: 0.0, GAMES: 22}, {"eval/iqm": 2.0}, {RETURN: 1.0, GAMES: 120}])
    fabricate(
        "enough", [{RETURN: 0.0, GAMES: 90}, {RETURN: 1.0, GAMES: 100}]
    )  # ends at the evaluation of the other one
    notes = compare([runs]).notes
    (note,) = [note for note in notes if "episodes" in note]
    assert note == f"{runs}/few has fewer than 100 complete episodes there; the return is the mean of all of them."


def test_compare_says_when_a_score_came_later_than_the_end(fabricate, runs):
    fabricate("a1", evaluated(x=(300, 1.0)), **{"optim.lr": 1e-3})
    fabricate("b1", evaluated(x=(900, 2.0)), **{"optim.lr": 1e-4})
    found = compare([runs], metric="eval/iqm")
    assert (found.panels[0].end, found.panels[0].row("optim.lr=1e-4")["iqm"]) == (300, 2.0)
    assert f"{runs}/b1 has no value at 300 steps yet; the first one, which came later, is used." in found.notes


def test_compare_is_silent_about_runs_that_end_almost_together(fabricate, runs):
    """Every run ends with a whole update, a few steps behind the others."""
    fabricate("a1", evaluated(x=(4492, 1.0)))
    fabricate("a2", evaluated(x=(4501, 2.0)))
    notes = compare([runs], metric="eval/iqm").notes
    assert not [note for note in notes if "no value at" in note or "compared at" in note]


def test_compare_by_seconds_shows_the_digits_that_differ(fabricate, runs):
    fabricate("a1", [1.0, 2.0], step=300, speed=200.0, **{"optim.lr": 1e-3})
    fabricate("b1", [1.0, 2.0], step=310, speed=200.0, **{"optim.lr": 1e-4})
    found = compare([runs], "seconds")
    (note,) = [note for note in found.notes if "compared at" in note]
    assert note.endswith(f"compared at 3.00 s, where {runs}/a1 ends; the longest run is {runs}/b1 with 3.10 s.")
    assert " at 3.00 s (" in table_text(found)
    assert re.search(r"optim\.lr=1e-4 .* 3\.00 ", table_text(compare([runs])))
    assert [position(value, "seconds") for value in (9.994, 12.34, 1234.5)] == ["9.99 s", "12.3 s", "1,234 s"]
    assert position(4492.4, "env_steps") == "4,492 steps"


@pytest.mark.parametrize(
    ("metric", "word"),
    [
        ("charts/episodic_return", "improvement"),
        ("charts/episodic_return_max", "improvement"),
        ("charts/episodic_return_std", "higher"),
        ("selfplay/elo_best_opponent", "higher"),
        ("selfplay/score/runs/a", "improvement"),
    ],
)
def test_compare_calls_only_a_higher_score_an_improvement(metric, word, fabricate, typed):
    for name, lr in (("a", 1e-3), ("b", 1e-4)):
        fabricate(name, [{metric: 1.0}], **{"optim.lr": lr})
    assert f"P({word})" in typed("compare", "runs", "--metric", metric)[1]


def test_comparison_of_no_folder_says_so():
    """A sweep of which no run could begin."""
    with pytest.raises(ValueError, match=r"^there is no folder of a run to compare$"):
        compare([])
