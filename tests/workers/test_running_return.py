"""The running return that rewards are divided by, where agents take turns: that of the agent's own actions."""

import numpy as np
import pytest
import torch

import sfactory
from sfactory.envs import make_spec
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

torch.set_num_threads(1)
T, GAMMA = 11, 0.8


def collected(run, updates):
    """Fields of the slots of each group, in order of time, of so many updates."""
    slots, collect = [], run.learner._collect

    def copying():
        found = collect()
        for slot in found or []:
            fields = {name: run.shared.trajectories[name][slot].copy() for name in ("reward", "acting")}
            over = [run.shared.trajectories[name][slot] for name in ("terminated", "truncated")]
            slots.append((slot[0], {**fields, "over": over[0] | over[1]}))
        return found

    run.learner._collect = copying
    while run.learner.updates < updates:
        run.turn()
    return slots


def own_returns(slots):
    """Running returns of one lane, one per action whose outcome is in the slot of the action; written step by step.

    slots: (acting, reward, over) of each slot, [T + 1], [T] and [T].
    """
    found, running = [], 0.0
    for acting, reward, over in slots:
        open_action = False
        for t in range(T):
            if acting[t]:
                if open_action:
                    found.append(running)
                running, open_action = GAMMA * running, True
            running += reward[t]
            if over[t]:
                if open_action:
                    found.append(running)
                running, open_action = 0.0, False
        if open_action and acting[T]:
            found.append(running)
    return found


@pytest.mark.parametrize(
    "target", ["envpool/TicTacToe-v1", *(f"pettingzoo/agent_scripts:{name}" for name in ("Game", "CutGame", "Born"))]
)
def test_running_return_of_agents_has_the_rewards_that_come_while_others_act(tmp_path, target):
    config = sfactory.make_config(
        target,
        run={"mode": "lockstep", "device": "cpu", "seed": 5, "learner_threads": 1, "inference_threads": 1},
        sampling={"num_samplers": 1, "groups_per_sampler": 2, "envs_per_group": 4, "rollout_length": T},
        batch={"minibatches": 2, "epochs": 1},
        model={"hidden": (16,), "encoder": "mlp"},
        normalize={"reward": True},
        trace={"gamma": GAMMA},
        checkpoint={"exact": False},
    )
    run = Lockstep(RunSpec(config, make_spec(config.env.name, config.env.options), str(tmp_path), 0))
    slots, expected = collected(run, 8), []
    for group in (0, 1):
        own = [fields for number, fields in slots if number == group]
        for lane in range(run.shared.trajectories.schema.lanes):
            expected += own_returns(
                [(f["acting"][:, lane], f["reward"][:, lane].astype(float), f["over"][:, lane]) for f in own]
            )
    moments = run.learner.update.normalizers.rewards.moments
    run.close()
    assert np.std(expected) > 0.3
    assert int(moments.count) == len(expected) > 300
    assert float(moments.mean) == pytest.approx(np.mean(expected), abs=1e-6)
    assert float(moments.var) == pytest.approx(np.var(expected), rel=1e-5)
