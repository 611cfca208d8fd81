"""Weights & Biases: one run for each folder, no new row is lost after a resume from an older checkpoint."""

import importlib.util
import os
import struct
import sys

import pytest

from sfactory.config import Config, Log
from sfactory.monitor.wandb_output import wandb_arguments, wandb_id
from sfactory.monitor.writers import METRICS_FILE, Writers

PACKAGES = ["imitated", *["real"] * (importlib.util.find_spec("wandb") is not None)]


def write(run_dir, steps, resume=None, **settings):
    writers = Writers(run_dir, Config(log=Log(wandb=True, console_seconds=0.0, **settings)), resume)
    for step in steps:
        writers.row(step, step / 10, {"charts/SPS": 1.0})
    writers.close()


class ImitatedRun:
    """Takes rows as wandb does: one whose step is below the next one is ignored."""

    def __init__(self, sent, starting_step=0, disabled=False):
        self.sent, self.starting_step, self.disabled = sent, starting_step, disabled
        self.axes = {}
        self._next = starting_step

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, row, step):
        if step >= self._next:
            self._next = step + 1
            self.sent.append((step, row))

    def finish(self):
        pass


class Imitated:
    """The package. Online a server says the next step of a run; offline every launch begins at 0."""

    def __init__(self, online):
        self.online, self.sent, self.calls, self.runs = online, [], [], []

    def init(self, **arguments):
        self.calls.append(arguments)
        start = self.sent[-1][0] + 1 if self.online and self.sent else 0
        self.runs.append(ImitatedRun(self.sent, start, arguments.get("mode") == "disabled"))
        return self.runs[-1]


@pytest.fixture(params=[True, False], ids=["online", "offline"])
def wandb(monkeypatch, request):
    package = Imitated(request.param)
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def test_missing_wandb_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write(tmp_path, [10])
    assert capsys.readouterr().err.count("Weights & Biases cannot be written") == 1
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 1


def test_wandb_gets_the_same_names_and_continues_after_a_resume(tmp_path, wandb, capsys):
    write(tmp_path, [10])
    write(tmp_path, [20], resume=10)
    assert [step for step, _ in wandb.sent] == [10, 20]
    row = wandb.sent[0][1]
    assert (row["charts/SPS"], row["env_steps"], row["seconds"]) == (1.0, 10, 1.0)
    first, second = wandb.calls
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert wandb.runs[0].axes["charts/*"] == wandb.runs[0].axes["losses/*"] == "env_steps"
    assert wandb.runs[0].axes["eval/*"] == "eval/env_steps"
    assert first["config"]["log"]["wandb"] is True
    assert first["settings"]["silent"] is False
    assert "cannot remove rows" not in capsys.readouterr().err


def test_wandb_loses_no_row_after_a_resume_from_an_older_checkpoint(tmp_path, wandb, capsys):
    write(tmp_path, [10, 20, 30, 40])
    write(tmp_path, [25, 35, 39], resume=20)
    line = "Weights & Biases cannot remove rows: those from step 21 to 40 that were sent before stay there"
    assert capsys.readouterr().err.count(line) == 1
    assert line in (tmp_path / "log.txt").read_text()
    write(tmp_path, [30, 50], resume=25)
    env_steps = [row["env_steps"] for _, row in wandb.sent]
    assert env_steps == [10, 20, 30, 40, 25, 35, 39, 30, 50]
    steps = [step for step, _ in wandb.sent]
    assert steps == sorted(set(steps)), "wandb would ignore rows whose step it has had"
    assert steps[:4] == [10, 20, 30, 40]
    assert steps[-1] == 50, "its steps are env_steps again as soon as that is possible"


def test_wandb_that_is_disabled_says_nothing_about_rows(tmp_path, wandb, capsys):
    write(tmp_path, [10, 20])
    write(tmp_path, [15], resume=10, wandb_mode="disabled")
    assert "cannot remove rows" not in capsys.readouterr().err


def offline_rows(run_dir):
    """What the wandb package has written offline: (step of wandb, env_steps) of every row.

    The file is a log of LevelDB behind seven bytes: blocks of 32 KiB, parts of records with checksum, length and kind.
    """
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        data, at, record = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            record, at = record + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # whole, or last part
                parsed, record = wandb_internal_pb2.Record.FromString(record), b""
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in parsed.history.item}
                if items:
                    found.append((parsed.history.step.num, int(items["env_steps"])))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_wandb_offline_has_the_rows_of_all_launches(tmp_path, monkeypatch, package):
    if package == "imitated":
        imitated = Imitated(online=False)
        monkeypatch.setitem(sys.modules, "wandb", imitated)
    write(tmp_path, [10, 20, 30], wandb_mode="offline")
    write(tmp_path, [15, 25, 50], resume=10, wandb_mode="offline")
    found = offline_rows(tmp_path) if package == "real" else [(step, row["env_steps"]) for step, row in imitated.sent]
    assert found == [(10, 10), (20, 20), (30, 30), (31, 15), (32, 25), (50, 50)]


@pytest.mark.parametrize(
    ("settings", "variables", "expected"),
    [
        ({}, {}, {"project": "sfactory", "name": "run"}),
        ({}, {"WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_RUN_GROUP": "g", "WANDB_MODE": "offline"}, {}),
        ({"wandb_mode": "offline", "wandb_group": "g"}, {"WANDB_MODE": "disabled", "WANDB_PROJECT": "p"},
         {"mode": "offline", "group": "g", "name": "run"}),
        ({"wandb_project": "mine", "wandb_name": "first", "wandb_tags": "a, b,"}, {"WANDB_TAGS": "c"},
         {"project": "mine", "name": "first", "tags": ["a", "b"]}),
    ],
)  # fmt: skip
def test_wandb_settings_win_over_its_variables_and_these_over_defaults(
    tmp_path, monkeypatch, settings, variables, expected
):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_arguments(Log(wandb=True, **settings), tmp_path / "run") == expected


def test_wandb_id_stays_with_its_folder_and_is_unique(tmp_path):
    for parent in ("one", "two"):
        (tmp_path / parent / "a").mkdir(parents=True)
    first, other = (wandb_id(tmp_path / parent / "a", new=True) for parent in ("one", "two"))
    assert first.startswith("a-")
    assert first != other
    (tmp_path / "one" / "a").rename(tmp_path / "moved")
    assert wandb_id(tmp_path / "moved", new=False) == first
    assert wandb_id(tmp_path / "moved", new=True) != first  # a new run in an old folder
    (tmp_path / "my run").mkdir()
    assert wandb_id(tmp_path / "my run", new=False) == "my-run"  # logged by a version that kept no id
