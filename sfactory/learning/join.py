"""Join the other learners of the job, if there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sfactory.device.ranks import Ranks
from sfactory.learning.distributed import Learners, SingleLearner


def join(
    ranks: Ranks,
    device: torch.device,
    stall_timeout: float,
    alive: Callable[[Sequence[int]], None],
    log: Callable[[str], None],
) -> Learners:
    """Join the learners of the job; waits until all of them have come. A single one has no others.

    stall_timeout: seconds without a sign of life after which another learner is lost. alive: called about once a second
    while this learner waits for others that do live, with their ranks. log: gets a line if others are long in coming.
    """
    if ranks.alone:
        return SingleLearner()
    from sfactory.learning.process_group import ProcessGroup

    return ProcessGroup.join(ranks, device, stall_timeout, alive, log)
