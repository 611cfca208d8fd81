"""Failures of environments: what is printed of them, what warns, and what ends the run."""

import numpy as np
import pytest

from sfactory.run.env_faults import ENOUGH_FAILURES, FIRST_STEP_FAILURES, LOGGED, EnvFaults, is_env_fault

TRACE = """\
Traceback (most recent call last):
  File "/lib/adapter.py", line 142, in step
    obs = instance.step(row)
  File "/home/me/sim.py", line {line}, in step
    raise {error}({text!r})
{error}: {text}
"""


def fault(env=3, error="RuntimeError", text="solver diverged", seed=17, step=7, line=12):
    """A message as a sampler sends it."""
    reason = f"environment {env}: {error}: {text} (seed {seed}, step {step} of the episode)"
    return f"{reason}\n{TRACE.format(line=line, error=error, text=text)}"


def of(budget=100_000, num_envs=32):
    return EnvFaults(budget, num_envs)


# -- what is printed -----------------------------------------------------------------------------------------------


def test_first_failure_of_a_reason_is_shown_with_its_traceback_and_log_txt_is_named():
    log, console = of().lines(fault())
    assert log == fault()
    first, *rest = console.splitlines()
    assert first.startswith("environment 3: RuntimeError: solver diverged (seed 17, step 7 of the episode)")
    assert "log.txt" in first
    assert '  File "/home/me/sim.py", line 12, in step' in "\n".join(rest)
    assert rest[-1].strip() == "RuntimeError: solver diverged"


def test_failures_without_a_traceback_are_one_reason_whatever_the_action_was():
    faults = of()
    for number in range(10):
        where = f"(seed {number}, step {number} of the episode, action array([0.{number}, (0.5]))"
        _, console = faults.lines(f"environment {number}: ValueError: no solution {where}\n")
    assert console == "environments failed 10 times like this: ValueError: no solution"


def test_later_failures_of_a_reason_are_counted():
    faults, shown, logged = of(), [], []
    for number in range(1, 10_001):
        log, console = faults.lines(fault(env=number % 32, seed=number, step=number % 9, text=f"t = {0.1 * number}"))
        shown += [(number, console)] * bool(console)
        logged += [(number, log)] * bool(log)
    assert [number for number, _ in shown] == [1, 10, 100, 1000, 10_000]
    assert shown[1][1] == "environments failed 10 times like this: RuntimeError: t = 1.0"
    assert shown[3][1].startswith("environments failed 1,000 times like this")
    assert [number for number, _ in logged] == [*range(1, LOGGED + 1), 1000, 10_000], "log.txt does not grow for ever"
    assert all("Traceback" not in text for number, text in logged[1:])
    assert logged[1][1].startswith("environment 2: RuntimeError"), "each of the first with its seed and step"


def test_failures_of_different_places_are_different_reasons():
    faults = of()
    for text in (fault(), fault(line=13), fault(error="ValueError"), "environment 1: ValueError: NaN in obs\n"):
        assert "log.txt" in faults.lines(text)[1]
    for text in (fault(env=9), fault(line=13, text="other words"), "environment 2: ValueError: NaN in obs\n"):
        assert faults.lines(text)[1] == ""


def test_number_of_reasons_that_are_shown_is_limited():
    faults = of()
    shown = [faults.lines(fault(line=number))[1] for number in range(500)]
    assert 40 < sum("Traceback" in text for text in shown) < 60


def test_long_traceback_is_shortened_on_the_console():
    text = "environment 0: RecursionError: deep (seed 1, step 1 of the episode)\n"
    text += "".join(f"line {n}\n" for n in range(99))
    log, console = of().lines(text)
    assert log == text
    assert len(console.splitlines()) < 50
    assert "59 more lines in log.txt" in console
    assert console.endswith("line 98")


def test_is_env_fault_tells_failures_of_environments_from_exits_of_workers():
    assert is_env_fault(fault())
    assert not is_env_fault("sampler-1 exited (killed by SIGSEGV, in environment 5, seed 1, step 7 of the episode)")


# -- the warning ---------------------------------------------------------------------------------------------------


def test_warning_comes_once_when_more_than_a_twentieth_of_the_episodes_are_broken():
    faults = of()
    faults.lines(fault())
    faults.add_episodes(190)
    faults.add_steps(4000, 10)
    assert faults.warning() == "", "5 %"
    faults.add_steps(20, 2)
    assert faults.warning().startswith("warning: 5.9% of the last 202 episodes were cut because their environment")
    faults.add_steps(20, 2)
    assert faults.warning() == ""


