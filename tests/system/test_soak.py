"""A minute of training with samplers killed all the time: nothing grows, nothing is left, nothing slows down."""

import os
import statistics
import time
from pathlib import Path

import psutil
import pytest
from running import children, finish, named, rows, start, steps, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.alone]

MINUTE, KILLS, WARM = 60.0, 50, 20.0
GROWTH_MB = 2.0


def footprint(process):
    """Unique memory in MB, descriptors and threads of every worker that lives through the minute."""
    alive = {"supervisor": psutil.Process(process.pid)}
    alive |= {kind: named(process, kind)[0] for kind in ("learner", "inference")}
    return {
        name: (p.memory_full_info().uss / 2**20, p.num_fds(), p.num_threads())
        for name, p in alive.items()
    }


def median_of(samples, name, what):
    return statistics.median(sample[name][what] for sample in samples)


def test_a_minute_with_fifty_respawns_leaves_memory_descriptors_and_threads_as_they_were(tmp_path):
    run, shm = tmp_path / "run", set(os.listdir("/dev/shm"))
    process = start(run, "--stop.env-steps", 0, "--stop.seconds", MINUTE + 30, "--checkpoint.every-seconds", 5)
    wait_for(lambda: steps(run) > 0, process=process)
    began, killed, samples, work = time.monotonic(), 0, [], []
    tree = psutil.Process(process.pid)
    while (now := time.monotonic() - began) < MINUTE:
        if killed < KILLS and now > killed * (MINUTE - 8) / KILLS:
            victims = named(process, "sampler")
            if victims:
                victims[killed % len(victims)].kill()
                killed += 1
        samples.append((now, footprint(process)))
        cpu = sum(sum(p.cpu_times()[:2]) for p in (tree, *named(process, "learner")))
        work.append((now, steps(run), cpu))
        time.sleep(0.5)
    zombies = [p for p in children(process) if p.status() == psutil.STATUS_ZOMBIE]
    time.sleep(2.0)  # the last newborn is there
    assert len(named(process, "sampler")) == 3
    process.terminate()
    finish(process, 143)
    assert killed == KILLS
    assert rows(run)[-1]["faults/sampler"] >= KILLS
    assert not zombies
    warm = [sample for now, sample in samples if WARM <= now < WARM + 10]
    late = [sample for now, sample in samples if now >= MINUTE - 10]
    for name in ("supervisor", "learner", "inference"):
        before, after = median_of(warm, name, 0), median_of(late, name, 0)
        print(f"{name}: {before:.1f} -> {after:.1f} MB")
        assert after - before <= GROWTH_MB, f"{name} grew from {before:.1f} to {after:.1f} MB"
        for what in (1, 2):
            # A sampler between death and birth takes some with it: whole families have the most.
            assert max(s[name][what] for s in late) <= max(s[name][what] for s in warm)
    assert set(os.listdir("/dev/shm")) <= shm
    assert not list(Path(run).glob("**/.0*"))  # half-written checkpoints

    def rate(first, last, axis):
        part = [w for w in work if first <= w[0] <= last]
        return (part[-1][1] - part[0][1]) / (part[-1][axis] - part[0][axis])

    # Steps per second of the clock, or of the learner's own CPU time: neighbours slow one or the other, a leak both.
    ratios = [rate(2 / 3 * MINUTE, MINUTE, axis) / rate(0, MINUTE / 3, axis) for axis in (0, 2)]
    print(f"last third over first third: {ratios[0]:.2f} by the clock, {ratios[1]:.2f} by CPU time")
    assert max(ratios) >= 0.95
