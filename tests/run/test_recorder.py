"""The recorder ends a run at its target return, and says the return that was compared."""

import pytest

from sfactory.config import Config, Env, Stop
from sfactory.envs import make_spec
from sfactory.errors import Exit
from sfactory.monitor import messages
from sfactory.run.recorder import RunRecorder

NAME = "gymnasium/CartPole-v1"


@pytest.fixture
def recorder(tmp_path):
    config = Config(env=Env(NAME), stop=Stop(target_return=0.95))
    with RunRecorder.open(config, tmp_path / "run", resume=False, specs=[make_spec(NAME)]) as recorder:
        yield recorder


def add_episodes(recorder, *returns):
    recorder.handle((messages.EPISODES, "sampler-0", [(value, 1, 0) for value in returns]))


def test_recorder_ends_the_run_at_the_target_return_of_100_episodes(recorder):
    add_episodes(recorder, *[1.0] * 99)
    assert recorder.outcome_from_messages() is None, "fewer episodes than the mean is of"
    add_episodes(recorder, *[0.0] * 6)
    assert recorder.outcome_from_messages() is None, "0.94"
    add_episodes(recorder, 0.953)
    assert recorder.outcome_from_messages() is None, "0.93953: 100 episodes of which the oldest are dropped"
    add_episodes(recorder, *[1.0] * 94, *[1.25] * 6)
    outcome = recorder.outcome_from_messages()
    assert outcome.code == Exit.FINISHED
    assert outcome.sentence == "training return 1.015 reached the target of 0.95"


def test_recorder_never_states_a_return_below_the_target_it_reached(recorder):
    add_episodes(recorder, *[0.951] * 100)  # with one decimal: 1.0; 0.949 would be 0.9
    assert recorder.outcome_from_messages().sentence == "training return 0.951 reached the target of 0.95"
