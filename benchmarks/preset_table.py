"""Which presets `make scores` trains: steps, seeds, evaluation, published scores, rough cost.

A preset without a row here fails a test. Published scores are those that were found in the named source; where none was
found, the list is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scores import RETURN

CLEANRL = "[CleanRL](https://docs.cleanrl.dev/rl-algorithms/ppo/), last episodes of training"
CLEANRL_8M = "[CleanRL](https://docs.cleanrl.dev/rl-algorithms/rpo/), PPO beside RPO, last episodes of training"
ZOO = (
    "[rl-baselines3-zoo](https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md), PPO, one run, "
    "greedy evaluation"
)
ZOO_ATARI = ZOO.replace("greedy evaluation", "evaluation with sampled actions")
SAMPLE_FACTORY = (
    "[Sample Factory](https://github.com/alex-petrenko/sample-factory/blob/master/docs/09-environment-integrations/"
    "mujoco.md), the best of its runs, evaluated"
)
BASELINES = (
    "[OpenAI Baselines](https://github.com/openai/baselines/blob/master/benchmarks_mujoco1M.htm), ppo2, 6 seeds, in "
    "training"
)
IPPO = "[Papoudakis et al. 2021](https://arxiv.org/abs/2006.07869), IPPO with shared parameters, converted to mpe2"

SAMPLED = ("--episodes", "100", "--seed", "1000000")
"""Words behind `sfactory eval RUN`: actions are sampled as in training, in environments that training has not seen."""
AGAINST_RANDOM = ("--against", "random", "--episodes", "500", "--seed", "1000000")
"""A match, for self-play: seats alternate, and the score counts a draw as half a win."""


EACH_SECOND = ("--log.every-seconds", "1")
"""For runs of seconds: a row of metrics every 5 s would be too few for a curve."""


class Published(NamedTuple):
    """A score of others."""

    score: str
    what: str
    """Task and steps, as far as they differ from the preset's."""
    source: str


class Row(NamedTuple):
    """How a preset is trained and evaluated."""

    steps: int
    minutes: float
    """Rough cost of a run on two cores: the order of the runs and, until one has finished, the remaining time."""
    seeds: int = 3
    published: tuple[Published, ...] = ()
    evaluation: tuple[str, ...] = SAMPLED
    flags: tuple[str, ...] = ()
    """Further flags of `sfactory train`, which change no training."""
    changes: tuple[str, ...] = ()
    """Flags that do change it, where the preset as typed takes days on two cores; shown wherever the score is."""
    metric: str = RETURN
    """What the learning curve shows."""


MINATAR, PQN = 2_000_000, 2_000_000
MUJOCO = 1_000_000
ATARI = 2_000_000
"""Two cores make them in 35 minutes (with bf16) to 70."""

