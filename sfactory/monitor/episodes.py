"""The last episodes of a run: the one source of every training return that is shown or stored. Free of torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sfactory.device.ranks import Ranks
from sfactory.errors import CheckpointError
from sfactory.monitor.rows import is_count, is_number
from sfactory.monitor.table import EPISODES_IN_MEAN

_ROW = EPISODES_IN_MEAN + 1  # number of values, then the values
_TOTALS = 2


class Episodes:
    """Returns and lengths of the last 100 complete episodes, and how many there were in all.

    The supervisor collects them and publishes them to the learner, which reads them once per update: the row of metrics
    and the checkpoint of an update have the same ones, and a resumed run goes on from those of its checkpoint.
    """

    def __init__(self, num_tasks: int = 1) -> None:
        self.returns: list[deque[float]] = [deque(maxlen=EPISODES_IN_MEAN) for _ in range(num_tasks)]  # by task
        self.lengths: deque[float] = deque(maxlen=EPISODES_IN_MEAN)
        self.count = 0
        """Complete episodes over all launches."""
        self.complete = True
        """False after a resume from a checkpoint without episodes: fewer than 100 are then no training return."""

    def add(self, episodes: Iterable[tuple[Any, ...]]) -> None:
        """Add complete episodes: return, length and index of the task of each, further entries are ignored."""
        for episodic_return, length, task, *_ in episodes:
            self.returns[task].append(float(episodic_return))
            self.lengths.append(int(length))
            self.count += 1

    @property
    def training_return(self) -> float | None:
        """Mean return of the last 100 episodes, or of all while there are fewer; None if it is not known.

        With several tasks: the mean over tasks, so that tasks with short episodes do not weigh more.
        """
        means = [np.mean(returns) for returns in self.returns if returns]
        return float(np.mean(means)) if means and (self.complete or self.settled) else None

    @property
    def settled_return(self) -> float | None:
        """The training return, once it is the mean of 100 episodes of every task."""
        return self.training_return if self.settled else None

    @property
    def settled(self) -> bool:
        """Whether every task has the 100 episodes its training return is the mean of."""
        return all(len(returns) == EPISODES_IN_MEAN for returns in self.returns)

    @property
    def in_mean(self) -> int:
        """Episodes that the training return is the mean of; of several tasks the fewest."""
        return min((len(returns) for returns in self.returns if returns), default=0)

    def of_rank(self, ranks: Ranks) -> Episodes:
        """The part of these episodes that one rank of a job goes on from; those of all ranks together are these."""

        def part(values: Sequence[float]) -> list[float]:
            first, end = (len(values) * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
            return list(values)[first:end]

        own = Episodes(len(self.returns))
        returns, lengths = [part(window) for window in self.returns], part(self.lengths)
        count = self.count if ranks.is_leader else 0
        own.set_state({"count": count, "complete": self.complete, "returns": returns, "lengths": lengths})
        return own

    # -- in a checkpoint ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "count": self.count,
            "complete": self.complete,
            "returns": [list(returns) for returns in self.returns],
            "lengths": list(self.lengths),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; what is here already is forgotten."""
        self.count, self.complete = int(state["count"]), bool(state["complete"])
        for own, saved in zip([*self.returns, self.lengths], [*state["returns"], state["lengths"]], strict=True):
            own.clear()
            own.extend(saved)

    # -- in shared memory --------------------------------------------------------------------------------------

    @staticmethod
    def size(num_tasks: int) -> int:
        """Length of `numbers`."""
        return _TOTALS + (num_tasks + 1) * _ROW

    def numbers(self) -> np.ndarray:
        """Everything as float64 [size]."""
        rows = np.zeros((len(self.returns) + 1, _ROW))
        for row, values in zip(rows, (*self.returns, self.lengths), strict=True):
            row[0] = len(values)
            row[1 : 1 + len(values)] = values
        return np.concatenate([[self.count, self.complete], rows.ravel()])

    def set_numbers(self, numbers: np.ndarray) -> None:
        """Restore what `numbers` returned; what is here already is forgotten."""
        rows = [row[1 : 1 + int(row[0])].tolist() for row in numbers[_TOTALS:].reshape(-1, _ROW)]
        self.set_state(
            {
                "count": numbers[0],
                "complete": numbers[1],
                "returns": rows[:-1],
                "lengths": [int(length) for length in rows[-1]],
            }
        )


def is_episodes(value: object) -> bool:
    """Whether a value read from JSON is what `Episodes.state` returned."""
    if not isinstance(value, dict) or not is_count(value.get("count")) or not isinstance(value.get("complete"), bool):
        return False
    returns = value.get("returns")
    if not isinstance(returns, list) or not all(map(_is_window, [*returns, value.get("lengths")])):
        return False
    return all(len(window) <= EPISODES_IN_MEAN for window in [*returns, value["lengths"]])


def _is_window(values: object) -> bool:
    return isinstance(values, list) and all(is_number(number) and abs(number) < np.inf for number in values)


def stored_episodes(state: Mapping[str, Any], num_tasks: int) -> Episodes:
    """The episodes of a checkpoint; earlier versions stored none. CheckpointError for another number of tasks."""
    episodes = Episodes(num_tasks)
    if "episodes" in state:
        if len(state["episodes"]["returns"]) != num_tasks:
            raise CheckpointError(f"state.json has episodes of another number of tasks than {num_tasks}")
        episodes.set_state(state["episodes"])
    else:
        episodes.complete = not state.get("env_steps")
    return episodes
