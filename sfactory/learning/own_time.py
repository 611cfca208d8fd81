"""The rows of each agent in the order in which it acts: where agents take turns, enter late or leave early.

An environment with several agents has one lane per agent. A lane has a row for every step of the environment, but its
agent acts only in some of them. What follows an action (rewards, an end) may arrive while others act:

    t            0     1     2     3     4     5          agent of this lane, which acts in steps 0, 2 and 4
    acting       1     0     1     0     1     0
    reward       0     1     0     0     0    -1
    terminated   0     0     0     0     0     1          the move of another agent ended the episode

`own_time` moves rewards and ends to the action that they follow, here to rows 0 and 4, and finds for every row the row
whose value bootstraps it, here 2 and 4. Advantages and targets are then those of the agent's own episode, computed
alone. Nothing is learned from the other rows, nor from the last action of a lane if the agent's next observation is
not in this batch: its value is not known.

Legend: T steps, B lanes, time-major.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class OwnTime(NamedTuple):
    """The outcome of every action, and the order of the actions. Rows in which no agent acts are not valid."""

    reward: np.ndarray
    """[T, B] float32, all rewards until the agent acts again."""
    terminated: np.ndarray
    """[T, B] bool."""
    truncated: np.ndarray
    """[T, B] bool; also where the environment failed while others acted."""
    valid: np.ndarray
    """[T, B] bool."""
    successor: np.ndarray
    """[T, B] int64, 0 to T: the row whose value bootstraps this one. Not used after a termination."""
    order: np.ndarray
    """[T, B] int64: in every lane first the rows in which the agent acts, then the others, both in order of time."""


def own_time(
    reward: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    first: np.ndarray,
    acting: np.ndarray,
) -> OwnTime:
    """Return the outcome of every action in the time of its own agent.

    Args:
        reward, terminated, truncated, valid: [T, B], of the environment's steps.
        first: [T + 1, B] bool, the agent's episode begins here. Without an end before it the environment failed.
        acting: [T + 1, B] bool, the agent chooses an action here.
    """
    steps, lanes = reward.shape
    out = OwnTime(
        reward=np.zeros_like(reward),
        terminated=np.zeros((steps, lanes), bool),
        truncated=np.zeros((steps, lanes), bool),
        valid=np.zeros((steps, lanes), bool),
        successor=np.zeros((steps, lanes), np.int64),
        order=np.argsort(~acting[:-1], axis=0, kind="stable"),
    )
    # What follows the rows before t, as seen from their end: the sum of rewards, the kind of end, the bootstrap.
    total = np.zeros(lanes, reward.dtype)
    end, cut = np.zeros(lanes, bool), np.zeros(lanes, bool)
    known, after = acting[steps].copy(), np.full(lanes, steps)
    for t in reversed(range(steps)):
        failed = first[t + 1] & ~terminated[t] & ~truncated[t]
        ends = terminated[t] | truncated[t] | failed
        total = np.where(ends, reward[t], reward[t] + total)
        end = np.where(ends, terminated[t], end)
        cut = np.where(ends, truncated[t] | failed, cut)
        after = np.where(ends, np.where(failed, t, t + 1), after)
        known |= ends
        acts = acting[t]
        out.reward[t] = np.where(acts, total, 0)
        out.terminated[t], out.truncated[t] = acts & end, acts & cut
        out.valid[t] = acts & known & valid[t]
        out.successor[t] = after
        total = np.where(acts, 0, total).astype(reward.dtype)
        end, cut = end & ~acts, cut & ~acts
        known |= acts
        after = np.where(acts, t, after)
    return out
