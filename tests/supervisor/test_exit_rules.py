"""Every row of the table of exit rules: which exits restart a worker, and which end the run with what outcome."""

import signal

import pytest

from sfactory.config import Config, Env, LossConfig
from sfactory.errors import UNGUARDED, Exit
from sfactory.run.outcome import Outcome
from sfactory.supervisor.exit_rules import (
    EVALUATOR_EXITS,
    EVALUATOR_LONGEST_PAUSE_S,
    EVALUATOR_PAUSE_S,
    MOST_KILLS,
    PATIENT_KILLS,
    End,
    Restart,
    WorkerExit,
    add_last_update,
    learner_outcome,
    on_exit,
)
from sfactory.workers.shared import LearnerOutcome, RunSpec

SIGKILL, SIGSEGV = -signal.SIGKILL, -signal.SIGSEGV
SPARE = 2
POSITION = ", in environment 3, seed 17, step 7 of the episode"


def decide(
    name,
    code,
    *,
    faults=0,
    kills=0,
    updates=5,
    finished=None,
    generation=1,
    last_line="",
    position="",
    exceeded="",
    building=False,
):
    worker = WorkerExit(name, code, generation, last_line, position, f"debug/{name}.txt", exceeded, building)
    return on_exit(worker, faults, kills, updates, SPARE, finished)


def ended(action):
    """(word, code, sentence) of an action that ends the run."""
    assert isinstance(action, End)
    return action.outcome.name, action.outcome.code, action.outcome.sentence


def test_on_exit_ends_the_run_when_the_learner_is_killed():
    sentence = "the learner exited (killed by SIGKILL)"
    assert ended(decide("learner", SIGKILL)) == ("worker lost", 7, sentence)


@pytest.mark.parametrize(("code", "word"), [(Exit.WORKER_LOST, "worker lost"), (Exit.STALLED, "stalled")])
def test_on_exit_ends_the_run_with_what_the_learner_says_of_another_learner(code, word):
    assert ended(decide("learner", code, last_line="rank 1 is gone")) == (word, code, "rank 1 is gone")


@pytest.mark.parametrize(
    ("reported", "code"),
    [(LearnerOutcome.INTERRUPTED, 130), (LearnerOutcome.TERMINATED, 143), (LearnerOutcome.REQUEUED, 75)],
)
def test_learner_outcome_is_that_of_the_signal_on_which_several_learners_agreed(reported, code):
    run_spec = RunSpec(Config(env=Env("gymnasium/CartPole-v1")), None, "", 0)
    assert learner_outcome(reported, run_spec).code == code


def test_on_exit_reports_the_last_output_line_of_the_learner():
    action = decide("learner", 1, last_line="RuntimeError: out of memory")
    assert ended(action) == ("worker lost", 7, "the learner exited (exit code 1): RuntimeError: out of memory")


def test_on_exit_keeps_the_outcome_that_the_learner_reported_before_it_exited():
    finished = Outcome.of(Exit.FINISHED, "the stop rule was reached")
    assert ended(decide("learner", 0, finished=finished)) == ("finished", 0, "the stop rule was reached")


def test_on_exit_refuses_to_resume_when_the_learner_refuses_the_checkpoint():
    action = decide("learner", Exit.RESUME_REFUSED, generation=0, updates=-1, last_line="model: 3 shapes differ")
    assert ended(action) == ("resume refused", 4, "model: 3 shapes differ")


def test_on_exit_ends_the_run_as_usage_when_the_learner_refuses_a_setting():
    action = decide("learner", Exit.USAGE, generation=0, updates=-1, last_line="model.encoder my:Net contains Dropout")
    assert ended(action) == ("usage", 2, "model.encoder my:Net contains Dropout")


@pytest.mark.parametrize("name", ["learner", "inference", "sampler-0"])
def test_on_exit_ends_the_run_when_the_script_has_no_guard(name):
    word, code, sentence = ended(decide(name, UNGUARDED, generation=0))
    assert (word, code) == ("unguarded", UNGUARDED)
    assert sentence == f"{name} imported a script that trains without a guard"


@pytest.mark.parametrize(("generation", "updates"), [(0, 100), (0, -1), (3, 0), (3, -1)])
def test_on_exit_ends_the_run_when_a_sampler_cannot_build_its_environments(generation, updates):
    action = decide(
        "sampler-1", Exit.ENVIRONMENT, generation=generation, updates=updates, last_line="EnvError: no display"
    )
    sentence = "sampler-1 could not build its environments: EnvError: no display"
    assert ended(action) == ("environment fault", 6, sentence)