TABLE: dict[str, Row] = {
    "classic/cartpole": Row(150_000, 0.3, flags=EACH_SECOND, published=(
        Published("490.0 ± 6.1", "500k steps", CLEANRL), Published("500.0", "100k steps", ZOO))),
    "classic/acrobot": Row(300_000, 0.5, flags=EACH_SECOND, published=(
        Published("-86.4 ± 1.3", "500k steps", CLEANRL), Published("-73.5", "1M steps", ZOO))),
    "classic/pendulum": Row(300_000, 0.6, flags=EACH_SECOND, published=(
        Published("-172.2", "100k steps", ZOO),)),
    "minatar/breakout": Row(MINATAR, 2, seeds=5),
    "minatar/asterix": Row(MINATAR, 2, seeds=5),
    "minatar/freeway": Row(MINATAR, 2.5, seeds=5),
    "minatar/seaquest": Row(MINATAR, 2.5, seeds=5),
    "minatar/space_invaders": Row(MINATAR, 3.5, seeds=5),
    "memory/tmaze": Row(500_000, 3),
    "memory/cartpole": Row(500_000, 3),
    "pqn/minatar/breakout": Row(PQN, 4, seeds=5),
    "pqn/minatar/asterix": Row(PQN, 4, seeds=5),
    "pqn/minatar/freeway": Row(PQN, 4.5, seeds=5),
    "pqn/minatar/seaquest": Row(PQN, 4.5, seeds=5),
    "pqn/minatar/space_invaders": Row(PQN, 5.5, seeds=5),
    "mujoco/inverted_pendulum": Row(MUJOCO, 1.5, published=(
        Published("963.1 ± 22.2", "v4, 1M steps", CLEANRL), Published("1000 ± 0", "v4, 10M steps", SAMPLE_FACTORY))),
    "mujoco/inverted_double_pendulum": Row(MUJOCO, 2.3, published=(
        Published("5626 ± 289", "v4, 8M steps", CLEANRL_8M),
        Published("7103", "v2, 1M steps", BASELINES),
        Published("9350 ± 1", "v4, 10M steps", SAMPLE_FACTORY))),
    "mujoco/reacher": Row(MUJOCO, 1.8, published=(
        Published("-4.65 ± 0.96", "v4, 8M steps", CLEANRL_8M),
        Published("-6.7", "v2, 1M steps", BASELINES),
        Published("-4.53 ± 1.79", "v4, 10M steps", SAMPLE_FACTORY))),
    "mujoco/swimmer": Row(MUJOCO, 2, published=(
        Published("124.9 ± 22.2", "v4, 8M steps", CLEANRL_8M),
        Published("111", "v2, 1M steps, gamma 0.99", BASELINES),
        Published("281.6", "v3, 1M steps, gamma 0.9999", ZOO),
        Published("117.3 ± 2.9", "v4, 10M steps", SAMPLE_FACTORY))),
    "mujoco/hopper": Row(MUJOCO, 2.2, published=(
        Published("2383 ± 272", "v4, 1M steps", CLEANRL), Published("2410", "v3, 1M steps", ZOO),
        Published("2793 ± 643", "v4, 10M steps", SAMPLE_FACTORY))),
    "mujoco/walker2d": Row(MUJOCO, 2.7, published=(
        Published("2288 ± 572", "v4, 1M steps", CLEANRL), Published("3479", "v3, 1M steps", ZOO),
        Published("5488 ± 49", "v4, 10M steps", SAMPLE_FACTORY))),
    "mujoco/halfcheetah": Row(MUJOCO, 1.6, published=(
        Published("1443 ± 46", "v4, 1M steps", CLEANRL), Published("5819", "v3, 1M steps", ZOO),
        Published("6263 ± 67", "v4, 10M steps", SAMPLE_FACTORY))),
    "mujoco/ant": Row(MUJOCO, 4.6, published=(
        Published("1824 ± 906", "v4, 8M steps", CLEANRL_8M),
        Published("1327.2", "v3, 1M steps", ZOO),
        Published("5876 ± 167", "v4, another task: 27 observations, not 105; 10M steps", SAMPLE_FACTORY))),
    "mujoco/humanoid": Row(MUJOCO, 7, published=(
        Published("716 ± 49", "v4, 1M steps", CLEANRL), Published("5439 ± 1314", "v4, 10M steps", SAMPLE_FACTORY))),
    "selfplay/connect_four": Row(1_500_000, 4.4, evaluation=AGAINST_RANDOM, metric="selfplay/elo"),
    "pettingzoo/mpe/simple_spread": Row(4_000_000, 14, published=(
        Published("-9.76", "20M steps of the environment, 60M of agents", IPPO),)),
    "pettingzoo/butterfly/pistonball": Row(250_000, 5),
    "atari/pong": Row(3_000_000, 60, published=(
        Published("20.4 ± 0.2", "10M steps", CLEANRL), Published("21.0", "10M steps", ZOO_ATARI))),
    "atari/breakout": Row(ATARI, 36, published=(
        Published("414.7 ± 28.1", "10M steps", CLEANRL), Published("398.0", "10M steps", ZOO_ATARI))),
    "atari/qbert": Row(ATARI, 36, published=(
        Published("15627", "10M steps", ZOO_ATARI),)),
    "atari/beam_rider": Row(ATARI, 36, published=(
        Published("1916 ± 485", "10M steps", CLEANRL), Published("3397", "10M steps", ZOO_ATARI))),
    "procgen/coinrun": Row(500_000, 4.7, changes=("--model.encoder", "nature")),
    "impala/atari/breakout": Row(400_000, 35),
    "vizdoom/basic": Row(500_000, 11),
}  # fmt: skip
"""Preset, or a task of a family -> its row."""


def by_cost(table: Mapping[str, Row]) -> list[str]:
    """Names of the table, the cheapest first."""
    return sorted(table, key=lambda name: table[name].minutes)
