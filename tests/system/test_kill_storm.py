"""A storm of kills: every 0.3 s a sampler, inference, its spare or the evaluator gets SIGKILL. The run goes on."""

import contextlib
import json
import random
import time

import psutil
import pytest
from run_helpers import children, finish, rows, start, steps, wait_for, workers_named

pytestmark = [pytest.mark.faults, pytest.mark.alone]

EVERY_S = 0.3
KINDS = {"sampler": 70, "inference": 12, "evaluator": 4}
"""How often each kind is killed, relative to the others. A spare is of the kind inference."""
ROWS_IN_FLIGHT = 2 * 6 * 2 * 4 * 8
"""Twice what fits into all slots: more can only be new."""
GROWTH_MB = 8.0
LONGEST_GAP = 8.0
"""Longest time without a row of metrics, in restarts of inference: one takes 1.5 s on two idle cores."""


def footprint(process):
    """(unique memory in MB, descriptors, threads) of the supervisor and the learner, which are not killed."""
    found = psutil.Process(process.pid), *workers_named(process, "learner")
    return [(p.memory_full_info().uss / 2**20, p.num_fds(), p.num_threads()) for p in found]


def zombies(process):
    return [p for p in children(process) if p.status() == psutil.STATUS_ZOMBIE]


def strike(process, draw):
    """Kill one process of a kind that is drawn; whether there was one."""
    (kind,) = draw.choices([*KINDS], KINDS.values())
    victims = workers_named(process, kind)
    if victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(victims).kill()
    return bool(victims)


def restart_of_inference(process, run):
    """Seconds from one kill to a row of new data, on this machine."""
    (victim,) = workers_named(process, "inference")
    killed_at = time.monotonic()
    victim.kill()
    wait_for(lambda: workers_named(process, "inference") not in ([], [victim]), process=process)
    seen = steps(run)
    wait_for(lambda: steps(run) > seen + ROWS_IN_FLIGHT, process=process, seconds=100)
    return time.monotonic() - killed_at


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [8, pytest.param(30, marks=pytest.mark.soak)])
def test_run_survives_a_storm_of_kills(tmp_path, seconds):
    run, draw = tmp_path / "run", random.Random(seconds)
    code = 0 if seconds == 30 else 143  # the long one ends by its stop rule
    words = [
        "--stop.env-steps",
        0,
        "--stop.seconds",
        1000 if code else 75,
        "--log.every-seconds",
        0.2,
        "--eval.every",
        5000,
    ]
    process = start(run, *words, "--eval.episodes", 2)
    wait_for(lambda: steps(run) > 0 and workers_named(process, "evaluator"), process=process)
    restart_s, before = restart_of_inference(process, run), footprint(process)
    began, killed, worst = time.monotonic(), 0, 0.0
    seen, seen_at = steps(run), began
    while (now := time.monotonic()) - began < seconds:
        if (now - began) / EVERY_S > killed:
            killed += strike(process, draw)
        if steps(run) > seen:
            seen, seen_at = steps(run), now
        worst = max(worst, now - seen_at)
        time.sleep(0.02)
    wait_for(lambda: not zombies(process), process=process)
    wait_for(lambda: steps(run) > seen, process=process, seconds=100)
    worst = max(worst, time.monotonic() - seen_at)
    print(f"{killed} kills in {seconds} s; longest time without a row: {worst:.1f} s; one restart: {restart_s:.1f} s")
    after = footprint(process)
    if code:
        process.terminate()
    finish(process, code)
    assert killed >= 0.7 * seconds / EVERY_S
    assert worst <= LONGEST_GAP * restart_s
    for (mb, fds, threads), (mb_after, fds_after, threads_after) in zip(before, after, strict=True):
        assert mb_after - mb <= GROWTH_MB
        assert fds_after <= fds + 12, "at most those of one spare, and of a worker that is being replaced"
        assert threads_after <= threads + 2
    counts = json.loads((run / "status.json").read_text())["ledger"]
    assert counts["sampled"] == sum(counts[name] for name in ("trained", "skipped", "discarded", "in_flight"))
    curve = [row["env_steps"] for row in rows(run)]
    assert curve == sorted(set(curve))
