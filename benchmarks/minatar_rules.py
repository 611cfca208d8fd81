"""Compare the time of a MinAtar group with that of an earlier commit, game by game, interleaved.

    python benchmarks/minatar_rules.py OLD [--envs 16,128] [--games breakout,seaquest] [--rounds 5]

OLD is a commit before 2026-11-30 whose group steps the package's own games (`group.games`). The scripted players of
the tests play it once, then both groups repeat the same actions with the same seeds, which is the same play frame by
frame. Time is CPU time per environment step, the median of the rounds; which group is first changes every round.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "envs")]

from minatar_players import PLAYERS  # noqa: E402
from sfactory_envs import minatar as new_family  # noqa: E402

STEPS, ENVS = 1500, 16
SKILL = 0.95  # share of the scripted player's actions; the others are random


def family_of(commit: str) -> Any:
    """Import `envs/minatar.py` of a commit."""
    source = subprocess.run(
        ["git", "show", f"{commit}:envs/minatar.py"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "minatar_before.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("minatar_before", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def group_of(family: Any, game: str, num_envs: int) -> Any:
    """Build and reset a group. Seeds repeat every 16 environments, as the recorded actions do."""
    group = family.make(game, num_envs=num_envs, seeds=[env % ENVS for env in range(num_envs)])
    group.reset()
    return group


def recorded(family: Any, game: str) -> np.ndarray:
    """Play 16 games of the package; return the actions, [STEPS, 16]."""
    group, draws = group_of(family, game, ENVS), np.random.default_rng(0)
    actions = np.zeros((STEPS, ENVS), np.int64)
    for row in actions:
        for env, stock in enumerate(group.games):
            row[env] = PLAYERS[game](stock, draws) if draws.random() < SKILL else draws.integers(6)
        group.step({"action": row})
    return actions


def seconds(family: Any, game: str, actions: np.ndarray) -> tuple[float, float]:
    """Return the CPU seconds of stepping a group through `actions` [T, E], and the sum of its rewards."""
    group = group_of(family, game, actions.shape[1])
    begin, reward = time.process_time(), 0.0
    for row in actions:
        reward += float(group.step({"action": row}).reward.sum())
    return time.process_time() - begin, reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="commit whose group steps the package's own games")
    parser.add_argument("--envs", default="16,128", help="sizes of the group, with commas")
    parser.add_argument("--games", default=",".join(PLAYERS), help="games, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    families = {"package": family_of(args.old), "arrays": new_family}
    print(f"{'game':16}{'envs':>5}{'package':>9}{'arrays':>8} us per environment step{'times':>7}")
    for game in args.games.split(","):
        actions = recorded(families["package"], game)
        for num_envs in map(int, args.envs.split(",")):
            steps = max(300, min(STEPS, STEPS * ENVS // num_envs))
            wide = np.tile(actions[:steps], (1, -(-num_envs // ENVS)))[:, :num_envs]
            times: dict[str, list[float]] = {name: [] for name in families}
            for number in range(args.rounds):
                rewards = set()
                for name in sorted(families, reverse=bool(number % 2)):
                    spent, reward = seconds(families[name], game, wide)
                    times[name].append(spent / wide.size * 1e6)
                    rewards.add(reward)
                assert len(rewards) == 1, "the two groups did not play the same games"
            old, new = (statistics.median(times[name]) for name in families)
            print(f"{game:16}{num_envs:5}{old:9.2f}{new:8.2f}{old / new:31.1f}", flush=True)


if __name__ == "__main__":
    main()
