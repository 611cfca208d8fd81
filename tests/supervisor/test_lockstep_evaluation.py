"""Lockstep evaluates between two updates; a video that fails is a line in the log."""

from dataclasses import replace

import pytest

from sfactory.config import Config, Env, Eval, Model, Run, Sampling
from sfactory.envs import EnvError, make_spec
from sfactory.supervisor.lockstep import Lockstep
from sfactory.supervisor.lockstep_run import Evaluation
from sfactory.workers import evaluator
from sfactory.workers.shared import RunSpec

CONFIG = Config(
    run=Run(mode="lockstep"),
    env=Env("faults/count"),
    model=Model(hidden=(8,)),
    sampling=Sampling(num_samplers=1, groups_per_sampler=1, envs_per_group=4, rollout_length=8),
    eval=Eval(every=16, episodes=2),
)


class NoLink:
    """Takes the place of the connection to the parent."""

    def inside(self, what):
        pass


@pytest.fixture
def evaluations(tmp_path):
    """A function that trains a run for some updates and evaluates it."""
    runs = []

    def evaluated(video):
        config = replace(CONFIG, eval=replace(CONFIG.eval, video=video))
        run = Lockstep(RunSpec(config, make_spec(config.env.name), str(tmp_path), 0))
        runs.append(run)
        evaluation = Evaluation(run.learner, NoLink())
        while run.learner.updates < 2:
            run.turn()
        return evaluation.messages(0)

    yield evaluated
    for run in runs:
        run.close()


def test_lockstep_evaluation_films_the_policy_and_logs_an_error(evaluations, monkeypatch):
    steps = []

    def failing(run_dir, config, policy, env_steps, *_):
        steps.append(env_steps)
        raise EnvError("no display")

    monkeypatch.setattr(evaluator, "show_episodes", failing)
    ((kind, _, row),) = evaluations(video=False)
    assert (kind, steps) == ("eval", [])
    (kind, _, with_video), (note, _, text) = evaluations(video=True)
    assert (kind, note) == ("eval", "log")
    assert text.endswith("none of later ones: no display")
    assert steps == [row["eval/env_steps"]]
    del row["eval/seconds"], with_video["eval/seconds"]
    assert with_video == row
