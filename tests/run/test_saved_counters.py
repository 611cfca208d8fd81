"""Counters of a state file that a run cannot have reached are refused before anything is trained."""

import hashlib
import json

import pytest
import torch

from sfactory.run import checkpoint
from sfactory.run.checkpoint import CheckpointError, Contents, newest
from sfactory.run.checkpoint_files import manifest_sha256
from sfactory.run.checkpoint_writer import save
from sfactory.run.saved_counters import WHOLE, check_counters

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INFINITY, -1, 1.5, 2**60, 1e300, "7", None, True, [7], {}], ids=repr)
@pytest.mark.parametrize("name", [*WHOLE, "seconds"])
def test_check_counters_refuses_what_is_no_count(name, value):
    if name == "seconds" and value == 1.5:
        return check_counters({"env_steps": 7, name: value})
    with pytest.raises(
        CheckpointError, match=f"^state.json: {name} is .*, it must be a .*number.*, 0 or more$"
    ) as error:
        check_counters({"env_steps": 7, name: value})
    assert len(str(error.value)) < 200


def test_check_counters_accepts_those_of_a_run_and_of_earlier_versions():
    check_counters({"env_steps": 7, "launch": 0})
    check_counters({"env_steps": 2**40, "updates": 9, "seconds": 0.25, "kl": NAN, "ess": NAN})
    with pytest.raises(CheckpointError, match=r"^state\.json has no env_steps$"):
        check_counters({"launch": 0})


@pytest.mark.parametrize(
    "state", ['{"env_steps": 20, "seconds": NaN}', "[]", "7", "{", "[" * 100_000], ids=lambda s: s[:9]
)
def test_newest_skips_a_checkpoint_with_impossible_counters(tmp_path, state):
    """Its hashes are right. The console was switched off, and training went on with these numbers."""
    parts = {part: {"w": torch.zeros(1)} for part in checkpoint.PARTS}
    for steps in (10, 20):
        path = save(tmp_path, Contents({"env_steps": steps}, parts), keep=2)
    (path / "state.json").write_text(state)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    manifest["sha256"] = manifest_sha256(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    warnings = []
    assert newest(tmp_path, warnings, move_damaged=False).name == "000000000010"
    assert len(warnings) == 1
    assert warnings[0].startswith("checkpoint 000000000020 skipped: state.json")
    assert "\n" not in warnings[0]
