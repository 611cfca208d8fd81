"""The fault table of docs/faults.md with real processes that are killed, stopped or short of resources."""

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest
from run_helpers import SMALL, all_exited, children, command, finish, rows, start, steps, wait_for, workers_named

from sfactory.run import checkpoint
from sfactory.workers.sampler import env_seeds

pytestmark = pytest.mark.faults
COUNT = "faults/count"


TRAIN_SCRIPT = """
import sys
from pathlib import Path
from sfactory.config import parsing, presets
from sfactory.config.flags import split_flags
from sfactory.supervisor.train import train
flags, *_ = split_flags(sys.argv[2:], {})
config = parsing.build(*presets.target_layers("gymnasium/CartPole-v1"), flags)
sys.exit(train(config, Path(sys.argv[1])).code)
"""
"""Train in an existing folder, which the command line refuses: python -c TRAIN_SCRIPT RUN_DIR [flags]."""


def knobs(**settings):
    return [word for name, value in settings.items() for word in (f"--env.settings.{name}", value)]


def log_of(run):
    return (run / "log.txt").read_text()


def exit_line(err):
    return err.strip().splitlines()[-1]


def status(run):
    return json.loads((run / "status.json").read_text())


def ledger_balances(run):
    ledger = status(run)["ledger"]
    return ledger["sampled"] == sum(ledger[k] for k in ("trained", "skipped", "discarded", "in_flight"))


# -- environments ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("knob", "text"),
    [
        ("segv_at", "exited (killed by SIGSEGV"),
        ("exit_at", "exited (exit code 3"),
        ("crash_at", "crash requested at call 40"),
    ],
)
def test_sampler_is_restarted_after_its_environment_kills_it(tmp_path, knob, text):
    run, marker = tmp_path / "run", tmp_path / "once"
    finish(start(run, *knobs(**{knob: 40, "marker": marker}), "--stop.env-steps", 6000, target=COUNT), 0)
    assert text in log_of(run)
    # Ten steps and a reset row to an episode: the fortieth call finds the fourth one 7 steps old.
    where = re.search(r"in environment (\d+), seed (\d+), step 7 of the episode\); restarted", log_of(run))
    assert where, log_of(run)
    group = int(where[1]) // 4  # the fault is set for its first environment
    assert (int(where[1]), int(where[2])) == (4 * group, env_seeds(1, 0, 0, 4 * group, 1)[0])
    assert marker.exists()
    assert ledger_balances(run)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("knob", ["raise_at", "nan_obs_at", "nan_reward_at"])
def test_failed_environment_is_rebuilt_and_its_traceback_logged(tmp_path, knob):
    run = tmp_path / "run"
    finish(start(run, *knobs(**{knob: 40, "env": 2}), "--stop.env-steps", 6000, target=COUNT), 0)
    assert "environment 2:" in log_of(run)
    assert "seed" in log_of(run)
    assert rows(run)[-1]["faults/sampler"] == 6  # once in each of 6 groups
    assert all(row["losses/value_loss"] is not None for row in rows(run))  # null is how NaN would be written


def test_run_ends_after_too_many_environment_failures(tmp_path):
    run = tmp_path / "run"
    words = [*knobs(raise_at=40), "--env.fault-budget", 3]
    _, err = finish(start(run, *words, target=COUNT), 6)
    assert "environments failed more than 3 times" in exit_line(err)
    assert "failure requested by raise_at" in exit_line(err)


def test_hanging_environment_is_killed_and_its_stack_kept(tmp_path):
    run, marker = tmp_path / "run", tmp_path / "once"
    words = [*knobs(hang_at=40, marker=marker), "--env.step-timeout", 1.5, "--stop.seconds", 5]
    finish(start(run, *words, target=COUNT), 0)
    assert "environment step exceeded 1.5 s" in log_of(run)
    stacks = "".join(path.read_text() for path in (run / "debug").glob("sampler-*.txt"))
    assert "most recent call first" in stacks
    assert "faults.py" in stacks, "where it hangs"
    assert ledger_balances(run)


def inside_an_update(process):
    """Whether the learner computes and the samplers wait for it, for a second."""

    def seconds(kind):
        return sum(sum(worker.cpu_times()[:2]) for worker in workers_named(process, kind))

    learner, samplers = seconds("learner"), seconds("sampler")
    time.sleep(1.0)
    return seconds("learner") - learner > 0.1 and seconds("sampler") - samplers < 0.1


