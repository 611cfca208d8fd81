"""stable-baselines3's PPO on one workload, run by the Python it is installed in; prints one line of JSON.

python sb3.py WORKLOAD --seconds 20           steps per second, after the first rollouts
python sb3.py WORKLOAD --settings zoo --target 9    seconds until the mean return of the last 100 games is there

With `--settings preset` the batches, passes and coefficients are those of sfactory's preset; the others
are published settings (published.py), `fastest` the fastest ones found for one pass over the data.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from games import ENVS, MinAtarGame, pong
from marks import Marks
from preset import preset
from published import SETTINGS, SOURCES
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize
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


CONV16 = dict(features_extractor_class=Conv16, net_arch=[], normalize_images=False)


def maker(workload: str):
    """A function that makes one environment of a workload."""
    return (lambda: MinAtarGame("breakout", channels_first=True)) if workload == "breakout" else ENVS[workload]


def policy_of(workload: str) -> str:
    """stable-baselines3's name of the policy."""
    return "CnnPolicy" if workload in ("breakout", "pong") else "MlpPolicy"


def linear(start: float, share: float = 1.0):
    """A schedule from a value to 0 over the run, or over this share at its end."""
    return lambda left: start * min(left / share, 1.0)


class EntropyBonus(BaseCallback):
    """Moves the weight of the entropy bonus on a line over the run, which PPO's arguments do not offer."""

    def __init__(self, first: float, last: float):
        super().__init__()
        self.first, self.last = first, last

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        left = 1 - self.num_timesteps / self.model._total_timesteps
        self.model.ent_coef = self.last + (self.first - self.last) * left


class Watch(BaseCallback):
    """Notes the time of every rollout; ends the run when it is measured, at the target, or after `limit` seconds."""

    def __init__(self, seconds: float, target: float | None, limit: float):
        super().__init__()
        self.marks, self.target, self.limit, self.reached = Marks(seconds), target, limit, None

    def _on_step(self) -> bool:
        if self.target is None:
            return not self.marks.enough(time.time())
        return not self.reached and time.time() - STARTED < self.limit

    def _on_rollout_end(self) -> None:
        self.marks.add(time.time(), self.num_timesteps)
        games = [game["r"] for game in self.model.ep_info_buffer]
        if self.target is not None and len(games) == 100 and np.mean(games) >= self.target:
            self.reached = (time.time() - STARTED, self.num_timesteps)


def throughput(workload: str, threads: int):
    """The fastest settings found for each workload: one epoch, the same network as the others."""
    if workload == "breakout":
        env = DummyVecEnv([maker("breakout")] * 64)
        return PPO("CnnPolicy", VecMonitor(env), n_steps=64, batch_size=4096, n_epochs=1, policy_kwargs=CONV16)
    if workload == "pong":
        env = SubprocVecEnv([pong] * 16, start_method="fork")
        return PPO("CnnPolicy", VecMonitor(env), n_steps=64, batch_size=256, n_epochs=1)
    games = [ENVS[workload]] * 16
    env = SubprocVecEnv(games, start_method="fork") if threads > 1 else DummyVecEnv(games)
    policy = dict(net_arch=dict(pi=[64, 64], vf=[64, 64]))
    return PPO("MlpPolicy", VecMonitor(env), n_steps=256, batch_size=4096, n_epochs=1, policy_kwargs=policy)


def as_published(workload: str, source: str, seed: int):
    """Settings that others have published for a workload."""
    found = SETTINGS[source, workload]
    env = VecMonitor(DummyVecEnv([maker(workload)] * found.envs))
    if found.normalized:
        env = VecNormalize(env, gamma=found.ppo["gamma"])
    network = {**found.network, **(CONV16 if workload == "breakout" else {})}
    if "activation_fn" in network:
        network["activation_fn"] = getattr(nn, network["activation_fn"])
    arguments = {name: linear(value[1]) if isinstance(value, tuple) else value for name, value in found.ppo.items()}
    return PPO(policy_of(workload), env, policy_kwargs=network, seed=seed, **arguments)


def as_preset(workload: str, seed: int):
    """The batches, passes and coefficients of sfactory's preset, and its network."""
    p = preset(workload)
    v, lr = p.values, p.values["lr"]
    games = [maker(workload)] * p.envs
    env = VecMonitor(SubprocVecEnv(games, start_method="fork") if workload == "pong" else DummyVecEnv(games))
    if v["obs"]:
        env = VecNormalize(env, norm_reward=v["reward"], gamma=v["gamma"])
    return PPO(
        policy_of(workload), env,
        n_steps=p.rollout_length, batch_size=p.minibatch_rows, n_epochs=p.epochs,
        learning_rate=lr if v["schedule"] == "constant" else linear(lr, v["decay_share"]),
        gamma=v["gamma"], gae_lambda=v["trace_lambda"], clip_range=v["clip"], ent_coef=v["entropy_coef"],
        vf_coef=v["value_coef"], max_grad_norm=v["max_grad_norm"],
        policy_kwargs=CONV16 if workload == "breakout" else {}, seed=seed,
    )  # fmt: skip


def steps_of(args) -> int:
    """Length of the run, which also sets the schedule of the learning rate."""
    if args.target is None:
        return 10**9
    if args.settings == "preset":
        return preset(args.workload).env_steps
    return SETTINGS[args.settings, args.workload].steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--settings", choices=("fastest", "preset", *SOURCES), default="fastest")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--target", type=float)
    parser.add_argument("--limit", type=float, default=900.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.target is not None and args.settings == "fastest":
        parser.error("--target needs --settings: the fastest ones do not learn well")
    torch.set_num_threads(args.threads)
    watch = Watch(args.seconds, args.target, args.limit)
    if args.settings == "fastest":
        model = throughput(args.workload, args.threads)
    elif args.settings == "preset":
        model = as_preset(args.workload, args.seed)
    else:
        model = as_published(args.workload, args.settings, args.seed)
    callbacks = [watch]
    if args.settings == "preset" and (last := preset(args.workload).values["entropy_final"]) is not None:
        callbacks.append(EntropyBonus(preset(args.workload).values["entropy_coef"], last))
    model.learn(steps_of(args), callback=callbacks)
    if args.target is None:
        print(json.dumps({"steps_per_second": watch.marks.speed()}))
    else:
        seconds, steps = watch.reached or (None, None)
        print(json.dumps({"seconds": seconds, "steps": steps}))
