"""Direct advantage estimation against sums written as in the papers, and on processes whose advantages are known."""

import itertools

import pytest
import torch

from sfactory.algo.direct_advantage import (
    Backup,
    backup,
    centered,
    discounted_sum,
    errors,
    expected_clipped,
    mean_square,
)
from sfactory.algo.surrogates.ratios import SurrogateInput
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.algo.trace import TraceInput, gae

F64 = torch.float64


def rows_of(reward, value, next_value, terminated=(), truncated=(), invalid=()):
    """Rows [T, B] from lists; ends and reset rows as (t, b)."""
    reward, value, next_value = (torch.as_tensor(x, dtype=F64) for x in (reward, value, next_value))
    masks = torch.zeros(3, *reward.shape, dtype=torch.bool)
    for mask, places in zip(masks, (terminated, truncated, invalid), strict=True):
        for place in places:
            mask[place] = True
    return TraceInput(reward, value, next_value, masks[0], masks[1], ~masks[2], torch.zeros_like(reward))


def drawn(steps=7, lanes=6, seed=0):
    """Random rows with ends of both kinds, reset rows after them, and an action whose outcome is not known."""
    g = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, steps, lanes, generator=g, dtype=F64)
    return rows_of(
        reward,
        value,
        next_value,
        terminated=[(1, 0), (4, 0), (6, 1), (2, 5)],
        truncated=[(2, 2), (6, 3), (0, 4), (3, 3)],  # (3, 3) and (2, 5): the next row is the next episode's first
        invalid=[(2, 0), (5, 0), (3, 2), (1, 4), (6, 5)],
    )


def slow_errors(rows, advantage, value, gamma, lam=1.0):
    """The paper's sum, for every row by itself; with lambda the mean over its lengths. advantage, value [T, B]."""
    steps, lanes = rows.reward.shape
    out = torch.zeros(steps, lanes, dtype=F64)
    for b, t in itertools.product(range(lanes), range(steps)):
        if not rows.valid[t, b]:
            continue
        total, factor, weight, s = -value[t, b], 1.0, 1.0, t
        while True:
            total = total + factor * (rows.reward[s, b] - advantage[s, b])
            factor *= gamma
            ends = rows.terminated[s, b] or rows.truncated[s, b] or s + 1 == steps or not rows.valid[s + 1, b]
            of_this_length = total if rows.terminated[s, b] else total + factor * rows.next_value[s, b]
            out[t, b] = out[t, b] + weight * (1.0 if ends else 1.0 - lam) * of_this_length
            if ends:
                break
            weight *= lam
            s += 1
    return out


def test_errors_are_the_numbers_worked_out_by_hand():
    """gamma 0.5; lane 0 ends by a termination, lane 1 by a truncation, then a reset row."""
    rows = rows_of(
        [[1.0, 2.0], [4.0, 8.0], [100.0, 0.0]],
        [[9.0, 9.0]] * 3,
        [[50.0, 60.0], [70.0, 6.0], [8.0, 80.0]],
        terminated=[(1, 0)],
        truncated=[(1, 1)],
        invalid=[(2, 1)],
    )
    found = backup(rows, gamma=0.5)
    # 1 + 4/2 = 3; 2 + 8/2 + 6/4 = 7.5; 8 + 6/2 = 11; 100 + 8/2 = 104
    assert found.returns.tolist() == [[3.0, 7.5], [4.0, 11.0], [104.0, 0.0]]
    assert found.decay.tolist() == [[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]
    advantage = torch.tensor([[0.5, -1.0], [2.0, 1.0], [4.0, float("nan")]], dtype=F64)
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, float("inf")]], dtype=F64)
    # 3 - (0.5 + 2/2) - 1; 7.5 - (-1 + 1/2) - 2; 4 - 2 - 3; 11 - 1 - 4; 104 - 4 - 5
    assert errors(found, advantage, value, rows.valid).tolist() == [[0.5, 6.0], [-1.0, 6.0], [95.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(0.0, 1.0), (0.9, 1.0), (1.0, 1.0), (0.9, 0.7), (0.9, 0.0)])
