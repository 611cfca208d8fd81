"""Runs with slow and heavy simulators: none is left over, none is killed for being slow, their output stays small."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from forked_processes import ForkedCommand
from run_helpers import children, command, finish, start, steps, wait_for, workers_named

from sfactory.supervisor.blas_threads import VARIABLES
from sfactory.supervisor.output_file import MAX_BYTES

ONE = ["--sampling.num-samplers", 1, "--checkpoint.every-seconds", 1000]


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


@pytest.fixture
def tag():
    """A number of seconds that identifies the simulators (`sleep`) of one test."""
    tag = str(random.Random().randrange(10**6, 10**7))
    yield tag
    for process in simulators(tag):
        process.kill()


def simulators(tag):
    found = psutil.process_iter(["cmdline", "status"])
    return [p for p in found if p.info["cmdline"] == ["sleep", tag] and p.info["status"] != psutil.STATUS_ZOMBIE]


def train(run, name, *words, popen=subprocess.Popen, **settings):
    flags = [word for key, value in settings.items() for word in (f"--env.settings.{key.replace('_', '-')}", value)]
    return start(run, *flags, *words, target=f"gymnasium/simulators:{name}-v0", popen=popen)


def worker(process, name):
    """The process that runs a worker; its simulators have the same output."""
    (found,) = (w for w in workers_named(process, name) if "spawn_main" in " ".join(w.cmdline()))
    return found


def progress(run, process):
    before = steps(run)
    wait_for(lambda: steps(run) > before, process=process)


def log_of(run):
    return (run / "log.txt").read_text()


# -- processes of environments ---------------------------------------------------------------------------------


def test_simulators_are_closed_one_after_the_other_at_the_end_and_none_is_left(tmp_path, tag):
    """In the 2 s that a worker has to exit, 8 closes of 0.5 s would not fit."""
    run, closed = tmp_path / "run", tmp_path / "closed"
    words = [*ONE, "--stop.env-steps", 500]
    finish(train(run, "Simulator", *words, tag=tag, close_s=0.5, closed=closed, popen=ForkedCommand), 0)
    assert not simulators(tag)
    assert closed.read_text().count("closed") == 1 + 8, "the one of the spec, and those of the sampler"


@pytest.mark.slow
def test_simulators_that_cannot_be_closed_are_killed_at_the_end(tmp_path, tag):
    process = train(tmp_path / "run", "Simulator", *ONE, "--stop.env-steps", 500, tag=tag, close_s=600)
    finish(process, 0)
    assert not simulators(tag)


@pytest.mark.sampled(2)
@pytest.mark.faults
@pytest.mark.parametrize("clean", ["false", "true"], ids=["our environment", "an environment of its own"])
def test_simulators_are_gone_when_their_sampler_is_killed(tmp_path, tag, clean):
    run = tmp_path / "run"
    process = train(run, "Simulator", *ONE, tag=tag, clean=clean)
    wait_for(lambda: steps(run) > 0, process=process)
    before = {p.pid for p in simulators(tag)}
    assert len(before) == 8
    worker(process, "sampler").kill()
    wait_for(lambda: "sampler-0 exited (killed by SIGKILL); restarted" in log_of(run), process=process)
    assert not before & {p.pid for p in simulators(tag)}, "gone before the next generation starts"
    progress(run, process)
    assert len(simulators(tag)) == 8
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert not simulators(tag)


@pytest.mark.sampled(2)
@pytest.mark.faults
@pytest.mark.parametrize("victim", ["supervisor", "reaper", "evaluator"])
def test_simulators_are_gone_when_another_process_is_killed(tmp_path, tag, victim):
    run = tmp_path / "run"
    words = ["--eval.every", 1] if victim == "evaluator" else []
    process = train(run, "Simulator", *ONE, *words, tag=tag)
    wait_for(lambda: steps(run) > 0, process=process)
    if victim == "reaper":
        worker(process, "sampler").parent().kill()
        progress(run, process)
        assert len(simulators(tag)) == 8
    elif victim == "evaluator":
        wait_for(lambda: len(simulators(tag)) > 8, process=process)
        worker(process, "evaluator").kill()
        wait_for(lambda: "evaluator exited" in log_of(run), process=process)
    family = children(process)
    process.kill()
    process.communicate()
    time.sleep(1.0)
    assert not simulators(tag)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.faults
def test_ports_that_simulators_hold_are_free_for_the_next_generation(tmp_path, tag):
    run = tmp_path / "run"
    process = train(run, "Port", *ONE, tag=tag, first_port=26000 + 8 * random.Random().randrange(400))
    wait_for(lambda: steps(run) > 0, process=process)
    for _ in range(2):
        worker(process, "sampler").kill()
        progress(run, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert log_of(run).count("restarted") == 2
    assert not simulators(tag)


@pytest.mark.faults
def test_run_as_process_1_of_a_container_leaves_no_zombies(tmp_path, tag):
    """Without an init process, only the supervisor could collect simulators whose sampler was killed."""
    run = tmp_path / "run"
    words = command("train", "gymnasium/simulators:Simulator-v0", "--run.dir", run, "--env.settings.tag", tag, *ONE)
    words += ["--sampling.envs-per-group", "4", "--sampling.rollout-length", "8", "--batch.minibatches", "1", "--quiet"]
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", *words]
    outer = subprocess.Popen(inside, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(lambda: steps(run) > 0, process=outer)
    (supervisor,) = psutil.Process(outer.pid).children()
    worker(supervisor, "sampler").kill()
    wait_for(lambda: "restarted" in log_of(run), process=outer)
    progress(run, outer)
    zombies = [p for p in children(supervisor) if p.status() == psutil.STATUS_ZOMBIE]
    assert not zombies
    supervisor.send_signal(signal.SIGTERM)
    outer.communicate(timeout=60)
    assert not simulators(tag)


@pytest.mark.faults
def test_run_ends_in_order_if_it_was_started_with_sigchld_ignored(tmp_path):
    run = tmp_path / "run"
    words = command("train", "gymnasium/CartPole-v1", "--run.dir", run, *ONE, "--stop.env-steps", 500, "--quiet")
    done = subprocess.run(
        words, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN), capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]


IN_A_THREAD = """
import signal, sys, threading
import sfactory

