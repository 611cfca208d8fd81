"""A minute of training with constant sampler kills: no leak and no slowdown."""

import os
import statistics
import time
from pathlib import Path

import psutil
import pytest
from run_helpers import children, finish, rows, start, steps, wait_for, workers_named

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(240)]

MINUTE, KILLS, WARM = 60.0, 50, 20.0
THIRD = MINUTE / 3
PATIENCE = 2  # further thirds of a minute, where the machine was busy in the last one
GROWTH_MB = 2.0


def footprint(process):
    """Unique memory in MB, descriptors and threads of the workers that are not restarted."""
    alive = {"supervisor": psutil.Process(process.pid)}
    alive |= {kind: workers_named(process, kind)[0] for kind in ("learner", "inference")}
    return {name: (p.memory_full_info().uss / 2**20, p.num_fds(), p.num_threads()) for name, p in alive.items()}


def median_of(samples, name, what):
    return statistics.median(sample[name][what] for sample in samples)


def rates(work, first, last):
    """Steps per second of wall time and of CPU time: other processes slow one of them, a leak both."""
    part = [w for w in work if first <= w[0] <= last]
    return [(part[-1][1] - part[0][1]) / (part[-1][axis] - part[0][axis]) for axis in (0, 2)]


def ratio(work, until):
    """Speed of the last third of the minute over the first, by the less disturbed measure."""
    late, early = rates(work, until - THIRD, until), rates(work, 0, THIRD)
    return max(now / then for now, then in zip(late, early, strict=True))


def torment(run, seconds, longest):
    """A run whose samplers are killed all the time. Where the machine was busy in the last third it goes on, up to
    `longest`: what leaks never becomes faster again. Returns the process, kills, footprints, work, and how long."""
    process = start(run, "--stop.env-steps", 0, "--stop.seconds", longest + 30, "--checkpoint.every-seconds", 5)
    wait_for(lambda: steps(run) > 0, process=process)
    began, killed, samples, work, tree = time.monotonic(), 0, [], [], psutil.Process(process.pid)
    while (now := time.monotonic() - began) < seconds:
        victims = workers_named(process, "sampler")
        if victims and killed < KILLS * seconds / MINUTE and now > killed * (MINUTE - 8) / KILLS:
            victims[killed % len(victims)].kill()
            killed += 1
        samples.append((now, footprint(process)))
        cpu = sum(sum(p.cpu_times()[:2]) for p in (tree, *workers_named(process, "learner")))
        work.append((now, steps(run), cpu))
        time.sleep(0.5)
        if seconds < longest and time.monotonic() - began >= seconds and ratio(work, seconds) < 0.95:
            seconds += THIRD
    return process, killed, samples, work, seconds


def test_fifty_sampler_restarts_leak_no_memory_descriptors_or_threads(tmp_path):
    run, shm = tmp_path / "run", set(os.listdir("/dev/shm"))
    process, killed, samples, work, until = torment(run, MINUTE, MINUTE + PATIENCE * THIRD)
    zombies = [p for p in children(process) if p.status() == psutil.STATUS_ZOMBIE]
    time.sleep(2.0)  # the last restarted worker has started
    assert len(workers_named(process, "sampler")) == 3
    process.terminate()
    finish(process, 143)
    assert killed >= KILLS
    assert rows(run)[-1]["faults/sampler"] >= KILLS
    assert not zombies
    warm = [sample for now, sample in samples if WARM <= now < WARM + 10]
    late = [sample for now, sample in samples if now >= until - 10]
    for name in ("supervisor", "learner", "inference"):
        before, after = median_of(warm, name, 0), median_of(late, name, 0)
        print(f"{name}: {before:.1f} -> {after:.1f} MB")
        assert after - before <= GROWTH_MB, f"{name} grew from {before:.1f} to {after:.1f} MB"
        for what in (1, 2):
            # Fewest while a sampler is being restarted, so the largest count is that of all workers.
            assert median_of(late, name, what) <= max(s[name][what] for s in warm)
    assert set(os.listdir("/dev/shm")) <= shm
    assert not list(Path(run).glob("**/.0*"))  # half-written checkpoints
    print(f"last third of {until:g} s over the first: {ratio(work, until):.2f}")
    if ratio(work, until) < 0.95:  # the machine is slower than it was: then a run that has just begun is, too
        process, _, _, other, _ = torment(tmp_path / "fresh", THIRD, THIRD)
        process.terminate()
        finish(process, 143)
        tired, fresh = rates(work, until - THIRD, until), rates(other, 0, THIRD)
        print(f"steps/s by the clock and by CPU time: {tired} at the end, {fresh} of a run that has just begun")
        assert any(now >= 0.95 * then for now, then in zip(tired, fresh, strict=True))
