"""Settings of PPO that others have published for the workloads, for runs to a score. Standard library only.

"zoo": rl-baselines3-zoo's hyperparams/ppo.yml, tuned for stable-baselines3. "cleanrl": the defaults of CleanRL's ppo.py
and ppo_continuous_action.py. "atari": CleanRL's of Atari, which has no settings of MinAtar, with the environments,
rollouts and the larger rate with which it learns here.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """Settings under the names of stable-baselines3's PPO."""

    envs: int
    steps: int
    """Length of the run, which sets linear schedules too."""
    normalized: bool
    """Observations and rewards."""
    ppo: dict[str, Any]
    """Arguments of PPO. A schedule is ("linear", start): down to 0 over the run."""
    network: dict[str, Any] = {}  # noqa: RUF012  never changed
    """Arguments of the policy; the activation by its name in torch.nn."""


SOURCES = {
    "zoo": "settings of rl-baselines3-zoo",
    "cleanrl": "settings of CleanRL",
    "atari": "settings of Atari, larger rate",
}
SEPARATE = {"pi": [64, 64], "vf": [64, 64]}
SETTINGS: dict[tuple[str, str], Published] = {
    ("zoo", "cartpole"): Published(
        8, 100_000, False,
        dict(n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, ent_coef=0.0,
             learning_rate=("linear", 1e-3), clip_range=("linear", 0.2)),
    ),
    ("zoo", "pendulum"): Published(
        4, 100_000, False,
        dict(n_steps=1024, batch_size=64, n_epochs=10, gamma=0.9, gae_lambda=0.95, ent_coef=0.0, learning_rate=1e-3,
             clip_range=0.2, use_sde=True, sde_sample_freq=4),
    ),
    ("zoo", "hopper"): Published(
        1, 1_000_000, True,
        dict(n_steps=512, batch_size=32, n_epochs=5, gamma=0.999, gae_lambda=0.99, ent_coef=0.00229519,
             learning_rate=9.80828e-5, clip_range=0.2, max_grad_norm=0.7, vf_coef=0.835671),
        dict(log_std_init=-2, ortho_init=False, activation_fn="ReLU", net_arch={"pi": [256, 256], "vf": [256, 256]}),
    ),
    ("atari", "breakout"): Published(
        32, 10**9, False,
        dict(n_steps=64, batch_size=256, n_epochs=4, gamma=0.99, gae_lambda=0.95, ent_coef=0.01, learning_rate=1e-3,
             clip_range=0.1),
    ),
    ("cleanrl", "cartpole"): Published(
        4, 500_000, False,
        dict(n_steps=128, batch_size=128, n_epochs=4, gamma=0.99, gae_lambda=0.95, ent_coef=0.01,
             learning_rate=("linear", 2.5e-4), clip_range=0.2, clip_range_vf=0.2),
        dict(net_arch=SEPARATE),
    ),
    ("cleanrl", "pendulum"): Published(
        1, 1_000_000, True,
        dict(n_steps=2048, batch_size=64, n_epochs=10, gamma=0.99, gae_lambda=0.95, ent_coef=0.0,
             learning_rate=("linear", 3e-4), clip_range=0.2, clip_range_vf=0.2),
        dict(net_arch=SEPARATE),
    ),
    ("cleanrl", "hopper"): Published(
        1, 1_000_000, True,
        dict(n_steps=2048, batch_size=64, n_epochs=10, gamma=0.99, gae_lambda=0.95, ent_coef=0.0,
             learning_rate=("linear", 3e-4), clip_range=0.2, clip_range_vf=0.2),
        dict(net_arch=SEPARATE),
    ),
}  # fmt: skip
