"""Sample Factory 2.1.1 on one workload, run by the Python it is installed in; prints one line of JSON at the end.

    python sf.py WORKLOAD --seconds 20 [--door batched]     steps per second, from its own counters
    python sf.py WORKLOAD --target 9                        seconds until its mean return is there

`--door batched` is for MinAtar alone: many games behind one vector environment, written for this comparison, which
spares Sample Factory its per-environment work.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from functools import partial

import gymnasium
import numpy as np
import torch
from games import ENVS, MinAtarGame
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.encoder import Encoder
from sample_factory.train import make_runner
from torch import nn

STARTED = time.time()


class Conv16(Encoder):
    """MinAtar's network."""

    def __init__(self, cfg, space):
        super().__init__(cfg)
        channels = space["obs"].shape[0]
        self.net = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU())

    def forward(self, obs):
        return self.net(obs["obs"])

    def get_out_size(self):
        return 128


class Nature(Conv16):
    """DQN's network."""

    def __init__(self, cfg, space):
        Encoder.__init__(self, cfg)
        self.net = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(),
        )  # fmt: skip

    def get_out_size(self):
        return 512


class Batched(gymnasium.Env):
    """Many games as the agents of one environment that takes and gives tensors."""

    def __init__(self, game: str, games: int):
        self.games = [MinAtarGame(game, channels_first=True) for _ in range(games)]
        self.observation_space, self.action_space = self.games[0].observation_space, self.games[0].action_space
        self.num_agents, self.is_multiagent, self.render_mode = games, True, None
        self.seen = np.zeros((games, *self.observation_space.shape), np.float32)

    def reset(self, seed=None, options=None):
        for number, game in enumerate(self.games):
            self.seen[number] = game.reset(seed=(seed or 0) + number)[0]
        return torch.from_numpy(self.seen.copy()), {}

    def step(self, actions):
        rewards, over = np.zeros(len(self.games), np.float32), np.zeros(len(self.games), bool)
        for number, (game, action) in enumerate(zip(self.games, actions.tolist(), strict=True)):
            obs, rewards[number], over[number], _, _ = game.step(action)
            self.seen[number] = game.reset()[0] if over[number] else obs
        ends = torch.from_numpy(over)
        return torch.from_numpy(self.seen.copy()), torch.from_numpy(rewards), ends, torch.zeros_like(ends), {}


def build(workload, door, full_env_name, cfg=None, env_config=None, render_mode=None):
    if door == "batched":
        return Batched(workload, 128)
    return MinAtarGame("breakout", channels_first=True) if workload == "breakout" else ENVS[workload]()


def encoder(cfg, space):
    return (Conv16 if space["obs"].shape[0] != 4 or space["obs"].shape[1] == 10 else Nature)(cfg, space)


SETTINGS = {  # the fastest found on two cores
    "breakout": "--num_workers=2 --num_envs_per_worker=32 --worker_num_splits=2 --rollout=32 --batch_size=4096",
    "breakout batched": "--num_workers=1 --num_envs_per_worker=2 --worker_num_splits=2 --rollout=32 --batch_size=8192 "
    "--batched_sampling=True",
    "pong": "--num_workers=2 --num_envs_per_worker=8 --worker_num_splits=2 --rollout=32 --batch_size=1024",
    "halfcheetah": "--num_workers=2 --num_envs_per_worker=16 --worker_num_splits=2 --rollout=64 --batch_size=4096",
    "cartpole": "--num_workers=1 --num_envs_per_worker=8 --worker_num_splits=2 --rollout=32 --batch_size=1024",
}

if __name__ == "__main__":
    words = sys.argv[1:]
    workload = words.pop(0)
    given = dict(zip(words[::2], words[1::2], strict=True))
    door, target = given.get("--door", ""), given.get("--target")
    seconds = float(given.get("--seconds", 20.0))
    register_env(workload, partial(build, workload, door))
    if workload in ("breakout", "pong"):
        global_model_factory().register_encoder_factory(encoder)
    folder = tempfile.mkdtemp(prefix="peer-sf-")
    epochs = given.get("--epochs", "2" if workload == "halfcheetah" else "1")
    argv = f"--algo=APPO --env={workload} --experiment=x --train_dir={folder} --device=cpu --use_rnn=False --seed=1 "
    argv += f"--num_epochs={epochs} --num_batches_per_epoch=1 --normalize_input=False --with_vtrace=False "
    argv += "--max_policy_lag=1000000 --save_every_sec=10000 --experiment_summaries_interval=1000 --async_rl=True "
    argv += "--encoder_mlp_layers 64 64 --nonlinearity=tanh --adaptive_stddev=False "
    argv += f"--train_for_seconds=900 {SETTINGS[f'{workload} {door}'.strip()]}"
    parser, _ = parse_sf_args(argv.split())
    cfg = parse_full_cfg(parser, argv.split())
    cfg, runner = make_runner(cfg)
    marks, reached = [], []

    def watch(run):
        now = (time.time(), sum(run.env_steps.values()))
        if now[1] and (not marks or now[1] > marks[-1][1]):
            marks.append(now)
        stats = run.policy_avg_stats.get("reward", [[]])[0]
        if target and len(stats) >= 100 and np.mean(stats) >= float(target) and not reached:
            reached.append((now[0] - STARTED, now[1]))
        if reached or (marks and not target and now[0] - marks[0][0] > seconds + 4):
            run._should_end_training = lambda: True

    class Watch(AlgoObserver):
        def on_training_step(self, runner, training_iteration_since_resume):
            watch(runner)

    runner.register_observer(Watch())
    runner.init()
    runner.run()
    shutil.rmtree(folder, ignore_errors=True)
    late = [mark for mark in marks if mark[0] - marks[0][0] > 4.0] or marks
    found = {"steps_per_second": (late[-1][1] - late[0][1]) / max(late[-1][0] - late[0][0], 1e-9)}
    if target:
        found |= {"seconds": reached[0][0] if reached else None, "steps": reached[0][1] if reached else None}
    print(json.dumps(found))
