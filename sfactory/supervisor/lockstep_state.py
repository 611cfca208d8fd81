"""State that lockstep saves besides the learner's, so that a resume is bit-identical.

Captured between two turns, when no worker runs: the whole arena (slots, slot table), the mailbox, every group with its
environments, the slots that are held for replay, the metrics since the last row, and the episodes of the training
return. Randomness is counter-based (noise by request number, shuffles and replayed slots by update), so the
environments' generators are the only ones to save.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

import numpy as np

from sfactory.envs.saved_state import decode, encode
from sfactory.supervisor.lockstep import Lockstep


def capture(run: Lockstep, board: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays for the checkpoint. board: `Board.state`. EnvError if an environment cannot be saved."""
    state = {
        "groups": [[group.state() for group in sampler.runs] for sampler in run.samplers],
        "episodes": [sampler.episodes for sampler in run.samplers],
        "learner": run.learner.windows(),
        "board": board,
    }
    text = json.dumps(encode(state)).encode()
    arrays = {"arena": run.shared.arena.dump(), "state": np.frombuffer(text, np.uint8)}
    return {**arrays, **run.learner.held_slots()}


def restore(run: Lockstep, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `capture`, for a run with the same settings whose learner has loaded the same checkpoint.

    Returns the state of the board.
    """
    state = decode(json.loads(arrays["state"].tobytes()))
    run.shared.arena.load(arrays["arena"])
    infos = state.get("infos", [[]] * len(run.samplers))  # earlier versions kept them beside the episodes
    for sampler, groups, episodes, own in zip(run.samplers, state["groups"], state["episodes"], infos, strict=True):
        sampler.episodes = [
            (*episode, *([numbers] if numbers else [])) for episode, numbers in zip_longest(episodes, own)
        ]
        sampler.num_infos = sum(len(episode) > 3 for episode in sampler.episodes)
        for group, saved in zip(sampler.runs, groups, strict=True):
            group.set_state(saved)
    run.learner.set_windows(state["learner"], arrays.get("held"))
    board: dict[str, Any] = state["board"]
    return board
