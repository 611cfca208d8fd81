"""The recorder ends a run at its target return, and says the return that was compared."""

import pytest

from sfactory.config import Config, Env, Log, Stop
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


# -- failures of environments ------------------------------------------------------------------------------------

FAULT = """environment {env}: RuntimeError: solver diverged (seed {seed}, step {step} of the episode)
Traceback (most recent call last):
  File "/home/me/sim.py", line 12, in step
RuntimeError: solver diverged
"""


def fail(recorder, number, steps=0, broken=1):
    """What a sampler sends after a failure."""
    recorder.handle((messages.STEPS, "sampler-0", (steps, broken)))
    recorder.handle((messages.FAULT, "sampler-0", FAULT.format(env=number % 4, seed=number, step=number % 9)))


def test_recorder_prints_the_first_traceback_and_then_counts(recorder, capsys):
    for number in range(100):
        fail(recorder, number, steps=10)
    err = capsys.readouterr().err
    assert err.count('File "/home/me/sim.py", line 12, in step') == 1
    assert "log.txt" in err.splitlines()[0]
    assert [line for line in err.splitlines() if "times like this" in line] == [
        "environments failed 10 times like this: RuntimeError: solver diverged",
        "environments failed 100 times like this: RuntimeError: solver diverged",
    ]
    log = (recorder.run_dir / "log.txt").read_text()
    assert log.count("Traceback") == 1
    assert log.count("environment 3: RuntimeError") == 25


def test_recorder_is_silent_about_failures_if_it_is_quiet(tmp_path, capsys):
    config = Config(env=Env(NAME), log=Log(quiet=True))
    with RunRecorder.open(config, tmp_path / "run", resume=False, specs=[make_spec(NAME)]) as recorder:
        for number in range(30):
            fail(recorder, number, steps=10)
    assert capsys.readouterr() == ("", "")
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_recorder_warns_once_of_many_broken_episodes(recorder, capsys):
    add_episodes(recorder, *[1.0] * 300)
    for number in range(50):
        fail(recorder, number, steps=40)
    assert capsys.readouterr().err.count("warning: 5.1% of the last 316 episodes were cut") == 1


def test_recorder_ends_a_run_without_one_good_step(recorder):
    for number in range(20):
        assert recorder.outcome_from_messages() is None
        fail(recorder, number)
    outcome = recorder.outcome_from_messages()
    assert outcome.code == Exit.ENVIRONMENT
    assert outcome.sentence.startswith("no environment got past its first step, 20 failures; the first: environment 0")


def test_recorder_logs_an_evaluation_that_failed_and_does_not_wait_for_it(recorder, capsys):
    recorder.handle((messages.NO_EVALUATION, "evaluator", (12_000, "22 environments failed during the evaluation")))
    assert "no evaluation at 12,000 steps: 22 environments failed during the evaluation" in capsys.readouterr().err
    assert recorder.board.evaluated == 12_000


def test_recorder_prints_the_traceback_of_environments_that_cannot_be_built(recorder, capsys):
    trace = FAULT.partition("\n")[2]
    recorder.handle((messages.FAULT, "sampler-0", f"sampler-0: EnvError: x could not be built: OSError: port\n{trace}"))
    err = capsys.readouterr().err
    assert err.startswith("sampler-0: EnvError: x could not be built: OSError: port\n  Traceback")
    assert 'File "/home/me/sim.py", line 12' in err
