"""A group that keeps every rule of `check-env`, and words for what the report says of one that does not.

Each broken environment of the tests differs from `Walk` in one thing.
"""

from typing import ClassVar

import numpy as np

from sfactory.envs import ActionLeaf, EnvSpec, Leaf, Step, Tally
from sfactory.tools.check_env import check

LIMIT = 12
RULES = {"data", "autoreset", "final observation", "time limit", "observations", "rewards", "speed", "seeds"}


class Walk:
    """E walkers on a line, who fall off at +-2 (reward -1) or are truncated after LIMIT steps; next-step autoreset."""

    actions: ClassVar = {"action": ActionLeaf((), "int64", "discrete", (2,))}
    obs: ClassVar = {"obs": Leaf((2,), "float32")}
    limit = LIMIT
    mask = ""

    def __init__(self, num_envs, seeds):
        self.num_envs, self.calls, self.closed = num_envs, 0, False
        self.draws = [np.random.default_rng(seed) for seed in seeds]
        self.spec = EnvSpec("fake/walk", self.obs, self.actions, max_episode_steps=self.limit, mask=self.mask)
        self.place, self.over = np.zeros((num_envs, 2), np.float32), np.zeros(num_envs, bool)
        self.tally, self.begun = Tally(num_envs), None

    def begin(self, env):
        self.place[env] = 0.1 * self.draws[env].standard_normal(2)

    def reset(self):
        for env in range(self.num_envs):
            self.begin(env)
        self.begun = self.place.copy()
        return self.see()

    def see(self):
        return {"obs": self.place}  # the same array every time, as a group may

    def step(self, action):
        valid = ~self.over
        for env in range(self.num_envs):
            if self.over[env]:
                self.begin(env)
                self.begun[env] = self.place[env]
            else:
                self.place[env] += 0.5 * self.draws[env].standard_normal(2) + 0.2 * (2 * action["action"][env] - 1)
        fell = valid & (abs(self.place[:, 0]) > 2)
        reward = np.where(valid, np.where(fell, -1.0, 0.1), 0.0).astype(np.float32)
        self.tally.count(reward, valid)
        late = valid & (self.tally.lengths >= LIMIT) & ~fell
        self.over = fell | late
        episodes = self.tally.end(np.flatnonzero(self.over).tolist())
        self.calls += 1
        return self.spoil(Step(self.see(), reward, fell, late, valid, ~valid, episodes, ()))

    def spoil(self, step):
        return step

    def close(self):
        self.closed = True


def levels(report):
    """Title -> the worst that was said."""
    found = {}
    for level, title, _ in report.findings:
        found[title] = max(found.get(title, "ok"), level, key=["ok", "warn", "bad"].index)
    return found


def said(report, title):
    return " | ".join(sentence for _, about, sentence in report.findings if about == title)


def checked(group, name="faults/walk", **options):
    return check(name, make=group, steps=options.pop("steps", 150), **options)


def expect(group, title, level, words, **options):
    """One rule speaks, in these words, and no other one says anything worse than before."""
    report = checked(group, **options)
    assert levels(report)[title] == level, report.text()
    assert words in said(report, title)
    others = {about for about, worst in levels(report).items() if worst != "ok"} - {title}
    assert not others, report.text()
    assert report.bad == (level == "bad")
    return report
