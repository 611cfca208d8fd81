"""Advantages and targets of scripted agents through sampler, slots, staging and update, against episodes alone.

The twin below knows nothing of slots, rows or `own_time`: it has every agent's own episode by hand
(`agent_scripts.EPISODES`) and adds up the definitions. Only the values of the network and the ratios of the policies
are taken from the update.
"""

import itertools

import agent_scripts
import numpy as np
import pytest

import sfactory
from sfactory.algo.trace import LOG_RHO_LIMIT
from sfactory.envs import make_spec
from sfactory.learning.distributed import Counts
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

GAMMA, LAMBDA = 0.9, 0.8
T, UPDATES, ENVS = 7, 5, 2  # episodes have 4 to 6 rows, so they begin and end everywhere in a slot of 7


def updates_of(folder, name, estimator):
    """Batches of a run, each with what the update computed from it in float64: fields [T, B], value [T + 1, B]."""
    config = sfactory.make_config(
        f"pettingzoo/agent_scripts:{name}",
        run={"mode": "lockstep", "kernels": "autograd", "device": "cpu"},
        sampling={"num_samplers": 1, "groups_per_sampler": 1, "envs_per_group": ENVS, "rollout_length": T},
        batch={"minibatches": 2, "epochs": 2, "forced_lag": 1},
        trace={"estimator": estimator, "gamma": GAMMA, "trace_lambda": LAMBDA},
        optim={"lr": 0.05},
        model={"hidden": [16]},
        normalize={"advantage": False, "reward": False, "obs": False, "value_targets": False},
        checkpoint={"exact": False},
    )
    run = Lockstep(RunSpec(config, make_spec(config.env.name, config.env.options), str(folder), 0))
    objective, found = run.learner.update.objective, []
    start = objective.start

    def recorded(batch, out):
        out = out._replace(params=out.params.double(), value=out.value.double())
        result = start(batch, out)
        arrays = {"value": out.value, "valid": batch.valid, "log_rho": result.log_rho, "target": result.target}
        arrays |= {"advantage": result.advantage, "weight": result.weight}
        found.append({key: x.detach().numpy().copy() for key, x in arrays.items()})
        narrow = ("value", "target", "advantage", "weight", "log_prob", "params", "log_rho")
        return result._replace(**{key: getattr(result, key).float() for key in narrow})

    objective.start = recorded
    try:
        while run.learner.updates < UPDATES:
            run.turn()
    finally:
        run.close()
    return found


def own_actions(name, agent, until):
    """The actions of an agent by hand: (row, reward, last of its episode, row of its end, kind of end)."""
    length = max(own.last for own in agent_scripts.EPISODES[name].values()) + 1
    own, actions = agent_scripts.EPISODES[name][agent], []
    for begin in range(0, until, length + 1):  # one row more: the environment is reset
        for number, (step, reward) in enumerate(own.actions):
            last = number == len(own.actions) - 1
            actions.append((begin + step, reward, last, begin + own.last, own.end))
    return actions


def alone(actions, low, value, log_rho, estimator):
    """Row -> (advantage, target) of the actions in rows low to low + T - 1, from the definitions.

    value [T + 1] and log_rho [T] of these rows. An action is missing if what follows it is not known yet.
    """
    rho = {low + t: min(1.0, np.exp(np.clip(x, -LOG_RHO_LIMIT, LOG_RHO_LIMIT))) for t, x in enumerate(log_rho)}
    rho = rho if estimator == "vtrace" else dict.fromkeys(rho, 1.0)
    v = {low + t: x for t, x in enumerate(value)}
    delta, follows = {}, {}
    for (row, reward, last, end, kind), (next_row, *_) in itertools.pairwise(actions):
        if not low <= row < low + T or (last and end >= low + T) or (not last and next_row > low + T):
            continue
        bootstrap = v[next_row] if not last else 0.0 if kind == "dead" else v[end + 1]
        delta[row] = reward + GAMMA * bootstrap - v[row]
        follows[row] = None if last else next_row
    results = {}
    for row in delta:
        target, advantage, weight, at = v[row], 0.0, 1.0, row
        discount = 1.0
        while at in delta:
            target += weight * rho[at] * delta[at]
            # lambda-return of the advantage: its own first difference is not weighted
            advantage += discount * (delta[at] if at == row else rho[at] * delta[at])
            weight *= GAMMA * LAMBDA * rho[at]
            discount *= GAMMA * LAMBDA * (1.0 if at == row else rho[at])
            at = follows[at]
        results[row] = advantage, target
    return results


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
@pytest.mark.parametrize("name", sorted(agent_scripts.EPISODES))
def test_update_computes_advantages_of_each_agents_own_episode(tmp_path, name, estimator):
    agents = sorted(agent_scripts.EPISODES[name])
    moved, compared = 0.0, 0
    for number, update in enumerate(updates_of(tmp_path, name, estimator)):
        low = number * T
        assert update["advantage"].dtype == np.float64
        for lane in range(ENVS * len(agents)):
            actions = own_actions(name, agents[lane % len(agents)], low + 3 * T)
            column = {key: array[:, lane] for key, array in update.items()}
            want = alone(actions, low, column["value"], column["log_rho"], estimator)
            assert (np.flatnonzero(column["valid"]) + low).tolist() == sorted(want)
            for row, (advantage, target) in want.items():
                assert column["advantage"][row - low] == pytest.approx(advantage, abs=1e-6)
                assert column["target"][row - low] == pytest.approx(target, abs=1e-6)
            compared += len(want)
            others = ~column["valid"]
            assert not column["advantage"][others].any()
            np.testing.assert_array_equal(column["target"][others], column["value"][:-1][others])
            moved = max(moved, np.abs(column["log_rho"]).max())
    assert moved > 0.01  # the policy is another one than when it acted
    assert compared > 0.3 * UPDATES * T * ENVS * len(agents)