def test_on_exit_restarts_a_later_generation_that_cannot_build_its_environments_within_the_budget():
    assert isinstance(decide("sampler-1", Exit.ENVIRONMENT, faults=SPARE - 1), Restart)
    action = decide("sampler-1", Exit.ENVIRONMENT, faults=SPARE, last_line="EnvError: no display")
    sentence = "sampler-1 exited 3 times with little or no progress in between (exit code 6): EnvError: no display"
    assert ended(action) == ("environment fault", 6, sentence)


@pytest.mark.parametrize("name", ["inference", "sampler-0"])
@pytest.mark.parametrize("faults", [0, SPARE, 1000])
def test_on_exit_always_restarts_a_worker_that_was_killed_from_outside(name, faults):
    action = decide(name, SIGKILL, faults=faults, last_line="an old line", position=POSITION)
    assert action == Restart(f"{name} exited (killed by SIGKILL); restarted", own_fault=False)


def test_on_exit_pauses_before_it_restarts_a_sampler_that_is_always_killed_before_it_is_ready():
    """As where memory runs out while it builds its environments."""
    pauses = [decide("sampler-0", SIGKILL, kills=kills).pause_s for kills in range(MOST_KILLS - 1)]
    assert pauses[:PATIENT_KILLS] == [0.0] * PATIENT_KILLS
    assert pauses[PATIENT_KILLS : PATIENT_KILLS + 6] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert decide("sampler-0", SIGKILL, kills=PATIENT_KILLS).message.endswith("(killed by SIGKILL); restarted in 0.5 s")
    assert decide("inference", SIGKILL, kills=MOST_KILLS - 2).pause_s == 0.0, "its start is slow enough"


@pytest.mark.parametrize("name", ["inference", "sampler-0"])
def test_on_exit_ends_the_run_when_a_worker_is_killed_very_often_before_it_is_ready(name):
    sentence = f"{name} was killed 100 times in a row before it was ready (killed by SIGKILL); is there enough memory?"
    assert ended(decide(name, SIGKILL, kills=MOST_KILLS - 1)) == ("worker lost", 7, sentence)


@pytest.mark.parametrize("name", ["inference", "sampler-0"])
def test_on_exit_counts_own_faults_against_the_budget(name):
    action = decide(name, 1, last_line="ValueError: no")
    assert action == Restart(f"{name} exited (exit code 1: ValueError: no); restarted", own_fault=True)
    action = decide(name, 1, faults=SPARE - 1, last_line="ValueError: no")
    assert action == Restart(f"{name} exited (exit code 1: ValueError: no); restarted in 0.5 s", True, 0.5)
    sentence = f"{name} exited 3 times with little or no progress in between (exit code 1): ValueError: no"
    assert ended(decide(name, 1, faults=SPARE, last_line="ValueError: no")) == ("worker lost", 7, sentence)


def test_on_exit_waits_longer_before_every_further_restart():
    def pause(faults):
        return on_exit(WorkerExit("sampler-0", 1, 1), faults, 0, 5, 100, None).pause_s

    assert [pause(faults) for faults in range(7)] == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


TOO_SLOW = "environment step exceeded 2 s (env.step-timeout, in environment 3)"


def test_on_exit_counts_a_sampler_that_exceeded_a_time_limit_as_a_fault_of_its_own():
    action = decide("sampler-0", SIGKILL, exceeded=TOO_SLOW, position=POSITION, last_line="File x, line 3 in step")
    assert action == Restart(f"sampler-0 exited (killed: {TOO_SLOW}); restarted", own_fault=True)
    word, code, sentence = ended(decide("sampler-0", SIGKILL, exceeded=TOO_SLOW, faults=SPARE))
    assert (word, code) == ("environment fault", 6)
    assert TOO_SLOW in sentence


def test_on_exit_ends_the_run_when_an_environment_takes_too_long_to_build_at_the_start():
    exceeded = "building an environment exceeded 2 s (env.build-timeout, building environment 3)"
    word, code, sentence = ended(decide("sampler-0", SIGKILL, generation=0, exceeded=exceeded, building=True))
    assert (word, code) == ("environment fault", 6)
    assert sentence == f"sampler-0 could not build its environments: killed: {exceeded}"
    later = decide("sampler-0", SIGKILL, exceeded=exceeded, building=True)
    assert isinstance(later, Restart), "a later generation has the budget"


def test_on_exit_names_the_environment_in_which_a_sampler_exited():
    action = decide("sampler-0", SIGSEGV, last_line="an old line", position=POSITION)
    assert action == Restart(f"sampler-0 exited (killed by SIGSEGV{POSITION}); restarted", own_fault=True)
    action = decide("sampler-0", 3, last_line="bye", position=POSITION)
    assert action == Restart(f"sampler-0 exited (exit code 3: bye{POSITION}); restarted", own_fault=True)


