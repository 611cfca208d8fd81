"""Speed with several agents: against the library's loop, as a share of the roofline, and by the number of agents.

    python benchmarks/agents.py --write        writes benchmarks/results/agents.md; about three minutes

Three tables. Known environments: the library's plain loop and sfactory's group, one after the other in this process
with the same number of environments, then a whole run and its share of the roofline "torch, best batch". Many agents:
`Flock`, whose step costs little, with as many rows in every case, so that what is seen is the cost of agents. And
magent2's battle, if that is installed (`pip install --no-deps magent2`). Run it on a machine without other load.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from sfactory.config import Config, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.device.machine import cores
from sfactory.envs import make_group, make_spec, raw_loop
from sfactory.supervisor.cores import by_cores
from sfactory.tools.bench import machine, rows_per_step, trial, with_precision
from sfactory.tools.roofline import median_rate, random_steps, roofline

HERE = Path(__file__).parent
RESULT = HERE / "results" / "agents.md"
KNOWN = ("pettingzoo/mpe/simple_spread", "envpool/ConnectFour-v1")
ROWS = 400  # of a group: environments times agents
SIZES = (1, 10, 100, 400)


class Flock(ParallelEnv):
    """Points on a line see their own place and 15 numbers; each is paid for being near the mean. 100 steps."""

    metadata: ClassVar = {"name": "flock", "render_modes": []}
    render_mode = None

    def __init__(self, agents: int = 10) -> None:
        self.possible_agents = [f"agent_{number}" for number in range(agents)]
        self.space, self.actions = spaces.Box(-100, 100, (16,), np.float32), spaces.Discrete(3)

    def observation_space(self, agent: str) -> spaces.Box:
        return self.space

    def action_space(self, agent: str) -> spaces.Discrete:
        return self.actions

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        self.place = self.rng.normal(size=(len(self.agents), 16)).astype(np.float32)
        return dict(zip(self.agents, self.place, strict=True)), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        there, self.time = self.agents, self.time + 1
        self.place[:, 0] += np.array([actions[agent] for agent in there], np.float32) - 1
        reward = -np.abs(self.place[:, 0] - self.place[:, 0].mean())
        over = self.time == 100
        self.agents = [] if over else there
        obs = dict(zip(there, self.place.copy(), strict=True))
        rewards = dict(zip(there, reward.tolist(), strict=True))
        return obs, rewards, dict.fromkeys(there, False), dict.fromkeys(there, over), {}


def battle(**settings: Any) -> Any:
    """magent2's battle, if it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from magent2.environments import battle_v4

        return battle_v4.parallel_env(**settings)


def settings_of(target: str, **changes: Any) -> Config:
    """The settings of a target for this machine, with some changed."""
    return by_cores(with_settings(build(*target_layers(target), {}), changes), cores())


def rate(step: Callable[[], int], seconds: float) -> float:
    """Steps per second of one core."""
    return 1 / median_rate(step, seconds)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def known(target: str, seconds: float) -> list[str]:
    """One row of the first table."""
    config = settings_of(target)
    spec, of_rows = make_spec(target, config.env.options), []
    size = config.sampling.envs_per_group
    library = rate(raw_loop(target, size, 1, config.env.options), seconds / 4)
    group = make_group(target, size, list(range(1, size + 1)), config.env.options)
    own = rate(random_steps(group), seconds / 4)
    group.close()
    run = trial(config, seconds, lambda folder: of_rows.append(rows_per_step(folder)))
    per_step = of_rows[0] / spec.rows / (1 + 1 / run.row["charts/episodic_length"])
    share = (
        run.steps_per_second
        / roofline(with_precision(config, spec), spec, cores(), "cpu", seconds / 2).best_batch.steps_per_second
    )
    return [
        target, str(spec.rows), str(size), f"{library:,.0f}", f"{own:,.0f}", f"{run.steps_per_second:,.0f}",
        f"{run.steps_per_second * per_step:,.0f}", f"{100 * share:.0f} %", run.bottleneck,
    ]  # fmt: skip


def many(target: str, agents: int, envs: int, settings: dict[str, Any], seconds: float) -> list[str]:
    """One row of the second table. envs: of a group."""
    changes = {
        "env.settings": settings, "sampling.envs_per_group": envs, "sampling.rollout_length": 16,
        "sampling.num_samplers": 1, "batch.epochs": 1, "batch.minibatches": 2,
    }  # fmt: skip
    config = settings_of(target, **changes)
    group = make_group(target, envs, list(range(1, envs + 1)), config.env.options)
    own = rate(random_steps(group), seconds / 3)
    library = rate(plain_loop(group.envs), seconds / 3)
    group.close()
    run = trial(config, seconds)
    memory = run.memory_mb
    return [
        target.partition(":")[2], str(agents), str(envs), f"{library:,.0f}", f"{own:,.0f}",
        f"{run.steps_per_second:,.0f}", run.bottleneck, f"{memory.get('sampler-0', 0):.0f}",
        f"{sum(memory.values()):.0f}",
    ]  # fmt: skip


def plain_loop(envs: list[Any]) -> Callable[[], int]:
    """Random actions without sfactory; returns the number of agents that acted."""
    actions = {agent: [envs[0].action_space(agent).sample() for _ in range(64)] for agent in envs[0].possible_agents}
    for env in envs:
        env.reset(seed=1)
    turn = 0

    def step() -> int:
        nonlocal turn
        turn, acted = (turn + 1) % 64, 0
        for env in envs:
            acted += len(env.agents)
            env.step({agent: actions[agent][turn] for agent in env.agents})
            if not env.agents:
                env.reset()
        return acted

    return step


def page(seconds: float) -> str:
    """Measure everything; the page."""
    m, load = machine(), os.getloadavg()[0]
    version = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout
    lines = [
        "# Speed with several agents", "",
        f"Written by `benchmarks/agents.py --write`, whose first lines say what is compared. {m['date']}, commit "
        f"{version.strip()}, {m['cpu']}, {m['cores']} cores, torch {m['torch']}; load {load:.1f} at the start.", "",
        "An agent step is one action of one agent; an env step is one step of the environment, resets left out. Loops "
        "and groups run in one process, on one core; runs use all cores.", "",
        "## Known environments", "",
        *table(
            ["environment", "agents", "environments", "library's loop, agent steps/s", "group, agent steps/s",
             "run, agent steps/s", "run, env steps/s", "of torch, best batch", "bottleneck"],
            [known(target, seconds) for target in KNOWN],
        ),
        "", "## Many agents", "",
        f"Groups of {ROWS} rows, or of one environment; two groups, 16 steps, one epoch of 2 minibatches, one sampler. "
        "Memory: proportional set size.", "",
    ]  # fmt: skip
    cases = [("agents:Flock", agents, ROWS // agents, {"agents": agents}) for agents in SIZES]
    if importlib.util.find_spec("magent2"):
        cases.append(("agents:battle", 162, 2, {"map_size": 45, "max_cycles": 500}))
    os.chdir(HERE)  # the file of the environments
    return "\n".join(
        [
            *lines,
            *table(
                ["environment", "agents", "environments", "plain loop, agent steps/s", "group, agent steps/s",
                 "run, agent steps/s", "bottleneck", "sampler, MB", "all, MB"],
                [many(*case, seconds / 2) for case in cases],
            ),
            "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--write", action="store_true", help="write the page of results")
    args = parser.parse_args()
    began = time.monotonic()
    text = page(args.seconds)
    print(text)
    print(f"{time.monotonic() - began:.0f} s")
    if args.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
