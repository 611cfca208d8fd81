"""stable-baselines3's PPO on one workload, run by the Python it is installed in; prints one line of JSON.

python sb3.py WORKLOAD --seconds 20           steps per second, after the first rollouts
python sb3.py WORKLOAD --target 9             seconds until the mean return of the last 100 games is there
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from games import ENVS, MinAtarGame, pong
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor
from torch import nn

STARTED = time.time()


class Conv16(BaseFeaturesExtractor):
    """MinAtar's network: 16 filters of 3x3, then 128."""

    def __init__(self, space):
        super().__init__(space, 128)
        self.net = nn.Sequential(
            nn.Conv2d(space.shape[0], 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU()
        )

    def forward(self, obs):
        return self.net(obs)


class Watch(BaseCallback):
    """Notes the time of every rollout; stops after `seconds` of them, or at a training return of `target`."""

    def __init__(self, seconds: float, target: float | None):
        super().__init__()
        self.seconds, self.target, self.marks, self.reached = seconds, target, [], None

    def _on_step(self) -> bool:
        if self.reached:
            return False
        return self.target is not None or not self.marks or time.time() - self.marks[0][0] < self.seconds

    def _on_rollout_end(self) -> None:
        self.marks.append((time.time(), self.num_timesteps))
        games = [game["r"] for game in self.model.ep_info_buffer]
        if self.target is not None and len(games) == 100 and np.mean(games) >= self.target:
            self.reached = (time.time() - STARTED, self.num_timesteps)


def throughput(workload: str, threads: int):
    """The fastest settings found for each workload: one epoch, the same network as the others."""
    torch.set_num_threads(threads)
    if workload == "breakout":
        env = DummyVecEnv([lambda: MinAtarGame("breakout", channels_first=True)] * 64)
        policy = dict(features_extractor_class=Conv16, net_arch=[], normalize_images=False)
        return PPO("CnnPolicy", VecMonitor(env), n_steps=64, batch_size=4096, n_epochs=1, policy_kwargs=policy)
    if workload == "pong":
        env = SubprocVecEnv([pong] * 16, start_method="fork")
        return PPO("CnnPolicy", VecMonitor(env), n_steps=64, batch_size=256, n_epochs=1)
    games = [ENVS[workload]] * 16
    env = SubprocVecEnv(games, start_method="fork") if threads > 1 else DummyVecEnv(games)
    policy = dict(net_arch=dict(pi=[64, 64], vf=[64, 64]))
    return PPO("MlpPolicy", VecMonitor(env), n_steps=256, batch_size=4096, n_epochs=1, policy_kwargs=policy)


def to_score(workload: str, seed: int):
    """Settings that learn: rl-baselines3-zoo's for CartPole; for Breakout CleanRL's with a higher rate."""
    if workload == "cartpole":
        env = DummyVecEnv([ENVS["cartpole"]] * 8)
        return PPO(
            "MlpPolicy", VecMonitor(env), n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8,
            learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left, seed=seed,
        )  # fmt: skip
    env = DummyVecEnv([lambda: MinAtarGame("breakout", channels_first=True)] * 32)
    policy = dict(features_extractor_class=Conv16, net_arch=[], normalize_images=False)
    return PPO(
        "CnnPolicy", VecMonitor(env), n_steps=64, batch_size=256, n_epochs=4, learning_rate=1e-3, clip_range=0.1,
        ent_coef=0.01, gae_lambda=0.95, policy_kwargs=policy, seed=seed,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--target", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    watch = Watch(args.seconds, args.target)
    if args.target is None:
        model = throughput(args.workload, args.threads)
    else:
        torch.set_num_threads(args.threads)
        model = to_score(args.workload, args.seed)
    model.learn(100_000 if args.workload == "cartpole" and args.target else 10_000_000, callback=watch)
    (t0, n0), (t1, n1) = watch.marks[min(2, len(watch.marks) - 2)], watch.marks[-1]
    found = {"steps_per_second": (n1 - n0) / (t1 - t0)}
    if args.target is not None:
        found |= {"seconds": watch.reached and watch.reached[0], "steps": watch.reached and watch.reached[1]}
    print(json.dumps(found))