@pytest.mark.parametrize("code", [SIGKILL, 0, 1, UNGUARDED])
def test_on_exit_always_restarts_the_evaluator_with_longer_pauses(code):
    """It was given up for good after the fourth exit, and a curve lacked its evaluations from then on."""
    actions = [decide("evaluator", code, faults=faults) for faults in range(1000)]
    assert all(action.own_fault and "see debug/evaluator.txt)" in action.message for action in actions)
    pauses = [action.pause_s for action in actions]
    assert pauses[: EVALUATOR_EXITS - 1] == [0.0] * (EVALUATOR_EXITS - 1)
    assert pauses[EVALUATOR_EXITS - 1 :][:3] == [EVALUATOR_PAUSE_S, 2 * EVALUATOR_PAUSE_S, 4 * EVALUATOR_PAUSE_S]
    assert pauses[-1] == EVALUATOR_LONGEST_PAUSE_S
    assert actions[0].message.endswith("); restarted")
    said = "; 4 times in a row without a result, training continues; restarted in 60 s"
    assert actions[EVALUATOR_EXITS - 1].message.endswith(said)


@pytest.fixture
def run_spec():
    config = Config(env=Env("gymnasium/CartPole-v1"), loss=LossConfig(nonfinite_budget=4))
    return RunSpec(config, spec=None, run_dir="runs/a", launch=0)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (LearnerOutcome.STOP_RULE, Exit.FINISHED),
        (LearnerOutcome.STOPPED, Exit.FINISHED),
        (LearnerOutcome.STORAGE, Exit.FINISHED),  # `add_last_update` turns it into a storage failure
        (LearnerOutcome.NON_FINITE, Exit.NON_FINITE),
    ],
)
def test_learner_outcome_maps_what_the_learner_reported(run_spec, reported, expected):
    outcome = learner_outcome(reported, run_spec)
    assert (outcome.name, outcome.code) == (expected.outcome, expected)


def test_learner_outcome_is_none_while_the_learner_trains(run_spec):
    assert learner_outcome(LearnerOutcome.RUNNING, run_spec) is None


def test_learner_outcome_names_the_report_of_non_finite_updates(run_spec):
    sentence = learner_outcome(LearnerOutcome.NON_FINITE, run_spec).sentence
    assert sentence.startswith("4 updates in a row had a loss or gradient that was not finite; lower optim.lr")
    assert sentence.endswith("runs/a/debug/non-finite.json")


def test_add_last_update_changes_the_outcome_if_the_last_checkpoint_failed(run_spec):
    outcome = Outcome.of(Exit.INTERRUPTED, "stopped by signal")
    add_last_update(outcome, LearnerOutcome.STOPPED, run_spec)
    assert (outcome.name, outcome.code, outcome.sentence) == ("interrupted", 130, "stopped by signal")
    add_last_update(outcome, LearnerOutcome.STORAGE, run_spec)
    assert (outcome.name, outcome.code) == ("storage", 10)
    assert outcome.sentence == "stopped by signal; the last checkpoint could not be written, see log.txt"


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (LearnerOutcome.STOP_RULE, "finished"),
        (LearnerOutcome.NON_FINITE, "non-finite"),
        (LearnerOutcome.TERMINATED, "terminated"),  # several learners agreed
    ],
)
@pytest.mark.parametrize("code", [Exit.INTERRUPTED, Exit.TERMINATED, Exit.REQUEUE])
def test_add_last_update_takes_what_the_update_after_a_signal_reached(run_spec, code, reported, expected):
    outcome = Outcome.of(code, "stopped by signal; the other learners of the job were not waited for")
    add_last_update(outcome, reported, run_spec)
    assert outcome.name == expected
    assert "waited" not in outcome.sentence


def test_add_last_update_keeps_the_outcome_of_a_fault(run_spec):
    outcome = Outcome.of(Exit.ENVIRONMENT, "an environment failed")
    add_last_update(outcome, LearnerOutcome.STOP_RULE, run_spec)
    assert (outcome.code, outcome.sentence) == (Exit.ENVIRONMENT, "an environment failed")


def test_on_exit_does_not_blame_an_environment_for_an_inference_worker_that_is_too_slow():
    worker = WorkerExit("inference", -9, exceeded="no answer for 120 s")
    assert on_exit(worker, 5, 0, 10, 5, None).outcome.code == Exit.WORKER_LOST
