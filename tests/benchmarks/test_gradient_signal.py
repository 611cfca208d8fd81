"""The share of signal in gradients, from the moments of Adam."""

import numpy as np
import pytest
from gradient_signal import of_checkpoint, signal
from invariance import REFERENCE

BETAS = REFERENCE["optim.beta1"], REFERENCE["optim.beta2"]


def moments(mean, deviation, steps, weights=2000):
    """Adam's moments after some steps with gradients of this mean and standard deviation."""
    draws, m, v = np.random.default_rng(0), np.zeros(weights), np.zeros(weights)
    for _ in range(steps):
        gradient = mean + deviation * draws.standard_normal(weights)
        m += (1 - BETAS[0]) * (gradient - m)
        v += (1 - BETAS[1]) * (gradient**2 - v)
    return m, v


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0), (3.0, 9.0)])
@pytest.mark.parametrize("steps", [60, 400])
def test_signal_is_the_square_of_the_mean_over_the_variance(mean, expected, steps):
    assert signal([moments(mean, 1.0, steps)], steps, BETAS) == pytest.approx(expected, rel=0.1, abs=0.01)


def test_signal_without_noise_is_infinite():
    assert signal([moments(1.0, 0.0, 50)], 50, BETAS) > 1e6


def test_checkpoint_is_divided_into_policy_and_value_function():
    noise, signals = moments(0.0, 1.0, 100), moments(2.0, 1.0, 100)
    names = ("trunk.layers.weight", "critic.layers.weight", "policy_head.bias", "value_head.bias")
    optimizer = {}
    for number, (m, v) in enumerate((noise, signals, noise, signals)):
        optimizer |= {f"{number}.exp_avg": m, f"{number}.exp_avg_sq": v, f"{number}.step": np.array(100.0)}
    policy, value = of_checkpoint(names, optimizer)
    assert policy == pytest.approx(0.0, abs=0.01)
    assert value == pytest.approx(4.0, rel=0.05)
    assert of_checkpoint(names, {}) is None
