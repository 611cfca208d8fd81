"""Rows of a batch in the order of an agent's own actions, which is not that of time where agents take turns.

What runs along a trajectory (traces, products of ratios) needs the rows of an agent one after the other; everything
else is in order of time. `Batch.order`, which `own_time` computes, is a permutation of the rows of each lane; None
where both orders are the same.

Legend: T steps, B lanes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfactory.algo.trace import TraceInput
from sfactory.learning.batch import Batch


def by_agent(x: Tensor, order: Tensor | None) -> Tensor:
    """Rows [T, B] in order of time -> in the order of the agent's actions."""
    return x if order is None else x.gather(0, order)


def by_time(x: Tensor, order: Tensor | None) -> Tensor:
    """Rows [T, B] in the order of the agent's actions -> in order of time."""
    return x if order is None else torch.zeros_like(x).scatter(0, order, x)


def trace_rows(batch: Batch, *, reward: Tensor, value: Tensor, log_rho: Tensor) -> TraceInput:
    """Rows of a trace, in the order of the agent's actions. reward, log_rho [T, B], value [T + 1, B]: in order of time.

    The value that bootstraps a row is that of the agent's next row (`Batch.successor`).
    """
    rows = TraceInput(
        reward=reward,
        value=value[:-1],
        next_value=value[1:] if batch.successor is None else value.gather(0, batch.successor),
        terminated=batch.terminated,
        truncated=batch.truncated,
        valid=batch.valid,
        log_rho=log_rho,
    )
    return TraceInput(*(by_agent(x, batch.order) for x in rows))
