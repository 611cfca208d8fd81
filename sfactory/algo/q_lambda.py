"""Targets of action values by Q(lambda), without importance ratios.

Legend: T steps, B lanes; rows as in `trace`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfactory.algo.trace import TraceInput, gae


@torch.no_grad()
def q_lambda_targets(rows: TraceInput, *, gamma: float, trace_lambda: float) -> Tensor:
    """Targets [T, B] by Peng's Q(lambda), as in PQN (Gallici et al. 2024, arXiv 2407.04811; purejaxql).

        G_t = r_t + gamma nonterminal_t ((1 - lambda) q_{t+1} + lambda G_{t+1}),    q_t = max over a of Q(x_t, a)

    and G = q after the last row. Written as G_t = q_t + acc_t the recursion for acc is that of `gae`. Differs from the
    paper by distinguishing terminations (no bootstrap) and truncations (bootstrap with q, the trace stops), and by
    reset rows, which have no influence on other rows; their own target is q_t. Random actions do not cut the trace.

    rows: value and next_value are q_t and q_{t+1}; log_rho is not used.
    """
    return gae(rows, gamma=gamma, trace_lambda=trace_lambda).target
