"""The outcome of actions in the time of their own agent, against each agent's episode computed alone."""

import numpy as np
import pytest
import torch

from sfactory.algo.trace import TRACES, TraceInput
from sfactory.learning.own_time import own_time

GAMMA, LAMBDA = 0.9, 0.8


def rows(**lane):
    """Lists of one lane as arrays [T, 1]."""
    types = {"reward": np.float64}
    return {name: np.array(values, types.get(name, bool))[:, None] for name, values in lane.items()}


def trace_of(lane, value, estimator="vtrace", log_rho=None):
    """Advantages and targets [T] of one lane in the order of its own actions; value [T + 1]."""
    own = own_time(**lane)
    value = np.array(value, float)[:, None]
    log_rho = np.zeros_like(own.reward) if log_rho is None else np.array(log_rho, float)[:, None]
    fields = TraceInput(
        own.reward, value[:-1], np.take_along_axis(value, own.successor, 0), own.terminated, own.truncated, own.valid,
        log_rho,
    )  # fmt: skip
    ordered = TraceInput(*(torch.from_numpy(np.take_along_axis(x, own.order, 0)) for x in fields))
    found = TRACES[estimator](ordered, gamma=GAMMA, trace_lambda=LAMBDA, leak=1.0)
    back = []
    for x in (found.advantage, found.target):
        array = np.zeros_like(own.reward)
        np.put_along_axis(array, own.order, x.numpy(), 0)
        back.append(array[:, 0])
    return own, *back


def alone(rewards, values, log_rho, end, bootstrap=0.0):
    """Slow twin: V-trace of one episode written as sums over its own actions. end: terminated, truncated or open."""
    n = len(rewards)
    rho = [min(1.0, np.exp(x)) for x in log_rho]
    nexts = [*values[1:], bootstrap]
    deltas = [
        rewards[i] + GAMMA * (0.0 if end == "terminated" and i == n - 1 else nexts[i]) - values[i] for i in range(n)
    ]
    targets, advantages = [], []
    for i in range(n):
        total, weight = 0.0, 1.0
        for j in range(i, n):
            total += weight * rho[j] * deltas[j]
            weight *= GAMMA * LAMBDA * rho[j]
        targets.append(values[i] + total)
    for i in range(n):
        follow = targets[i + 1] - values[i + 1] if i + 1 < n else 0.0
        advantages.append(deltas[i] + GAMMA * LAMBDA * follow)
    return advantages, targets


def test_own_time_of_a_turn_based_game_is_the_episode_of_the_agent_alone():
    lane = rows(
        reward=[0, 1, 0, 0, 0, -1, 0, 0],
        terminated=[0, 0, 0, 0, 0, 1, 0, 0],
        truncated=[0] * 8,
        valid=[1, 0, 1, 0, 1, 0, 0, 1],
        first=[1, 0, 0, 0, 0, 0, 0, 1, 0],
        acting=[1, 0, 1, 0, 1, 0, 0, 1, 0],
    )
    value = [0.5, 9, -0.3, 9, 0.2, 9, 9, 0.7, 9]
    log_rho = [0.1, 9, -0.4, 9, -0.2, 9, 9, 0.3]
    own, advantage, target = trace_of(lane, value, log_rho=log_rho)
    want_advantage, want_target = alone([1, 0, -1], [0.5, -0.3, 0.2], [0.1, -0.4, -0.2], "terminated")
    np.testing.assert_allclose(advantage[[0, 2, 4]], want_advantage, atol=1e-12)
    np.testing.assert_allclose(target[[0, 2, 4]], want_target, atol=1e-12)
    assert own.valid[:, 0].tolist() == [1, 0, 1, 0, 1, 0, 0, 0]  # the move of row 7 has no successor in this batch


def test_own_time_gives_a_reward_before_the_first_action_of_an_episode_to_no_action():
    lane = rows(
        reward=[1, 0, 5, 2],
        terminated=[1, 0, 0, 1],
        truncated=[0] * 4,
        valid=[1, 0, 0, 1],
        first=[1, 0, 1, 0, 0],
        acting=[1, 0, 0, 1, 0],
    )
    assert own_time(**lane).reward[:, 0].tolist() == [1, 0, 0, 2]


def test_own_time_drops_an_action_whose_successor_is_in_the_next_batch_but_keeps_it_as_bootstrap():
    lane = rows(
        reward=[0, 2, 0, 5], terminated=[0] * 4, truncated=[0] * 4, valid=[1, 0, 1, 0], first=[1, 0, 0, 0, 0],
        acting=[1, 0, 1, 0, 0],
    )  # fmt: skip
    own, advantage, _ = trace_of(lane, [0.5, 9, -0.3, 9, 9])
    want, _ = alone([2], [0.5], [0], "open", bootstrap=-0.3)
    np.testing.assert_allclose(advantage, [want[0], 0, 0, 0], atol=1e-12)
    lane["acting"][4] = True  # the agent acts again in the bootstrap row: its value is known
    own, advantage, _ = trace_of(lane, [0.5, 9, -0.3, 9, 0.8])
    want, _ = alone([2, 5], [0.5, -0.3], [0, 0], "open", bootstrap=0.8)
    np.testing.assert_allclose(advantage[[0, 2]], want, atol=1e-12)
    assert own.successor[:, 0].tolist()[2] == 4


