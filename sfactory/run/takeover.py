"""Give a run the policy of another run: copy a checkpoint into its folder as the newest one of its own steps.

What the policy is comes from the source: weights, optimizer, normalizers, learning rate, the episodes of its training
return. What the run has done stays its own: its counters. So its rows of metrics go on at its own steps. The state of
environments (lockstep) is not copied: the environments of the run are reset.

    stage    copies and verifies, in a folder beside the runs
    install  moves that folder into the run; after a crash it is repeated

In between the caller records what it does: what was staged and recorded is installed, what was not recorded is deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfactory.run.checkpoint import checkpoints_dir
from sfactory.run.checkpoint_files import LOCKSTEP, STATE, read_manifest, read_state, verify
from sfactory.run.checkpoint_writer import fsync, write_manifest

OWN = ("env_steps", "environment_steps", "frames", "updates", "seconds", "skipped_updates", "launch")
"""Counters of the state that belong to the run and not to the policy."""
POOL = "selfplay"
"""Entry about opponents: their policies are in the folder of the run."""
LEFT_OUT = ("rows_until", "held_slots")
"""Entries that belong to what lockstep saves of the source beside its policy."""


def counters_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of a checkpoint's state that a run keeps, and its pool of opponents."""
    return {name: state[name] for name in (*OWN, POOL) if name in state}


def stage(source: Path, staged: Path, own: Mapping[str, Any]) -> None:
    """Copy a checkpoint to `staged`, with the counters `own` and without environments.

    own: the state of the newest checkpoint of the run that takes over, or counters of 0. Raises CheckpointError if the
    source is damaged, OSError if it cannot be copied.
    """
    verify(source)
    shutil.rmtree(staged, ignore_errors=True)
    temporary = staged.with_name(f".{staged.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    manifest = read_manifest(source)
    for name in manifest["files"]:
        if name not in (STATE, LOCKSTEP):
            shutil.copyfile(source / name, temporary / name)
    (temporary / STATE).write_text(json.dumps(_state(read_state(source), own), indent=1, sort_keys=True))
    write_manifest(temporary, sfactory=manifest["sfactory"], torch=manifest["torch"])
    fsync(temporary)
    verify(temporary)
    temporary.rename(staged)
    fsync(staged.parent)


def _state(policy: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the policy with the counters of the run."""
    state = {name: value for name, value in policy.items() if name not in (*LEFT_OUT, *OWN, POOL)}
    state |= counters_of(own)
    if "episodes" in state and "episodes" in own:
        state["episodes"] = {**state["episodes"], "count": own["episodes"]["count"]}
    return state


def install(staged: Path, run_dir: Path) -> None:
    """Move a staged checkpoint into a run, in whose folder nothing trains, in place of the one at the same step."""
    final = checkpoints_dir(run_dir) / f"{int(read_state(staged)['env_steps']):012d}"
    final.parent.mkdir(parents=True, exist_ok=True)
    replaced = final.with_name(f".{final.name}.old")  # the next save of the run deletes it, if we are killed before
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staged.rename(final)
    fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def weights_sha256(checkpoint: Path) -> str:
    """Hash of the weights of a checkpoint, by its manifest."""
    return str(read_manifest(checkpoint)["files"]["model.safetensors"]["sha256"])
