"""Rules that depend on more than one sample: bounds of a minibatch, masks, the prefix of a trajectory.

Recordable: nothing here waits for the device, and shapes do not depend on values. Legend: T steps, B lanes.
"""

import torch
from torch import Tensor

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import LOG_WEIGHT_LIMIT, Surrogate, SurrogateInput


def masked(surrogate: Surrogate, keep: Tensor) -> Surrogate:
    """Set the loss to 0 where ``keep`` [...] is False. Such samples stay in the denominator of the mean."""
    return surrogate._replace(loss=surrogate.loss.masked_fill(~keep, 0.0))


@torch.no_grad()
def within_second_moment(log_weight: Tensor, valid: Tensor, bound: float) -> Tensor:
    """The mask of M2PO (arXiv 2510.01161; AReaL): [...] bool, True for the samples that are kept.

    The largest (log weight)^2 of the valid samples are dropped until the mean of the others is below ``bound``; at
    least one is kept. log_weight [...]: of the policy over behavior; valid [...] bool. Of equal weights the first are
    dropped first.
    """
    squares = log_weight.double().square().masked_fill(~valid, -1.0).flatten()  # the reset rows are last
    ordered, index = torch.sort(squares, descending=True, stable=True)
    ordered = ordered.clamp(min=0.0)
    count = valid.sum()
    rank = torch.arange(len(ordered), device=squares.device)
    left = (count - rank).clamp(min=1)  # samples that are kept if all before this one are dropped
    of_rest = (ordered.sum() - ordered.cumsum(0) + ordered) / left
    dropped = ((of_rest >= bound) & (rank < count)).sum().minimum(count - 1).clamp(min=0)
    keep = torch.zeros_like(valid.flatten()).scatter(0, index, rank >= dropped)
    return keep.view_as(valid) & valid


@torch.no_grad()
def within_entropy_ratio(x: SurrogateInput, low: float, high: float) -> Tensor:
    """The mask of ERC (arXiv 2512.05591): [...] bool, True where low < H(policy) / H(proximal) < high.

    With continuous actions, whose entropy may be negative, exp(H(policy) - H(proximal)) takes the place of the ratio
    (our addition).
    """
    assert x.params is not None, "erc needs the parameters of the policy"
    assert x.proximal_params is not None, "erc needs the parameters of the proximal policy"
    assert x.distribution is not None, "erc needs the distribution"
    entropy, center = x.distribution.entropy(x.params), x.distribution.entropy(x.proximal_params)
    if x.distribution.discrete:
        ratio = (entropy + _NO_CHOICE) / (center + _NO_CHOICE)
    else:
        ratio = torch.exp((entropy - center).clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT))
    return (ratio > low) & (ratio < high)


@torch.no_grad()
def prefix_minimum(log_rho: Tensor, ended: Tensor, valid: Tensor) -> Tensor:
    """m of MinPRO (arXiv 2601.22718) [T, B]: the smallest rho of the steps before each step, 1 at the first one.

    Steps of the same episode that are in the batch count. log_rho [T, B]: policy at the start of the update over
    behavior; ended [T, B] bool: the episode ended with this step; valid [T, B] bool: reset rows start an episode too.
    """
    none = torch.full_like(log_rho[0], torch.inf)
    smallest, rows = none, []
    for step in range(len(log_rho)):
        rows.append(torch.where(smallest == torch.inf, 0.0, smallest))
        smallest = torch.minimum(smallest, log_rho[step])
        smallest = torch.where(ended[step] | ~valid[step], none, smallest)
    return torch.stack(rows).clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT).exp()


@torch.no_grad()
def balanced_bounds(r: Tensor, advantage: Tensor, o: Options) -> tuple[Tensor, Tensor]:
    """Bounds of r by the rule of BAPO (WooooDyy/BAPO): [] lower, [] upper.

    positive = sum of min(r, high) * A where A >= 0, negative = sum of max(r, low) * |A| elsewhere. While positive /
    negative is below ``balance``, the lower bound is raised to its largest value, then the upper one step by step.
    Published with steps of the lower bound too; but a higher one can only raise the negative sum, so a search that
    moves it takes it to its end. r, advantage [...]: 0 on reset rows.
    """
    good, bad = advantage.clamp(min=0.0), -advantage.clamp(max=0.0)

    def balanced(low: float, high: float) -> Tensor:
        negative = (r.clamp(min=low) * bad).sum()
        return ((r.clamp(max=high) * good).sum() / (negative + 1e-8) >= o.balance) | (negative <= 0)

    highs, last_low = _rungs(o.bound_high, o.bound_high_max, o.bound_high_step), max(o.bound_low, o.bound_low_max)
    steps = [(o.bound_low, highs[0]), *((last_low, high) for high in highs)]
    lower, upper = r.new_full((), steps[0][0]), r.new_full((), steps[0][1])
    found = balanced(*steps[0])
    for low, high in steps[1:]:
        lower, upper = torch.where(found, lower, low), torch.where(found, upper, high)
        found = found | balanced(low, high)
    return lower, upper


def _rungs(start: float, last: float, step: float) -> list[float]:
    """start, start + step, ... as far as ``last``, which is the final one unless start is beyond it."""
    found = [start]
    while found[-1] < last:
        found.append(min(found[-1] + step, last))
    return found


_NO_CHOICE = 1e-8  # added to entropies: where both policies have a single action the ratio is 1