def test_warning_waits_until_episodes_are_complete_too():
    """Of many environments the broken episodes are the first to end."""
    faults = of(num_envs=512)
    faults.lines(fault())
    faults.add_steps(20_000, 200)
    assert faults.warning() == ""
    faults.add_episodes(10_000)
    assert faults.warning() == "", "the share is 0"


# -- the end of the run --------------------------------------------------------------------------------------------


def test_run_ends_early_if_no_environment_gets_past_its_first_step():
    faults = of()
    for number in range(FIRST_STEP_FAILURES):
        assert faults.problem() == ""
        faults.add_steps(0, 1)
        faults.lines(fault(env=number, error="KeyError", text=f"joint {number}", step=0))
    assert faults.problem() == (
        "no environment got past its first step, 20 failures; the first: environment 0: KeyError: joint 0 (seed 17, "
        "step 0 of the episode)"
    )


def test_run_goes_on_after_early_failures_if_one_step_was_good():
    faults = of()
    faults.lines(fault())
    faults.add_steps(1, 0)
    faults.add_steps(0, 5 * FIRST_STEP_FAILURES)
    assert faults.problem() == ""


def play(faults, steps, rate, length=20, chunk=64, seed=0):
    """Play episodes with `rate` failures per step until `steps`, or until the run ends; returns the steps played."""
    draw, age = np.random.default_rng(seed), 0
    for now in range(0, steps, chunk):
        failed, complete = draw.random(chunk) < rate, 0
        for bad in failed:
            age = 0 if bad else age + 1
            complete += age == length
            age = age % length
        if complete:
            faults.add_episodes(complete)
        faults.add_steps(int((~failed).sum()), int(failed.sum()))
        faults.lines(fault())
        if faults.problem():
            return now
    return steps


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.08])
def test_run_goes_on_at_a_rate_below_the_budget_however_many_failures_there_are(rate):
    faults = of()
    assert play(faults, 200_000, rate) == 200_000, faults.problem()
    assert faults.failures > 100


def test_run_ends_at_a_rate_above_the_budget():
    faults = of()
    assert 5000 < play(faults, 200_000, 0.15) < 15_000
    assert faults.problem().startswith("environments failed more than 1,000 times in ")
    assert "(env.fault-budget allows 100,000 per million), mostly: environment 3: RuntimeError" in faults.problem()


def test_run_ends_when_failures_become_frequent_late():
    faults = of()
    assert play(faults, 200_000, 0.01) == 200_000
    assert play(faults, 200_000, 0.5, seed=1) < 10_000


@pytest.mark.parametrize(("budget", "failures"), [(0, 1), (3, 4), (1000, 1001), (10_000, 1001)])
def test_small_budget_is_a_number_of_failures_within_a_million_steps(budget, failures):
    faults = of(budget)
    faults.lines(fault())
    faults.add_episodes(10**6)
    faults.add_steps(2000, failures - 1)
    assert faults.problem() == ""
    faults.add_steps(0, 1)
    assert f"more than {min(budget, 1000):,} times" in faults.problem()


def test_failures_of_long_ago_do_not_count():
    faults = of(budget=3)
    faults.lines(fault())
    for _ in range(300):  # one failure in 400,000 steps
        faults.add_steps(400_000, 1)
        faults.add_episodes(1)
        assert faults.problem() == ""


def test_run_ends_if_no_episode_is_ever_complete():
    """Every episode breaks at its fortieth step: a low rate of failures, and no return ever."""
    faults = of()
    faults.lines(fault())
    for number in range(ENOUGH_FAILURES + 1):
        assert faults.problem() == "", number
        faults.add_steps(40, 1)
    assert faults.problem().startswith("environments failed more than 1,000 times without one complete episode, mostly")


def test_run_with_endless_episodes_may_fail_now_and_then():
    faults = of()
    faults.lines(fault())
    for _ in range(5 * ENOUGH_FAILURES):
        faults.add_steps(20_000, 1)
        assert faults.problem() == ""


def test_env_faults_keep_few_entries_of_many_messages():
    faults = of(budget=1000)
    for _ in range(100_000):
        faults.add_steps(3, 0)
    assert len(faults._recent) < 200


def test_most_frequent_reason_is_told():
    faults = of(budget=10)
    faults.add_steps(100, 0)
    faults.lines(fault(error="OSError", text="port"))
    for _ in range(10):
        faults.lines(fault())
    faults.add_steps(0, 11)
    assert "mostly: environment 3: RuntimeError: solver diverged" in faults.problem()
