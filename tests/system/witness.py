"""Check every row that a learner trains on against what its self-describing environment must have done.

A `Witness` looks at the batch after the slots were copied into it and before they are released. It writes what it found
to witness.json in the run folder after every update.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from self_describing import NO_ACTION, is_truncated, length, observation, place, reward

from sfactory.learning.network import build_model

REMEMBERED = 64  # versions of the weights
ATOL = 1e-3  # native kernels and torch differ in the last bits, versions of the weights by far more
FIELDS = ("obs", "first", "action", "log_prob", "params", "reward", "terminated", "truncated", "valid", "lag")


class Slot(NamedTuple):
    """One slot as the batch has it: [T + 1, E, ...] of obs and first, [T, E, ...] of the others."""

    group: int
    slot: int
    obs: np.ndarray
    first: np.ndarray
    action: np.ndarray
    log_prob: np.ndarray
    params: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    lag: np.ndarray
    version: np.ndarray  # [T]
    state: np.ndarray | None  # [E, H]


class Last(NamedTuple):
    """What the next slot of a group must begin with."""

    obs: np.ndarray
    first: np.ndarray
    version: int
    state: np.ndarray | None


class Witness:
    """Checks the batches of one learner; `install` gives it one."""

    def __init__(self, learner):
        self.learner, self.run = learner, Path(learner.run_spec.run_dir)
        self.model = build_model(learner.config, learner.run_spec.spec)
        self.weights, self.last = {}, {}
        self.rows, self.continued, self.restarted, self.violations = 0, 0, 0, []

    def remember(self, updates):
        """The weights that were published after this many updates."""
        self.weights[updates] = torch.empty(self.model.flat_size())
        self.learner.model.write_flat(self.weights[updates])
        self.weights.pop(updates - REMEMBERED, None)

    def check(self, slots):
        """Check the batch that was made of these slots (group, slot)."""
        staging, envs = self.learner.staging, self.learner.config.sampling.envs_per_group
        for number, (group, slot) in enumerate(slots):
            lanes = slice(number * envs, (number + 1) * envs)
            batch = staging.batch
            leaves = {**batch._asdict(), "obs": batch.obs["obs"], "action": batch.action["action"]}
            columns = {name: leaves[name][:, lanes].numpy() for name in FIELDS}
            state = None if batch.state is None else batch.state[lanes].numpy().copy()
            version = staging.versions[:, lanes.start].copy()
            self.check_slot(Slot(group, slot, version=version, state=state, **columns))
        self.write()

    def check_slot(self, s):
        self.check_observations(s)
        self.check_steps(s)
        self.check_order(s)
        state = self.check_policy(s)
        self.check_versions(s)
        self.last[s.group] = Last(s.obs[-1].copy(), s.first[-1].copy(), int(s.version[-1]), state)
        self.rows += s.valid.size

    # -- the parts ---------------------------------------------------------------------------------------------

    def expect(self, s, what, holds):
        """Note a violation where `holds`, an array or a truth value, is not true."""
        if np.all(holds):
            return
        place = np.argwhere(~np.atleast_1d(holds))[0].tolist()
        if len(self.violations) < 20:
            self.violations.append(f"{what}: update {self.learner.updates}, group {s.group}, slot {s.slot}, at {place}")

    def check_observations(self, s):
        """Every observation is whole, and of the environment that its lane belongs to."""
        at = place(s.obs)
        self.expect(s, "observation of two halves", s.obs == observation(*at))
        numbers = s.group * at.env.shape[1] + np.arange(at.env.shape[1])
        self.expect(s, "observation of another environment", at.env == numbers)
        beginning = (at.step == 0) & (at.action == NO_ACTION)
        self.expect(s, "first is not the beginning of an episode", s.first == beginning)
        self.expect(s, "one environment has two seeds in a slot", at.seed == at.seed[0])

    def check_steps(self, s):
        """Row t + 1 is what the environment of row t does with the action of row t."""
        seed, env, episode, step, _ = place(s.obs[:-1])
        valid, last = s.valid, step + 1 >= length(env, episode)
        ended = step >= length(env, episode)  # the observation is the final one: a reset row
        cut = is_truncated(env, episode)
        self.expect(s, "valid does not say which rows are reset rows", valid == ~ended)
        self.expect(s, "terminated is wrong", s.terminated == (valid & last & ~cut))
        self.expect(s, "truncated is wrong", s.truncated == (valid & last & cut))
        gain = np.where(valid, reward(env, episode, step, s.action), 0.0)
        self.expect(s, "reward is not that of the action", s.reward == gain)
        following = observation(seed, env, episode, step + 1, s.action)
        fresh = observation(seed, env, episode + 1, 0, NO_ACTION)
        self.expect(s, "observation is not the next one", s.obs[1:] == np.where(valid[..., None], following, fresh))

    def check_order(self, s):
        """A slot begins where the one before it ended, or with a new generation of the sampler."""
        last, begins = self.last.get(s.group), place(s.obs[0])
        if last is not None and (place(last.obs).seed == begins.seed).all():
            self.continued += 1
            self.expect(s, "rows are lost or come twice", s.obs[0] == last.obs)
            self.expect(s, "first of the first row changed", s.first[0] == last.first)
            if s.state is not None:
                self.expect(s, "recurrent state is not the last one", np.isclose(s.state, last.state, atol=ATOL))
        else:
            self.restarted += last is not None
            beginning = (begins.episode == 0) & (begins.step == 0) & s.first[0]
            self.expect(s, "a new generation does not begin with a new episode", beginning)

    def check_policy(self, s):
        """The stored policy is that of the stored version for the stored observation, and chose the stored action."""
        noise = self.learner.shared.trajectories["noise"][s.group, s.slot][..., 0]
        log_p = s.params - np.logaddexp.reduce(s.params, -1, keepdims=True)
        taken = np.take_along_axis(log_p, s.action[..., None], -1)[..., 0]
        upper = np.exp(log_p).cumsum(-1)
        upper = np.take_along_axis(upper, s.action[..., None], -1)[..., 0]
        chosen = (noise <= upper + ATOL) & (noise >= upper - np.exp(taken) - ATOL)
        self.expect(s, "action was not drawn with the noise of its row", chosen)
        self.expect(
            s, "log_prob is not that of the action", np.isclose(s.log_prob, np.where(s.valid, taken, 0.0), atol=ATOL)
        )
        state, loaded = None if s.state is None else torch.from_numpy(s.state), None
        for t, version in enumerate(s.version.tolist()):
            if version not in self.weights:
                self.expect(s, f"version {version} was never published, or long ago", False)
                return None
            if version != loaded:
                self.model.read_flat(self.weights[version])
                loaded = version
            with torch.no_grad():
                obs, first = {"obs": torch.from_numpy(s.obs[t])}, torch.from_numpy(s.first[t])
                out = self.model(obs, state, first)
            state = out.state
            self.expect(
                s, f"policy of row {t} is not version {version}", np.isclose(s.params[t], out.params, atol=ATOL)
            )
        return None if state is None else state.numpy()

    def check_versions(self, s):
        updates, last = self.learner.updates, self.last.get(s.group)
        before = last.version if last is not None else 0
        self.expect(s, "version of the future", s.version <= updates)
        self.expect(s, "version goes back", np.diff(s.version, prepend=before) >= 0)
        self.expect(s, "lag is not updates minus version", s.lag == (updates - s.version)[:, None])

    def write(self):
        found = {name: getattr(self, name) for name in ("rows", "continued", "restarted", "violations")}
        text = json.dumps({**found, "updates": self.learner.updates})
        (self.run / "witness.new").write_text(text)
        (self.run / "witness.new").rename(self.run / "witness.json")


def install():
    """Give every learner of this process a witness."""
    from sfactory.workers.learner import Learner
    from sfactory.workers.publisher import Publisher

    stage, publish = Learner._stage, Publisher.publish

    def publish_and_remember(self, updates):
        publish(self, updates)
        if hasattr(self, "witness"):
            self.witness.remember(updates)

    def stage_and_check(self, slots):
        stage(self, slots)
        if not hasattr(self, "witness"):  # before the first update the weights are still those that were published
            self.witness = self.publisher.witness = Witness(self)
            self.witness.remember(self.updates)
        self.witness.check(slots)

    Publisher.publish, Learner._stage = publish_and_remember, stage_and_check