def saved(run):
    """Env steps of the newest checkpoint."""
    return max((int(path.name) for path in checkpoint.candidates(run)), default=0)


# -- kills -----------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("seconds", [10, pytest.param(600, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_kill_soak(tmp_path, seconds):
    """Kill a sampler every 0.5 s and inference every 5 s: training progresses and row counts are consistent."""
    run = tmp_path / "run"
    process = start(run, "--stop.env-steps", 0, "--stop.seconds", seconds + 3, "--log.every-seconds", 0.2)
    wait_for(lambda: steps(run) > 0, process=process)
    began, next_inference, worst, seen, seen_at = time.monotonic(), 5.0, 0.0, steps(run), time.monotonic()
    draw = random.Random(0)
    while (now := time.monotonic()) - began < seconds:
        victims = workers_named(process, "sampler")
        if now - began > next_inference:
            next_inference += 5.0
            victims = workers_named(process, "inference")
        if victims:
            draw.choice(victims).kill()
        time.sleep(0.5)
        if steps(run) > seen:
            seen, seen_at = steps(run), time.monotonic()
        worst = max(worst, time.monotonic() - seen_at)
    finish(process, 0)
    print(f"longest time without progress: {worst:.1f} s")
    assert worst < 4.0
    assert ledger_balances(run)