def test_errors_and_their_gradient_are_those_of_the_sum(gamma, lam):
    rows = drawn()
    g = torch.Generator().manual_seed(1)
    advantage, value = (torch.randn(7, 6, generator=g, dtype=F64, requires_grad=True) for _ in range(2))
    slow = slow_errors(rows, advantage, value, gamma, lam)
    fast = errors(backup(rows, gamma=gamma, trace_lambda=lam), advantage, value, rows.valid)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    expected = torch.autograd.grad(slow.square().sum(), (advantage, value))
    for got, wanted in zip(torch.autograd.grad(fast.square().sum(), (advantage, value)), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    if gamma:
        assert expected[0].abs().max() > 0.1


def test_discounted_sum_has_the_gradient_of_differences():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(5, 3, generator=g, dtype=F64, requires_grad=True)
    decay = torch.rand(5, 3, generator=g, dtype=F64)
    assert torch.autograd.gradcheck(lambda y: discounted_sum(y, decay), (x,))
    before = x.detach().clone()
    discounted_sum(x, decay)
    assert torch.equal(x.detach(), before), "the input is not changed"


def test_what_a_reset_row_holds_changes_nothing():
    rows = drawn()
    reward, next_value = rows.reward.clone(), rows.next_value.clone()
    reward[~rows.valid], next_value[~rows.valid] = float("nan"), float("inf")
    next_value[rows.terminated] = float("nan")
    for lam in (1.0, 0.5):
        other = backup(rows._replace(reward=reward, next_value=next_value), gamma=0.9, trace_lambda=lam)
        for a, b in zip(backup(rows, gamma=0.9, trace_lambda=lam), other, strict=True):
            assert torch.equal(a, b)


def test_lambda_gives_the_targets_of_gae_where_there_are_no_advantages():
    rows = drawn()
    # GAE bootstraps within an episode with the value of the next row itself.
    chained = rows.next_value.clone()
    goes_on = rows.valid[:-1] & rows.valid[1:] & ~(rows.terminated | rows.truncated)[:-1]
    chained[:-1][goes_on] = rows.value[1:][goes_on]
    rows = rows._replace(next_value=chained)
    found = errors(backup(rows, gamma=0.9, trace_lambda=0.7), torch.zeros(7, 6, dtype=F64), rows.value, rows.valid)
    expected = gae(rows, gamma=0.9, trace_lambda=0.7).advantage
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_centered_advantages_have_mean_zero_under_the_policy():
    g = torch.Generator().manual_seed(3)
    f, log_p = torch.randn(2, 4, 5, generator=g, dtype=F64)
    log_p = log_p.log_softmax(-1)
    found = centered(f, log_p)
    torch.testing.assert_close((log_p.exp() * found).sum(-1), torch.zeros(4, dtype=F64), rtol=0, atol=1e-15)
    torch.testing.assert_close(found - f, (found - f)[:, :1].expand(4, 5))
    assert torch.equal(mean_square(found, log_p), (log_p.exp() * found**2).sum(-1))
    impossible = torch.tensor([[0.0, -1e9, 0.0]], dtype=F64).log_softmax(-1)
    assert centered(torch.tensor([[1.0, 1e6, 3.0]], dtype=F64), impossible)[0, [0, 2]].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_expected_clipped_is_the_mean_of_ppo_over_all_actions(dual_clip):
    g = torch.Generator().manual_seed(4)
    logits, other, a = 1.5 * torch.randn(3, 40, 4, generator=g, dtype=F64)
    other[0] = logits[0] = torch.tensor([0.0, -1e9, 1.0, 0.5])
    logits.requires_grad_()
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    assert (log_p - log_q).max() > 1.5, "beyond the second clip too"
    found = expected_clipped(log_p, log_q, a, clip=0.2, dual_clip=dual_clip)
    every = SurrogateInput(log_p, log_q, log_q, a, torch.ones_like(a), torch.ones_like(a, dtype=torch.bool))
    one_by_one = SURROGATES["ppo"](every, clip=0.2, dual_clip=dual_clip, weight_cap=None, behavior_weight="none")
    expected = (log_q.exp() * one_by_one.loss).sum(-1)
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=1e-10)
    (got,) = torch.autograd.grad(found.loss.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.clipped, (log_q.exp() * one_by_one.clipped).sum(-1))


def test_expected_clipped_is_the_policy_gradient_where_the_policies_are_equal():
    logits = torch.tensor([[0.2, -0.3, 0.9]], dtype=F64, requires_grad=True)
    log_p, a = logits.log_softmax(-1), torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    expected_clipped(log_p, log_p.detach(), a, clip=0.2).loss.sum().backward()
    p = log_p.detach().exp()
    torch.testing.assert_close(logits.grad, -p * (a - (p * a).sum(-1, keepdim=True)))


# -- processes whose advantages are known -----------------------------------------------------------------------------

GAMMA = 0.8
NEXT = [[1, 2], [2, None], [0, 1]]  # state and action -> state; None: the episode ends
REWARD = [[1.0, 0.0], [-1.0, 3.0], [2.0, -0.5]]
POLICY = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]], dtype=F64)


def true_values(policy):
    """V [3] and A [3, 2] of a policy, from the linear system."""
    moves, reward = torch.zeros(3, 3, dtype=F64), torch.zeros(3, dtype=F64)
    for s, a in itertools.product(range(3), range(2)):
        reward[s] += policy[s, a] * REWARD[s][a]
        if NEXT[s][a] is not None:
            moves[s, NEXT[s][a]] += policy[s, a]
    value = torch.linalg.solve(torch.eye(3, dtype=F64) - GAMMA * moves, reward)
    q = [
        [REWARD[s][a] + (0.0 if NEXT[s][a] is None else GAMMA * value[NEXT[s][a]]) for a in range(2)] for s in range(3)
    ]
    return value, torch.tensor(q, dtype=F64) - value[:, None]


