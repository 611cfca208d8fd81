"""What lockstep saves beside the learner so that a resume is bit for bit: memory, environments, half-filled windows.

Taken between two turns, when every worker stands still: the whole arena (slots, book), the mailbox, every group
with its environments, the metrics since the last row, the games the training return is made of. Randomness is counted,
not stateful (noise by request number, shuffles by update): the only generators here are the environments' own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from sfactory.envs.saved_state import decode, encode
from sfactory.monitor.board import Board

if TYPE_CHECKING:
    from sfactory.supervisor.lockstep import Lockstep


def capture(run: Lockstep, board: Board) -> dict[str, np.ndarray]:
    """Arrays for the checkpoint. Raises EnvError if an environment cannot be saved."""
    state = {
        "groups": [[group.state() for group in sampler.runs] for sampler in run.samplers],
        "episodes": [sampler.episodes for sampler in run.samplers],
        "learner": run.learner.windows(),
        "board": board.state(),
    }
    text = json.dumps(encode(state)).encode()
    return {"arena": run.shared.arena.dump(), "state": np.frombuffer(text, np.uint8)}


def restore(run: Lockstep, board: Board, arrays: dict[str, np.ndarray]) -> None:
    """The inverse, into a run built from the same checkpoint and settings."""
    state = decode(json.loads(arrays["state"].tobytes()))
    run.shared.arena.load(arrays["arena"])
    for sampler, groups, episodes in zip(run.samplers, state["groups"], state["episodes"], strict=True):
        sampler.episodes = episodes
        for group, one in zip(sampler.runs, groups, strict=True):
            group.set_state(one)
    run.learner.set_windows(state["learner"])
    board.set_state(state["board"])