@pytest.fixture
def run_of(tmp_path):
    """Start a run of scripted agents: episodes of five steps and a reset, two in every slot."""
    runs = []

    def start(name):
        config = sfactory.make_config(
            f"pettingzoo/agent_scripts:{name}",
            run={"mode": "lockstep", "device": "cpu"},
            sampling={"num_samplers": 1, "groups_per_sampler": 1, "envs_per_group": ENVS, "rollout_length": 12},
            batch={"minibatches": 2, "epochs": 1},
            checkpoint={"exact": False},
        )
        runs.append(Lockstep(RunSpec(config, make_spec(config.env.name, config.env.options), str(tmp_path), 0)))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.mark.parametrize(("name", "agent_steps"), [("Dies", 13), ("Born", 12), ("Game", 5)])
def test_learner_counts_steps_of_agents_and_steps_of_environments(run_of, name, agent_steps):
    """An action before the end of a slot has its outcome."""
    run = run_of(name)
    while run.learner.updates < 3:
        run.turn()
    counts = run.learner._counts()
    assert (counts["env_steps"], counts["environment_steps"]) == (3 * ENVS * 2 * agent_steps, 3 * ENVS * 2 * 5)


def test_learner_counts_the_sums_that_the_learners_of_its_job_have_agreed_on(run_of, monkeypatch):
    """Their environments may have other agents: nothing is computed from the share of this rank."""
    run, given = run_of("Dies"), []

    def of_both(counts, skipped):
        given.append((counts, skipped))
        return Counts(counts.rows + 7, counts.environment_steps + 7)

    monkeypatch.setattr(run.learner.learners, "total_counts", of_both)
    while run.learner.updates < 2:
        run.turn()
    assert given == [(Counts(ENVS * 2 * 13, ENVS * 2 * 5), False)] * 2
    counts = run.learner._counts()
    assert (counts["env_steps"], counts["environment_steps"]) == (2 * (ENVS * 26 + 7), 2 * (ENVS * 10 + 7))


@pytest.mark.parametrize("name", ["Dies", "Game"])
def test_batch_counts_a_step_of_an_environment_if_a_row_of_it_was_trained(run_of, name):
    run = run_of(name)
    while not run.learner.updates:
        run.turn()
    staging = run.learner.staging
    assert staging.counts(np.ones_like(staging.valid)) == staging.counts()
    assert staging.counts(np.zeros_like(staging.valid)) == Counts()
    some = np.random.default_rng(3).random(staging.valid.shape) < 0.5
    steps, agents = 0, staging.agents
    for t, env in itertools.product(range(12), range(ENVS)):
        rows = slice(env * agents, (env + 1) * agents)
        if staging.valid[t, rows].any():
            steps += (staging.valid & some)[t, rows].any()
        else:  # resets, after five steps each
            assert t in (5, 11)
    found = staging.counts(some)
    assert found == Counts(int((staging.valid & some).sum()), int(steps))
    assert 0 < found.environment_steps < staging.counts().environment_steps