@pytest.mark.parametrize("rounds", [4, pytest.param(15, marks=pytest.mark.soak)])
def test_run_resumes_without_losing_steps_after_all_processes_are_killed(tmp_path, rounds):
    run, draw, before, cut = tmp_path / "run", random.Random(1), 0, 0
    # Many rows to a checkpoint: each kill leaves some behind it, which a resume must cut away.
    process = start(run, "--checkpoint.every-seconds", 1, "--log.every-seconds", 0.05)
    for _ in range(rounds):
        wait_for(lambda before=before: saved(run) > before, process=process)
        wait_for(lambda: steps(run) > saved(run), process=process)
        time.sleep(draw.uniform(0.0, 1.0))
        family = children(process)
        os.killpg(process.pid, signal.SIGKILL)  # the supervisor and what stayed in its group
        for child in family:
            child.kill()
        process.communicate()
        wait_for(lambda family=family: all_exited(family), seconds=2.0)
        newest = saved(run)
        cut += any(row["env_steps"] > newest for row in rows(run))
        last = max(row["env_steps"] for row in rows(run) if row["env_steps"] <= newest)
        process = subprocess.Popen(
            command("resume", run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_for(lambda pid=process.pid: status(run).get("pid") == pid, process=process)
        curve = [row["env_steps"] for row in rows(run)]
        assert last in curve  # resumed from the newest: up to there nothing is cut
        before = newest
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    curve = [row["env_steps"] for row in rows(run)]
    assert curve == sorted(set(curve))  # one strictly increasing curve
    assert cut


# -- the watchdog ----------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_stopped_learner_is_a_stall_with_stacks_and_row_counts(tmp_path):
    run = tmp_path / "run"
    process = start(run, "--run.stall-timeout", 8, "--batch.epochs", 50)  # so it stops inside an update
    wait_for(lambda: steps(run) > 0, process=process)
    workers_named(process, "learner")[0].suspend()
    stopped = time.monotonic()
    _, err = finish(process, 8)
    assert time.monotonic() - stopped < 20.0, "who shows no life is not waited for"
    assert "no update for 8 s" in exit_line(err)
    assert "group 0: Request" in (run / "debug" / "slot_table.txt").read_text()
    assert "most recent call first" in (run / "debug" / "inference.txt").read_text()
    assert ledger_balances(run)  # the rows it had copied and not trained are in flight


@pytest.mark.alone
def test_run_that_is_stopped_and_continued_is_no_stall(tmp_path):
    run = tmp_path / "run"
    process = start(run, "--run.stall-timeout", 8)
    wait_for(lambda: steps(run) > 0, process=process)
    family = [*children(process), psutil.Process(process.pid)]
    for one in family:
        one.suspend()
    time.sleep(9.0)
    for one in reversed(family):
        one.resume()
    before = steps(run)
    wait_for(lambda: steps(run) > before, process=process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)


def test_training_pauses_while_the_supervisor_alone_is_stopped(tmp_path):
    """As by Ctrl-Z in a terminal: the workers have process groups of their own, and used to go on unwatched."""
    run = tmp_path / "run"
    process = start(run, "--checkpoint.every-seconds", 0.5)
    wait_for(lambda: saved(run) > 0, process=process)
    process.send_signal(signal.SIGSTOP)
    newest, since = saved(run), time.monotonic()
    deadline = since + 80.0
    while time.monotonic() - since < 6.0:  # a save twice a second, as long as there are updates
        assert time.monotonic() < deadline, "training goes on"
        if saved(run) > newest:
            newest, since = saved(run), time.monotonic()
        time.sleep(0.1)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: saved(run) > newest, process=process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert "restarted" not in log_of(run)
    assert ledger_balances(run)


def test_second_signal_ends_a_run_at_once_without_a_checkpoint(tmp_path):
    """The learner is inside a long update, and is waited for after the first signal as long as it takes steps."""
    run = tmp_path / "run"
    process = start(run, "--batch.epochs", 1000, "--model.hidden", "2048,2048", "--checkpoint.every-seconds", 1000)
    wait_for(lambda: (run / "status.json").exists() and workers_named(process, "sampler"), process=process)
    wait_for(lambda: inside_an_update(process), process=process, seconds=100)
    family = children(process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None, "it waits for the learner"
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = finish(process, 130)
    assert time.monotonic() - begun < 20.0
    assert "stopped by a second signal without waiting for a checkpoint" in exit_line(err)
    assert saved(run) == 0
    wait_for(lambda: all_exited(family), seconds=5.0)


# -- schedulers ------------------------------------------------------------------------------------------------


def test_sigusr1_saves_and_training_continues(tmp_path):
    run = tmp_path / "run"
    process = start(run, "--checkpoint.every-seconds", 1000)
    wait_for(lambda: steps(run) > 0, process=process)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: len(list((run / "checkpoints").glob("0*"))) == 2, process=process)  # the first and this
    before = steps(run)
    wait_for(lambda: steps(run) > before, process=process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)


def test_sigusr1_with_requeue_saves_exits_and_requeues_the_slurm_job(tmp_path, monkeypatch):
    run, tools = tmp_path / "run", tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    process = start(run, "--checkpoint.every-seconds", 1000, "--run.requeue")
    wait_for(lambda: steps(run) > 0, process=process)
    process.send_signal(signal.SIGUSR1)
    _, err = finish(process, 75)
    assert "requeue (exit 75)" in exit_line(err)
    assert (tmp_path / "asked").read_text().strip() == "requeue 4711"
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    before = rows(run)[-1]["env_steps"]
    assert int(newest) >= before > 0
    again = start(run, "--checkpoint.every-seconds", 1000, "--run.requeue")  # what the scheduler does: the same command
    wait_for(lambda: steps(run) > before, process=again)
    again.send_signal(signal.SIGTERM)
    finish(again, 143)


# -- numbers, disks, limits ------------------------------------------------------------------------------------


def test_non_finite_updates_end_the_run_and_are_not_saved(tmp_path):
    run = tmp_path / "run"
    _, err = finish(
        start(run, "--env.reward-scale", 9e18, "--loss.value-coef", 9e18, "--normalize.reward", "false", target=COUNT),
        9,
    )
    assert "not finite" in exit_line(err)
    report = json.loads((run / "debug" / "non-finite.json").read_text())
    reward = report["batch"]["reward"]
    assert (reward["not_finite"], reward["max"] <= 10.0) == (0, True)  # counts to ten: the data are innocent
    assert report["stats"]["losses/value_loss"] in ("inf", "nan")
    assert not any(weights["not_finite"] for weights in report["weights"].values())
    with np.load(run / "debug" / "non-finite.npz", allow_pickle=False) as batch:
        assert batch["reward"].shape == (8, 24)
    assert all(path.name == "000000000000" for path in (run / "checkpoints").iterdir())


def test_second_trainer_in_a_folder_is_refused_with_the_process_id(tmp_path):
    run = tmp_path / "run"
    process = start(run)
    wait_for(lambda: steps(run) > 0 and (run / "checkpoints").exists(), process=process)
    second = subprocess.run(command("resume", run), capture_output=True, text=True)
    assert second.returncode == 3
    assert str(process.pid) in exit_line(second.stderr)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)


def test_run_trains_to_its_end_if_checkpoints_cannot_be_written(tmp_path):
    """The checkpoint folder becomes a file, so that no save can succeed; the exit code reports it."""
    run = tmp_path / "run"
    process = start(run, "--stop.env-steps", 40_000, "--checkpoint.every-seconds", 1000)
    wait_for(lambda: steps(run) > 0 and (run / "checkpoints").exists(), process=process)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")
    finish(process, 10)
    assert "failed" in log_of(run)
    assert steps(run) >= 40_000


def test_full_disk_under_checkpoints_is_reported_and_sets_the_exit_code(tmp_path):
    """A real file system of 64 KB under the checkpoint folder, because libraries raise different errors there."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    words = shlex.join([*command()[:1], "-c", TRAIN_SCRIPT, str(run), *SMALL, "--stop.env-steps", "6000"])
    inside = f"mount -t tmpfs -o size=64k tmpfs {shlex.quote(str(run / 'checkpoints'))} && exec {words}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 10, done.stderr[-2000:]
    assert "No space left on device" in log_of(run)
    assert steps(run) >= 6000


def test_too_few_file_descriptors_are_refused_with_the_numbers(tmp_path):
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))

    done = subprocess.run(
        command("train", "gymnasium/CartPole-v1", "--run.dir", tmp_path / "run", *SMALL),
        capture_output=True, text=True, preexec_fn=few,
    )  # fmt: skip
    assert done.returncode == 11, done.stderr[-2000:]
    assert "the limit is 90" in exit_line(done.stderr)


def test_run_trains_to_its_end_in_a_folder_on_a_full_disk(tmp_path):
    """Rows, curves, log and checkpoints share 24 KB: each failure is reported once and training continues."""
    words = command("train", "gymnasium/CartPole-v1", "--run.dir", "disk/run", *SMALL, "--stop.env-steps", 20_000)
    words += ["--json", "--log.every-seconds", "0.05"]
    fill = "mount -t tmpfs -o size=64k tmpfs disk && head -c 40960 /dev/zero > disk/ballast"
    inside = f"{fill} && exec {shlex.join(words)}"
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 10, done.stderr[-2000:]
    assert json.loads(done.stdout)["env_steps"] >= 20_000
    for what in ("metrics.jsonl", "TensorBoard"):
        assert done.stderr.count(f"warning: {what} cannot be written") == 1, done.stderr[-2000:]


def test_run_trains_to_its_end_if_its_folder_is_removed(tmp_path):
    run = tmp_path / "run"
    process = start(run, "--stop.seconds", 6, "--checkpoint.every-seconds", 0.5)
    wait_for(lambda: steps(run) > 0, process=process)
    shutil.rmtree(run, ignore_errors=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 10), err[-3000:]
    assert "Traceback" not in err
    if process.returncode == 0:  # then what was trained is there again
        assert checkpoint.newest(run) is not None


def test_run_needs_no_dev_shm(tmp_path):
    """Containers have 64 MB of it; memory here is anonymous and needs none. 64 KB, in a mount namespace of its own."""
    run = tmp_path / "run"
    words = command("train", "gymnasium/CartPole-v1", "--run.dir", run, *SMALL, "--stop.env-steps", 3000, "--quiet")
    inside = "mount -t tmpfs -o size=64k tmpfs /dev/shm && df -k /dev/shm | tail -1 && exec " + shlex.join(words)
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[1] == "64"
    assert steps(run) >= 3000


@pytest.mark.alone
def test_run_is_not_affected_by_jumps_of_the_wall_clock(tmp_path):
    """The wall clock is set to a year ahead and a year back while a run is young: deadlines and speeds do not see it.

    A process cannot set the machine's clock in a test, so its own `time.time` jumps, in the supervisor and in every
    worker: a site directory on the path replaces it before anything of ours is imported.
    """
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, pathlib, sys, time\n"
        "real, year = time.time, 365 * 86400\n"
        "time.time = lambda: real() + (year if int(real() * 2) % 2 else -year)\n"
        f"pathlib.Path({str(site)!r}, f'{{os.getpid()}}.jumps').touch()\n"
    )
    run = tmp_path / "run"
    words = command("train", "gymnasium/CartPole-v1", "--run.dir", run, *SMALL, "--stop.seconds", 4, "--quiet")
    words += ["--run.stall-timeout", "20", "--env.step-timeout", "20"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(site)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(site.glob("*.jumps"))) >= 6  # in the supervisor, the learner, inference, three samplers
    seconds = [row["seconds"] for row in rows(run)]
    assert seconds == sorted(seconds)
    assert 4.0 <= seconds[-1] < 30.0
    assert all(0 <= row["charts/SPS"] < 1e6 for row in rows(run))
