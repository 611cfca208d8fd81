"""The model of `benchmarks/scaling.py`, with round numbers."""

import pytest
from scaling import HandOver, Processes, Work, limits

HAND_OVER = HandOver(act=20e-6, turn=60e-6, group=10e-6)
WORK = Work(environment=100e-6, network=5e-6, learner=50e-6)


def test_limits_of_scaling_add_up_what_each_kind_of_worker_spends_per_step():
    allowed = limits(HAND_OVER, WORK, Processes(samplers=4, groups=2, envs=10, workers=1, threads=2), 16)
    assert allowed["samplers"] == pytest.approx(4 / 102e-6)
    assert allowed["inference"] == pytest.approx(1 / 7.5e-6), "4 of 8 groups wait: 25 us per group of 10"
    assert allowed["learner"] == pytest.approx(2 / 50e-6)
    assert allowed["cores"] == pytest.approx(16 / 159.5e-6)


def test_limits_of_scaling_use_the_groups_per_pass_that_a_run_had():
    p = Processes(samplers=4, groups=2, envs=10, workers=2, threads=1)
    assert limits(HAND_OVER, WORK, p, 2)["inference"] == pytest.approx(2 / 9e-6), "2 of each worker's 4 groups"
    assert limits(HAND_OVER, WORK, p, 2, waiting=1.0)["inference"] == pytest.approx(2 / 12e-6)