def all_rollouts(steps):
    """Every sequence of actions from every state, each once: data of the uniform policy. Rows, states, actions."""
    lanes = [(start, actions) for start in range(3) for actions in itertools.product(range(2), repeat=steps)]
    rows = rows_of(*torch.zeros(3, steps, len(lanes)))
    state, after, action = torch.zeros(3, steps, len(lanes), dtype=torch.int64)
    for b, (s, actions) in enumerate(lanes):
        for t, a in enumerate(actions):
            action[t, b] = a
            if s is None:
                rows.valid[t:, b] = False
                break
            state[t, b], rows.reward[t, b] = s, REWARD[s][a]
            s = NEXT[s][a]
            rows.terminated[t, b] = s is None
            after[t, b] = s or 0
    return rows, state, after, action


def fitted(rows, state, after, action, policy, weight=None, lam=1.0):
    """The minimum of the squared errors over a table of f [3, 2] and V [3], with its own V as the next bootstrap."""
    weight = torch.ones_like(rows.reward) if weight is None else weight.sqrt()

    def error(table, bootstrap):
        found = backup(rows._replace(next_value=bootstrap[after]), gamma=GAMMA, trace_lambda=lam)
        a = centered(table[:, :2], policy.log())
        return (weight * errors(found, a[state, action], table[:, 2][state], rows.valid)).flatten()

    zero, value = torch.zeros(3, 3, dtype=F64), torch.zeros(3, dtype=F64)
    slopes = torch.autograd.functional.jacobian(lambda table: error(table, value), zero).flatten(1)
    least = -torch.linalg.pinv(slopes, rtol=1e-10)  # of least norm: a constant in f has no effect
    for _ in range(80):
        table = (least @ error(zero, value)).view(3, 3)
        value = table[:, 2]
    return value, centered(table[:, :2], policy.log())


@pytest.mark.parametrize(("steps", "lam"), [(1, 1.0), (2, 1.0), (5, 1.0), (5, 0.6)])
def test_the_regression_finds_values_and_advantages_of_a_policy_that_did_not_act(steps, lam):
    rows, state, after, action = all_rollouts(steps)
    value, advantage = true_values(POLICY)
    assert advantage.abs().max() > 0.5
    got_value, got_advantage = fitted(rows, state, after, action, POLICY, lam=lam)
    torch.testing.assert_close(got_value, value, rtol=0, atol=1e-5)
    torch.testing.assert_close(got_advantage, advantage, rtol=0, atol=1e-5)


def test_returns_without_advantages_give_the_values_of_the_policy_that_acted():
    """The control: the same data and GAE find the values of the uniform policy."""
    rows, state, after, _ = all_rollouts(5)
    value = torch.zeros(3, dtype=F64)
    for _ in range(60):
        target = gae(rows._replace(value=value[state], next_value=value[after]), gamma=GAMMA, trace_lambda=1.0).target
        value = torch.stack([target[rows.valid & (state == s)].mean() for s in range(3)])
    uniform, _ = true_values(torch.full((3, 2), 0.5, dtype=F64))
    wanted, _ = true_values(POLICY)
    torch.testing.assert_close(value, uniform, rtol=0, atol=0.2)
    assert (value - wanted).abs().max() > 0.5


def random_process(policy, acting):
    """Two steps: from state 0 any action leads to state 1 or 2 by chance, where the actions have different rewards.

    Rows, states, actions, and the probability of every lane.
    """
    lanes, reward = list(itertools.product(range(2), (1, 2), range(2))), {1: (5.0, 1.0), 2: (0.0, -3.0)}
    rows = rows_of(*torch.zeros(3, 2, len(lanes)), terminated=[(1, slice(None))])
    state, action, weight = torch.zeros(2, 8).long(), torch.zeros(2, 8).long(), torch.ones(2, 8, dtype=F64)
    for b, (first, s, second) in enumerate(lanes):
        state[1, b], action[0, b], action[1, b], rows.reward[1, b] = s, first, second, reward[s][second]
        weight[:, b] = acting[0, first] * 0.5 * acting[s, second]
    values = [0.0, *(sum(policy[s, a] * reward[s][a] for a in range(2)) for s in (1, 2))]
    values[0] = GAMMA * (values[1] + values[2]) / 2
    return rows, state, action, weight, torch.tensor(values, dtype=F64)


@pytest.mark.parametrize("on_policy", [True, False])
def test_with_random_transitions_the_regression_is_exact_on_policy_only(on_policy):
    """B = 0: off policy, advantages explain a part of the chance (2402.12874, whose model of it is not here)."""
    acting = POLICY if on_policy else torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]], dtype=F64)
    rows, state, action, weight, value = random_process(POLICY, acting)
    got, _ = fitted(rows, state, state, action, POLICY, weight)
    off = (got - value).abs().max()
    assert (off < 1e-9) if on_policy else (off > 0.05), off


def test_a_backup_is_a_pair_of_tensors_without_gradient():
    rows = drawn()
    found = backup(rows._replace(next_value=rows.next_value.requires_grad_()), gamma=0.9)
    assert isinstance(found, Backup)
    assert not any(x.requires_grad for x in found)
