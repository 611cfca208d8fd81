"""Sample Factory 2.1.1 on one workload, run by the Python it is installed in; prints one line of JSON at the end.

    python sf.py WORKLOAD --seconds 20 [--door batched]     steps per second, from its own counters
    python sf.py WORKLOAD --target 9                        seconds until its mean return is there

With `--settings preset` the batches, passes and coefficients are those of sfactory's preset.
`--door batched` is for MinAtar alone: many games behind one vector environment, written for this comparison, which
spares Sample Factory its per-environment work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from functools import partial

import gymnasium
import numpy as np
import torch
from games import ENVS, MinAtarGame
from marks import Marks
from preset import preset
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


def as_preset(workload):
    """The batches, passes and coefficients of sfactory's preset; rate and entropy bonus stay."""
    p = preset(workload)
    v = p.values
    flags = {
        "num_workers": 2, "num_envs_per_worker": p.envs // 2, "worker_num_splits": 2, "rollout": p.rollout_length,
        "batch_size": p.minibatch_rows, "num_batches_per_epoch": p.minibatches, "num_epochs": p.epochs,
        "learning_rate": v["lr"], "adam_eps": v["eps"], "max_grad_norm": v["max_grad_norm"],
        "gamma": v["gamma"], "gae_lambda": v["trace_lambda"], "ppo_clip_ratio": v["clip"],
        "value_loss_coeff": v["value_coef"], "exploration_loss_coeff": v["entropy_coef"],
        "actor_critic_share_weights": not v["separate"], "normalize_input": v["obs"],
    }  # fmt: skip
    return " ".join(f"--{name}={value}" for name, value in flags.items())


def settings(args):
    """Command line of Sample Factory, without the folder."""
    epochs = 2 if args.workload == "halfcheetah" else 1
    fastest = SETTINGS.get(f"{args.workload} {args.door}".strip(), "")
    fastest += f" --num_epochs={epochs} --num_batches_per_epoch=1 --normalize_input=False"
    return (
        f"--algo=APPO --env={args.workload} --experiment=x --device=cpu --use_rnn=False --seed={args.seed} "
        "--with_vtrace=False --max_policy_lag=1000000 --save_every_sec=10000 --experiment_summaries_interval=1000 "
        "--async_rl=True --encoder_mlp_layers 64 64 --nonlinearity=tanh --adaptive_stddev=False "
        f"--train_for_seconds={args.limit:.0f} {as_preset(args.workload) if args.settings == 'preset' else fastest}"
    )


class Watch(AlgoObserver):
    """Notes the time of every training step; ends the run when it is measured, or at the target."""

    def __init__(self, args):
        self.marks, self.target, self.limit, self.reached = Marks(args.seconds), args.target, args.limit, None

    def on_training_step(self, runner, training_iteration_since_resume):
        now, steps = time.time(), sum(runner.env_steps.values())
        self.marks.add(now, steps)
        rewards = runner.policy_avg_stats.get("reward", [[]])[0]
        if self.target is not None and len(rewards) >= 100 and np.mean(rewards) >= self.target and not self.reached:
            self.reached = (now - STARTED, steps)
        # train_for_seconds is checked too rarely: a run of 8 s took 80
        over = self.marks.enough(now) if self.target is None else now - STARTED > self.limit
        if self.reached or over:
            runner._should_end_training = lambda: True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--door", default="")
    parser.add_argument("--settings", choices=("fastest", "preset"), default="fastest")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--target", type=float)
    parser.add_argument("--limit", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    register_env(args.workload, partial(build, args.workload, args.door))
    if args.workload in ("breakout", "pong"):
        global_model_factory().register_encoder_factory(encoder)
    folder = tempfile.mkdtemp(prefix="peer-sf-")
    argv = [*settings(args).split(), f"--train_dir={folder}"]
    parser, _ = parse_sf_args(argv)
    cfg, runner = make_runner(parse_full_cfg(parser, argv))
    watch = Watch(args)
    runner.register_observer(watch)
    runner.init()
    runner.run()
    shutil.rmtree(folder, ignore_errors=True)
    if args.target is None:
        print(json.dumps({"steps_per_second": watch.marks.speed()}))
    else:
        seconds, steps = watch.reached or (None, None)
        print(json.dumps({"seconds": seconds, "steps": steps}))
