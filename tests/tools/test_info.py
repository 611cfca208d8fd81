"""`sfactory info`: description of checkpoints, also damaged ones and files of unknown origin."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import trained
from safetensors.torch import load_file

from sfactory.run import checkpoint, provenance
from sfactory.run.checkpoint import MANIFEST, candidates, read_state
from sfactory.tools.info import info

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "a", "memory/tmaze", model={"core": "gru", "core_size": 8})


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "runs" / "a"))


def test_info_describes_a_run_and_changes_nothing(typed, run):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}
    code, out, line = typed("info", "runs/a")
    newest, oldest = candidates(run)
    assert code == 0
    assert line == f"sfactory: verified (exit 0): runs/a/checkpoints/{newest.name} is as it was written"
    weights = load_file(newest / "model.safetensors")
    assert f"parameters  {sum(x.numel() for x in weights.values()):,}" in out
    core = sum(x.numel() for name, x in weights.items() if name.startswith("trunk.core"))
    assert f"{core:,}  trunk.core" in out
    assert f"trained     {int(newest.name):,} env steps" in out
    assert f", {read_state(newest)['episodes']['count']:,} episodes\n" in out
    assert "task        memory/tmaze" in out
    assert f"by sfactory 0.1.0 and torch {torch.__version__}" in out
    assert f"others      {oldest.name}  good" in out
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}


def test_info_says_how_many_slots_a_checkpoint_holds_for_replay(typed, run, tmp_path):
    assert "replay" not in typed("info", "runs/a")[1]
    trained(tmp_path / "runs" / "b", "classic/cartpole", replay={"ratio": 1.0, "max_age": 2})
    out = typed("info", "runs/b")[1]
    assert "replay      4 slots held, in lockstep.npz" in out


def test_info_json_holds_the_description(typed, run):
    code, out, _ = typed("info", "runs/a", "--json")
    found = json.loads(out)
    assert (code, found["verified"], found["wrong"]) == (0, True, "")
    assert found["bytes"] == sum(p.stat().st_size for p in candidates(run)[0].iterdir())
    assert found["state"]["env_steps"] == int(candidates(run)[0].name)
    assert found["others"] == {"000000000000": ""}
    assert found["task"]["env"] == "memory/tmaze"


def test_info_reports_damage_and_shows_the_newest_good_checkpoint(typed, run):
    newest, oldest = candidates(run)
    with (newest / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    code, out, _ = typed("info", "runs/a")
    assert code == 0
    assert f"checkpoint  runs/a/checkpoints/{oldest.name}" in out
    assert f"{newest.name}  damaged: model.safetensors is damaged" in out
    code, out, line = typed("info", newest)
    assert code == 5
    assert "verified    no: model.safetensors is damaged" in out
    assert f"trained     {int(newest.name):,} env steps" in out  # what can be read is shown
    assert "damaged (exit 5)" in line
    assert newest.is_dir()  # it stays where it is


def test_info_looks_again_if_a_run_prunes_a_checkpoint_meanwhile(run, monkeypatch):
    newest, oldest = candidates(run)
    newer = newest.with_name(f"{int(newest.name) + 1:012d}")
    verify = checkpoint.verify

    def verify_after_the_run_saved_and_pruned(path):
        monkeypatch.undo()
        newest.rename(newer)
        verify(path)

    monkeypatch.setattr(checkpoint, "verify", verify_after_the_run_saved_and_pruned)
    found = info(run)
    assert (found.path, found.wrong) == (str(newer), "")
    assert found.others == {oldest.name: ""}


def test_info_shows_the_task_of_a_copied_checkpoint(typed, run, tmp_path):
    shutil.copytree(candidates(run)[0], tmp_path / "copy")
    code, out, _ = typed("info", "copy")
    assert code == 0
    assert "task        memory/tmaze" in out


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff" * 50, b"[" * 100_000, b'{"sha256": 1, "files": []}', b"\xff\xff\xff\xff\0\0\0\0{}"],
)
def test_info_reports_arbitrary_content_as_damage(typed, run, capsys, name, content):
    (candidates(run)[0] / name).write_bytes(content)
    code, _, line = typed("info", candidates(run)[0])
    assert code == 5
    assert "damaged (exit 5)" in line


def test_info_rejects_a_forged_manifest(typed, run):
    """Its own hash is valid, but files that are missing in it, or no dictionary at all, are damage."""
    from sfactory.run.checkpoint_files import FORMAT, manifest_sha256

    path = candidates(run)[0]
    names = json.loads((path / MANIFEST).read_text())["files"]
    elsewhere = {"../../../etc/passwd": {"size": 1, "sha256": ""}}
    for files in ([], {"state.json": 3}, dict.fromkeys(names, 3), {name: {} for name in names}, elsewhere):
        forged = {"format": FORMAT, "files": files}
        forged["sha256"] = manifest_sha256(forged)
        (path / MANIFEST).write_text(json.dumps(forged))
        assert typed("info", path)[0] == 5


def test_info_prints_no_terminal_control_codes(run):
    path = candidates(run)[0]
    (path / "state.json").write_text(json.dumps({"env": "\x1b[2J", "protocol": "\x1b]0;x\x07", "env_steps": "many"}))
    (run / "config.toml").unlink()
    assert "\x1b" not in info(path).report()


def test_info_never_unpickles(typed, run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "unknown.pt").write_bytes(pickle.dumps(Bomb()))
    code, _, line = typed("info", "unknown.pt")
    assert (code, "unknown.pt is a file; a checkpoint is a folder with manifest.json" in line) == (5, True)
    (candidates(run)[0] / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    assert typed("info", candidates(run)[0])[0] == 5
    assert not (tmp_path / "exploded").exists()


def test_info_imports_neither_torch_nor_the_environment(run):
    code = (
        "import sys\nfrom sfactory.cli import main as cli\ntry: cli.main(['info', sys.argv[1]])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'gymnasium', 'sfactory_envs.memory'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("info", 2, "expected one runs/NAME or checkpoint, got none"),
        ("info absent", 2, "absent does not exist"),
        ("info runs", 2, "runs is no checkpoint"),
        ("info runs/a --optim.lr 1", 2, "info takes no settings"),
    ],
)
def test_info_usage_errors(typed, run, arguments, code, message):
    got, _, line = typed(*arguments.split())
    assert got == code
    assert message in line


def test_info_says_how_a_run_was_started_and_resumed(typed, run):
    code, out, _ = typed("info", "runs/a")
    assert code == 0
    for name in ("started", "command", "folder", "host", "CPU", "versions"):
        assert re.search(rf"^{name} +\S", out, re.MULTILINE)
    assert f"numpy {np.__version__}" in out
    assert "resumed" not in out
    provenance.record(run, 1, "")
    assert re.search(r"^resumed +once, the last: 20", typed("info", "runs/a")[1], re.MULTILINE)
    assert len(json.loads(typed("info", "runs/a", "--json")[1])["launches"]) == 2
