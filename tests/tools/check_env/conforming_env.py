"""A group that follows every rule of `check-env`, and helpers to read the report.

Each faulty environment of the tests differs from `ConformingEnv` in one respect.
"""

from typing import ClassVar

import numpy as np

from sfactory.envs import ActionLeaf, EnvSpec, Leaf, Step, Tally
from sfactory.tools.check_env import check

LIMIT = 12
RULES = {
    "data", "autoreset", "final observation", "time limit", "observations", "rewards", "speed", "seeds", "network",
}  # fmt: skip


class ConformingEnv:
    """E random walks, terminated at +-2 (reward -1) or truncated after LIMIT steps; next-step autoreset."""

    actions: ClassVar = {"action": ActionLeaf((), "int64", "discrete", (2,))}
    obs: ClassVar = {"obs": Leaf((2,), "float32")}
    limit = LIMIT
    mask = ""

    def __init__(self, num_envs, seeds):
        self.num_envs, self.calls, self.closed = num_envs, 0, False
        self.generators = [np.random.default_rng(seed) for seed in seeds]
        self.spec = EnvSpec("fake/walk", self.obs, self.actions, max_episode_steps=self.limit, mask=self.mask)
        self.position, self.over = np.zeros((num_envs, 2), np.float32), np.zeros(num_envs, bool)
        self.tally, self.start_positions = Tally(num_envs), None

    def begin_episode(self, env):
        self.position[env] = 0.1 * self.generators[env].standard_normal(2)

    def reset(self):
        for env in range(self.num_envs):
            self.begin_episode(env)
        self.start_positions = self.position.copy()
        return self.observe()

    def observe(self):
        return {"obs": self.position}  # the same array every time, as a group may

    def step(self, action):
        valid = ~self.over
        for env in range(self.num_envs):
            if self.over[env]:
                self.begin_episode(env)
                self.start_positions[env] = self.position[env]
            else:
                self.position[env] += 0.5 * self.generators[env].standard_normal(2) + 0.2 * (
                    2 * action["action"][env] - 1
                )
        terminated = valid & (abs(self.position[:, 0]) > 2)
        reward = np.where(valid, np.where(terminated, -1.0, 0.1), 0.0).astype(np.float32)
        self.tally.count(reward, valid)
        truncated = valid & (self.tally.lengths >= LIMIT) & ~terminated
        self.over = terminated | truncated
        episodes = self.tally.end(np.flatnonzero(self.over).tolist())
        self.calls += 1
        return self.change(Step(self.observe(), reward, terminated, truncated, valid, ~valid, episodes, ()))

    def change(self, step):
        """Overridden by faulty environments."""
        return step

    def close(self):
        self.closed = True


def levels(report):
    """Title -> the worst level of its findings."""
    worst = {}
    for level, title, _ in report.findings:
        worst[title] = max(worst.get(title, "ok"), level, key=["ok", "warn", "bad"].index)
    return worst


def sentences(report, title):
    """The sentences of a rule, joined."""
    return " | ".join(sentence for _, about, sentence in report.findings if about == title)


def checked(group, name="faults/walk", **options):
    """The report after 150 steps, also on a busy machine."""
    return check(name, make=group, **{"steps": 150, "seconds": 100.0, **options})


def expect(group, title, level, text, **options):
    """Check that one rule reports `level` with `text`, and that all other rules report ok."""
    report = checked(group, **options)
    assert levels(report)[title] == level, report.text()
    assert text in sentences(report, title)
    others = {about for about, worst in levels(report).items() if worst != "ok"} - {title}
    assert not others, report.text()
    assert report.bad == (level == "bad")
    return report
