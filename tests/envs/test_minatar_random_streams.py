"""Random numbers read ahead: equal to those of one RandomState per game, to the last bit."""

import json

import numpy as np
from sfactory_envs.minatar_rules import RandomStreams

from sfactory.envs.saved_state import decode, encode

SEEDS = [0, 5, 2**31 - 1]


def streams(seeds):
    made = RandomStreams(len(seeds))
    for env, seed in enumerate(seeds):
        made.seed(env, seed)
    return made, [np.random.RandomState(seed) for seed in seeds]


def compare(ours, stock, draws, calls):
    """Draw in a random order of kinds, and not from all games equally often."""
    for _ in range(calls):
        kind, env = draws.integers(0, 3), int(draws.integers(0, len(stock)))
        if kind == 0:
            envs = np.flatnonzero(draws.random(len(stock)) < [0.9, 0.5, 0.1])
            assert ours.uniforms(envs).tolist() == [stock[env].random_sample() for env in envs]
        elif kind == 1:
            assert ours.uniform(env) == stock[env].rand()
        else:
            size = int(draws.integers(1, 17))
            assert ours.below(env, size) == stock[env].randint(size)


def test_random_streams_equal_random_states_bit_for_bit():
    compare(*streams(SEEDS), np.random.default_rng(0), 6000)


def test_random_streams_seed_begins_one_stream_anew():
    ours, stock = streams(SEEDS)
    draws = np.random.default_rng(1)
    compare(ours, stock, draws, 700)
    ours.seed(1, 77)
    stock[1] = np.random.RandomState(77)
    compare(ours, stock, draws, 700)


def test_random_streams_continue_after_a_snapshot():
    ours, stock = streams(SEEDS)
    draws = np.random.default_rng(2)
    for calls in (0, 1, 450, 900):
        compare(ours, stock, draws, calls)
        state = json.loads(json.dumps(encode(ours.snapshot())))
        ours = RandomStreams(3)
        ours.restore(decode(state))
    compare(ours, stock, draws, 2000)