def test_own_time_of_an_agent_that_dies_and_is_born_again_in_the_middle_of_a_slot():
    # Dies in step 1, is absent in steps 2 and 3, is born with row 4 and acts until the slot ends.
    lane = rows(
        reward=[1, -1, 0, 0, 2, 3], terminated=[0, 1, 0, 0, 0, 0], truncated=[0] * 6, valid=[1, 1, 0, 0, 1, 1],
        first=[1, 0, 1, 1, 1, 0, 0], acting=[1, 1, 0, 0, 1, 1, 1],
    )  # fmt: skip
    _, advantage, target = trace_of(lane, [0.1, 0.2, 9, 9, 0.3, 0.4, 0.5])
    early, early_target = alone([1, -1], [0.1, 0.2], [0, 0], "terminated")
    late, late_target = alone([2, 3], [0.3, 0.4], [0, 0], "open", bootstrap=0.5)
    np.testing.assert_allclose(advantage, [*early, 0, 0, *late], atol=1e-12)
    np.testing.assert_allclose(target[[0, 1, 4, 5]], [*early_target, *late_target], atol=1e-12)


def test_own_time_bootstraps_a_truncation_from_the_final_observation():
    # Truncated while another agent acts (step 1): the bootstrap is the observation of row 2.
    lane = rows(
        reward=[1, 2, 0, 4], terminated=[0] * 4, truncated=[0, 1, 0, 0], valid=[1, 0, 0, 1], first=[1, 0, 0, 1, 0],
        acting=[1, 0, 0, 1, 1],
    )  # fmt: skip
    _, advantage, _ = trace_of(lane, [0.1, 9, 0.6, 0.3, 0.5])
    want, _ = alone([3], [0.1], [0], "truncated", bootstrap=0.6)
    late, _ = alone([4], [0.3], [0], "open", bootstrap=0.5)
    np.testing.assert_allclose(advantage, [*want, 0, 0, *late], atol=1e-12)


def test_own_time_cuts_an_episode_whose_environment_failed_while_another_agent_acted():
    lane = rows(
        reward=[1, 0, 0, 4], terminated=[0] * 4, truncated=[0] * 4, valid=[1, 0, 0, 1], first=[1, 0, 1, 0, 0],
        acting=[1, 0, 0, 1, 1],
    )  # fmt: skip
    own, advantage, _ = trace_of(lane, [0.1, 0.6, 9, 0.3, 0.5])
    want, _ = alone([1], [0.1], [0], "truncated", bootstrap=0.6)
    late, _ = alone([4], [0.3], [0], "open", bootstrap=0.5)
    np.testing.assert_allclose(advantage, [*want, 0, 0, *late], atol=1e-12)
    assert own.truncated[0, 0]


@pytest.mark.parametrize("estimator", sorted(TRACES))
def test_own_time_changes_nothing_for_agents_that_always_act(estimator):
    rng = np.random.default_rng(0)
    T, B = 40, 30
    ends = rng.random((T, B)) < 0.1
    terminated = ends & (rng.random((T, B)) < 0.5)
    valid, first = np.ones((T, B), bool), np.zeros((T + 1, B), bool)
    for t in range(1, T):  # next-step autoreset
        valid[t] = ~(ends[t - 1] & valid[t - 1])
        ends[t] &= valid[t]
        terminated[t] &= valid[t]
        first[t + 1] = ~valid[t]
    truncated = ends & ~terminated
    reward, value, log_rho = rng.normal(size=(T, B)), rng.normal(size=(T + 1, B)), rng.normal(size=(T, B))
    reward[~valid] = 0
    acting = np.ones((T + 1, B), bool)
    acting[:-1] = valid
    own = own_time(reward, terminated, truncated, valid, first, acting)
    take = lambda x: torch.from_numpy(np.take_along_axis(x, own.order, 0))  # noqa: E731
    moved = TRACES[estimator](
        TraceInput(take(own.reward), take(value[:-1]), take(np.take_along_axis(value, own.successor, 0)),
                   take(own.terminated), take(own.truncated), take(own.valid), take(log_rho)),
        gamma=GAMMA, trace_lambda=LAMBDA, leak=0.5,
    )  # fmt: skip
    plain = TRACES[estimator](
        TraceInput(*map(torch.from_numpy, (reward, value[:-1], value[1:], terminated, truncated, valid, log_rho))),
        gamma=GAMMA, trace_lambda=LAMBDA, leak=0.5,
    )  # fmt: skip
    for name in ("advantage", "target"):
        back = np.zeros((T, B))
        np.put_along_axis(back, own.order, getattr(moved, name).numpy(), 0)
        np.testing.assert_allclose(back[own.valid], getattr(plain, name).numpy()[own.valid], atol=1e-12)
    assert (own.valid <= valid).all()
    assert (own.valid | ~valid)[: T - 1].all()