def collect(*_):
    import os
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

def train():
    outcome = sfactory.train(
        "faults/count", env={"settings": {"exit_at": 40, "marker": "once"}}, run={"dir": "run"},
        sampling={"num_samplers": 1, "envs_per_group": 4, "rollout_length": 8}, stop={"env_steps": 2000},
    )
    print(outcome.code, flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN if sys.argv[1] == "ignored" else collect)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
"""


@pytest.mark.sampled(2)
@pytest.mark.faults
@pytest.mark.parametrize("exits", ["ignored", "collected"])
def test_run_in_a_program_that_takes_the_exits_of_children_replaces_samplers_and_ends(tmp_path, exits):
    """In a thread, where no handler can be set: SIGCHLD is ignored, or its handler waits for all children."""
    (tmp_path / "program.py").write_text(IN_A_THREAD)
    done = subprocess.run(
        [sys.executable, "program.py", exits], cwd=tmp_path, capture_output=True, text=True, timeout=110
    )
    assert done.stdout.split() == ["0"], done.stderr[-2000:]
    assert "sampler-0 exited (exit code 3, in environment" in log_of(tmp_path / "run")


# -- slow environments -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_slow_steps_are_no_stall_while_data_arrive(tmp_path):
    """8 environments take 0.8 s for a row of both groups: an update takes 6 s, and a step of a group 0.4 s."""
    words = [
        *ONE,
        "--run.stall-timeout",
        2,
        "--env.step-timeout",
        0.3,
        "--stop.env-steps",
        128,
        "--batch.minibatches",
        1,
    ]
    finish(train(tmp_path / "run", "Slow", *words, step_s=0.1), 0)
    assert "restarted" not in log_of(tmp_path / "run")


@pytest.mark.slow
def test_slow_building_and_first_resets_are_neither_steps_nor_a_stall(tmp_path):
    """No constructor or reset takes longer than 1 s, those of a group 4 s."""
    words = [
        *ONE,
        "--run.stall-timeout",
        3,
        "--env.step-timeout",
        1.5,
        "--env.build-timeout",
        3,
        "--stop.env-steps",
        200,
    ]
    finish(train(tmp_path / "run", "Slow", *words, build_s=1.0, reset_s=1.0), 0)
    assert "restarted" not in log_of(tmp_path / "run")


def test_slow_first_reset_of_a_group_that_does_not_report_is_no_slow_step(tmp_path):
    """Its four environments have 4 x 0.5 s for a step, but the time of building for their first reset."""
    run = tmp_path / "run"
    words = [*ONE, "--env.step-timeout", 0.5, "--env.settings.slow-reset", 3, "--stop.env-steps", 500]
    finish(start(run, *words, target="faults/count", popen=ForkedCommand), 0)
    assert "restarted" not in log_of(run)


def test_slow_replacement_of_a_broken_environment_is_no_slow_step(tmp_path):
    run, marker = tmp_path / "run", tmp_path / "broken"
    words = [*ONE, "--env.step-timeout", 1.5, "--stop.env-steps", 500]
    finish(train(run, "SlowAgain", *words, marker=marker, build_s=3.0, popen=ForkedCommand), 0)
    assert "RuntimeError: crash" in log_of(run)
    assert "restarted" not in log_of(run)


def test_run_says_how_long_a_slow_first_update_will_take(tmp_path):
    run = tmp_path / "run"
    process = train(run, "Slow", *ONE, "--sampling.rollout-length", 1000, step_s=0.05, popen=ForkedCommand)
    wait_for(lambda: (run / "log.txt").exists() and "first update" in log_of(run), process=process)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, 143)
    (line,) = (line for line in err.splitlines() if "first update" in line)
    assert line.startswith("the first update will take about ")
    assert "it needs 8,000 environment steps" in line


def test_environment_that_takes_too_long_to_build_ends_the_run_with_its_number(tmp_path):
    """The first one is that of the spec, the fourth of the sampler hangs."""
    run = tmp_path / "run"
    _, err = finish(
        train(run, "Stuck", *ONE, "--env.build-timeout", 2, count=tmp_path / "count", times=4, popen=ForkedCommand), 6
    )
    assert "could not build its environments" in err.splitlines()[-1]
    assert "building an environment exceeded 2 s (env.build-timeout, building environment 3)" in err.splitlines()[-1]
    assert "simulators.py" in (run / "debug" / "sampler-0.txt").read_text(), "its stack"


@pytest.mark.faults
def test_sampler_that_cannot_be_built_again_is_restarted_a_few_times_with_pauses(tmp_path):
    """The other sampler goes on, and its updates do not count."""
    run, count = tmp_path / "run", tmp_path / "count"
    words = ["--sampling.num-samplers", 2, "--run.spare-restarts", 3, "--log.every-seconds", 0.2]
    process = train(run, "Stuck", *words, count=count, times=1 + 16, how="fails")
    wait_for(lambda: steps(run) > 0, process=process)
    began = time.monotonic()
    worker(process, "sampler-1").kill()
    _, err = finish(process, 6)
    assert "sampler-1 exited 4 times with little or no progress in between" in err.splitlines()[-1]
    assert "RuntimeError: no licence" in err.splitlines()[-1]
    assert "restarted in 0.5 s" in log_of(run)
    assert "restarted in 1 s" in log_of(run)
    assert time.monotonic() - began > 1.5


@pytest.mark.faults
def test_environment_whose_resets_hang_ends_the_run_although_it_delivers_data_before(tmp_path):
    """Each generation fills slots that made up for its own end: it was restarted without end."""
    run = tmp_path / "run"
    words = [*ONE, "--env.step-timeout", 1, "--run.spare-restarts", 2, "--stop.env-steps", 10**6]
    _, err = finish(train(run, "HangsLater", *words), 6)
    last = err.splitlines()[-1]
    assert "sampler-0 exited 3 times with little or no progress in between (killed: environment step exceeded" in last
    assert re.search(r"in environment \d+, seed \d+, step", last), last
    assert steps(run) > 500, "it delivered data"


# -- processors, memory, disk ----------------------------------------------------------------------------------


def test_samplers_and_evaluator_have_one_blas_thread(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "run"
    process = train(run, "Slow", *ONE, "--eval.every", 10**9)
    wait_for(lambda: steps(run) > 0, process=process)

    def threads(name):
        return {key: value for key, value in worker(process, name).environ().items() if key in VARIABLES}

    assert threads("sampler") == threads("evaluator") == dict.fromkeys(VARIABLES, "1")
    assert threads("learner") == threads("inference") == {}, "their networks have threads of their own"
    process.send_signal(signal.SIGTERM)
    finish(process, 143)


def most_open(path, evaluator):
    """Largest number of environments that were open at the same time."""
    now = most = 0
    for line in path.read_text().split():
        if line.startswith("e") == evaluator:
            now += 1 if line.endswith("+") else -1
            most = max(most, now)
    return most


@pytest.mark.slow
def test_evaluations_have_no_more_environments_than_training(tmp_path):
    run, opened = tmp_path / "run", tmp_path / "opened"
    words = [*ONE, "--sampling.envs-per-group", 1, "--batch.minibatches", 1, "--stop.env-steps", 500]
    finish(train(run, "Counted", *words, "--eval.every", 200, "--eval.episodes", 6, file=opened), 0)
    assert most_open(opened, evaluator=False) == 2
    assert most_open(opened, evaluator=True) == 2

    def played(*options):
        opened.unlink()
        done = subprocess.run(
            command("eval", run, "--episodes", 6, "--json", *options), capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(json.loads(done.stdout)["returns"]) == 6
        return most_open(opened, evaluator=False)

    assert played() == 2
    assert played("--num-envs", 3) == 3


@pytest.mark.slow
def test_output_of_environments_is_bounded_over_launches(tmp_path):
    run = tmp_path / "run"
    finish(train(run, "Chatty", *ONE, "--stop.env-steps", 2000, size=20_000), 0)
    output = run / "debug" / "sampler-0.txt"
    first = output.stat().st_size
    assert 2_000_000 < first <= MAX_BYTES, "of 40 MB"
    again = subprocess.run(command("resume", run, "--stop.env-steps", 4000), capture_output=True, timeout=60)
    assert again.returncode == 0, again.stderr[-2000:]
    assert output.stat().st_size <= MAX_BYTES


def test_supervisor_reads_only_the_end_of_a_large_output(tmp_path):
    """Its memory stays the same when a sampler that has written a lot is killed."""
    run = tmp_path / "run"
    process = train(run, "Chatty", *ONE, size=20_000)
    wait_for(lambda: steps(run) > 6000, process=process)
    assert (run / "debug" / "sampler-0.txt").stat().st_size < 60e6, "of 120 MB"
    supervisor = psutil.Process(process.pid)
    before = supervisor.memory_info().rss
    worker(process, "sampler").kill()
    progress(run, process)
    assert supervisor.memory_info().rss - before < 20e6
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert os.stat(run / "debug" / "sampler-0.txt").st_size <= MAX_BYTES
