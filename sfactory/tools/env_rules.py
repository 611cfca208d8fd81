"""The rules of `sfactory check-env`: each is a pure function of a rollout with random actions, or of several.

A rule yields its findings: a level, a sentence and, if flags fix it, these flags. `bad`: training would end or learn
from wrong data. `warn`: it would only learn worse or without a visible error; the sentence says what to write.

Shapes: T steps of E environments; row t of a [T, E] array is what step t returned. With A agents every E is E x A.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from sfactory.config import Config
from sfactory.device.loading import loading_torch
from sfactory.envs import EnvSpec
from sfactory.envs.agent_spaces import AGENT_ID
from sfactory.model.treatment import Scaling, Treatment, obs_treatments
from sfactory.tools.random_rollout import COLUMNS, RandomRollout, shifted

LARGE_OBS, LARGE_REWARD = 100.0, 10.0  # an untrained network expects numbers near 1 and adapts slowly to others
RARELY_INSIDE, WIDE_ACTION = 0.05, 20.0  # share of first actions within their bounds; bounds in standard deviations
EXACT = 2.0**24  # whole numbers up to here are exact as float32
SLOW_RESETS = 0.3  # fraction of the time
STILL_STEPS, STILL_EPISODES = 300, 3  # of an agent, after which an observation that has not changed is reported
SEE = (
    "see what reset() and step() return; some environments draw pictures only with --env.settings.render-mode rgb_array"
)

RuleOutput = Iterator[tuple[str, ...]]  # (level, sentence), and the flags that fix it if there are any


class Plan(NamedTuple):
    """The suggested training: its settings, and how its network reads each observation."""

    config: Config
    readings: Mapping[str, Treatment]
    """Empty if it cannot read them."""


def data(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Environments that failed, and data that does not match the spec."""
    if t.problem:
        yield "bad", t.problem
    if t.faults:
        first_line, _, trace = t.faults[0].message.partition("\n")
        place = "" if ", line " in first_line else _last_place(trace)
        times = "once" if len(t.faults) == 1 else f"{len(t.faults)} times"
        yield "bad", f"an environment failed {times}, first: {first_line}{place}"
    if not t.problem and not t.faults:
        yield "ok", "shapes and dtypes match the spec, all numbers are finite, no environment failed"


def _last_place(trace: str) -> str:
    """` (file, line N)` of the innermost frame of a traceback; empty if it has none."""
    frames = re.findall(r'^ *File "(.+)", line (\d+)', trace, re.MULTILINE)
    return " ({}, line {})".format(*frames[-1]) if frames else ""


def autoreset(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Next-step autoreset, by the table at the top of `sfactory.envs`; a lost life sets `first` on a valid row."""
    if spec.agents:
        yield from autoreset_of_agents(spec, t)
        return
    begins, after = t.valid & t.first, shifted(t.ended)
    rules = {
        "no reset row after the end of an episode": shifted(t.ended & ~begins) & t.valid,
        "first on the last row of an episode (same-step autoreset?)": begins & (t.reported | t.truncated),
        "first on a valid row where no life was lost": begins & ~t.ended,
        "a reset row without an end of episode before it (two in a row?)": ~after & ~t.valid & ~t.failed,
        "a reset row without first": ~t.valid & ~t.first,
        "a reset row with a reward": ~t.valid & (t.reward != 0),
        "a reset row that ends an episode": ~t.valid & t.ended,
        "a valid row where the environment failed": t.failed & t.valid,
    }
    violations = list(_violations(rules, spec))
    yield from violations
    if not violations and not after.any():
        yield "warn", f"no episode ended in {len(t.reward):,} steps: not checked; increase --seconds"
    elif not violations:
        lives = f"; {begins.sum()} lost lives, after which the game continued" if begins.any() else ""
        yield "ok", f"{(after & ~t.valid).sum()} ends, each followed by one reset row{lives}"


def autoreset_of_agents(spec: EnvSpec, t: RandomRollout) -> RuleOutput:
    """The rows of agents, by the table at the top of `sfactory.envs.agent_group`."""
    absent, over = t.first & ~t.valid, shifted(t.reported)
    resets = np.repeat(t.reset, t.agents, axis=1)
    rules = {
        "valid on a row whose agent did not act, or not on one whose agent acted": t.valid
        != (t.acting[:-1] & ~t.failed),
        "an agent acts in the observation with which its episode ended": t.ended & t.acting[1:],
        "first on a valid row": t.first & t.valid,
        "an episode of an agent begins and the one before did not end": shifted(t.under_way & ~t.ended)
        & t.first & ~t.failed,
        "an agent that is not there has a reward or an end": absent & ((t.reward != 0) | t.ended),
        "no reset of all agents after the episode of the environment": over & ~resets,
        "a reset of all agents without an end of episode before it": resets & ~over & ~t.failed,
    }  # fmt: skip
    violations = list(_violations(rules, spec))
    yield from violations
    count = (t.reset & over[:, :: t.agents]).sum()
    if not violations and not count:
        yield "warn", f"no episode ended in {len(t.reward):,} steps: not checked; increase --seconds"
    elif not violations:
        ends = f"{t.ended.sum()} ends of agents; {count} ends of environments"
        yield "ok", f"{ends}, each followed by one reset row of all {t.agents} agents"


def _violations(rules: Mapping[str, np.ndarray], spec: EnvSpec) -> RuleOutput:
    """A finding for each rule with a row that violates it, as [T, E] truth values."""
    for what, rows in rules.items():
        if rows.any():
            step, row = np.argwhere(rows)[0]
            env, agent = divmod(int(row), spec.rows)
            whose = f", {spec.agents[agent]}" if spec.agents else ""
            yield "bad", f"{what}: {rows.sum()} times, first at step {step} of environment {env}{whose}"


def final_observation(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """The last row of an episode must hold its final observation, not that of the reset row after it.

    Not detected: an environment that resets within its last step and starts differently each time.
    """
    resets = np.repeat(t.reset, t.agents, axis=1)  # that of an agent that ends earlier stays until then
    ends, same = shifted(t.ended) & resets & ~t.failed, t.checksums[1:] == t.checksums[:-1]
    count, equal = ends.sum(), (ends & same).sum()
    if same.all() or not count:
        return  # constant observations or no end of episode: other rules report these
    if equal <= 0.05 * count:  # with few states an episode may begin as the last one ended
        yield "ok", f"{count - equal} of {count} final observations differ from the reset row after them"
    else:
        problem = (
            f"{equal} of {count} final observations equal the reset row after them: the reset observation is returned"
        )
        wrong = "too early, and bootstrapped values would be wrong; return the last observation of the episode there"
        yield "bad" if equal == count > 1 else "warn", f"{problem} {wrong}"


def time_limit(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """A time limit must truncate, not terminate: the learner bootstraps at truncations."""
    limit, lengths, truncated = spec.max_episode_steps, t.age[t.ended], (t.truncated & ~t.terminated).sum()
    at_limit = (t.age[t.terminated] == limit).sum()  # both flags count as terminated, as in the learner
    if not len(lengths) and limit is None:
        yield (
            "warn",
            f"no time limit found; episodes may never end, so an evaluation needs --max-steps{_limit_flag(spec.name)}",
        )
    elif not len(lengths):
        yield "ok", f"{limit:,} steps; no episode ended in {len(t.reward):,}"
    elif at_limit > 1 and not truncated:
        yield "bad", f"{at_limit} episodes are terminated at exactly the limit, {limit:,} steps: they must be truncated"
    elif len(lengths) > 2 and not truncated and lengths[0] == lengths.min() == lengths.max() > 1:
        yield "warn", f"all {len(lengths)} episodes are terminated after exactly {lengths[0]} steps: a time limit " \
            "reported as termination? Then return it as truncated, the fourth value of step()"  # fmt: skip
    else:
        counts = (
            f"{t.terminated.sum()} terminated, {truncated} truncated, after {lengths.min()} to {lengths.max()} steps"
        )
        yield "ok", f"{counts}; {f'the limit is {limit:,}' if limit else 'no limit is known'}"


def _limit_flag(name: str) -> str:
    """How to set a time limit from the command line, if that is possible for this environment."""
    if name.startswith("gymnasium/"):
        return "; a limit: --env.settings.max-episode-steps 1000"
    if ":" in name:
        return "; a limit: --env.wrappers TimeLimit --env.wrapper-settings.TimeLimit.max-episode-steps 1000"
    return "; or truncate them, and name the limit in the spec (max_episode_steps)"


def observations(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Leaves without information, or with numbers that the network gets as they are and that are too large for it."""
    seen = [name for name in spec.obs if name not in (spec.mask, spec.acting, AGENT_ID)]
    changes = False
    for name in spec.obs:
        constant_remedy = (
            f"if it never does, leave it out: --env.drop {name}"
            if len(seen) > 1
            else f"nothing can be learned from it: {SEE}"
        )
        low, high = t.obs_range[name]
        if not low.size:
            continue
        largest, constant = max(abs(float(low.min())), abs(float(high.max()))), (low == high).sum()
        changes |= constant < low.size and name in seen
        interval = f"{name} is between {low.min():.4g} and {high.max():.4g}"
        reading = plan.readings.get(name)
        plain = reading is not None and reading.scaling is Scaling.NONE and ":" not in reading.encoder
        if coarse := too_fine(low, high):
            yield "warn", f"{name} {coarse}"
        if constant == low.size and name not in (spec.mask, spec.acting):
            yield "warn", f"{name} never changed in {len(t.reward):,} steps; {constant_remedy}"
        elif reading is not None and outside(reading, low, high):
            yield (
                "warn",
                f"{interval}, outside the bounds of its space, which say how it is scaled ({reading.words}): give the "
                "space the bounds that its numbers have (low=, high=)",
            )
        elif largest > LARGE_OBS and plain:
            flag = "--normalize.obs true"
            yield "warn", f"{interval}; a network expects numbers near 1: {flag}", flag
        else:
            yield "ok", interval + (f"; {constant} of {low.size} numbers never changed" if constant else "")

    if changes:  # else it is reported already
        yield from still(spec, t)


def too_fine(low: np.ndarray, high: np.ndarray) -> str:
    """What is lost of numbers that are large and change little, as seconds since 1970, once they are float32."""
    largest = np.maximum(np.abs(low), np.abs(high)).astype(np.float32)
    step, change = np.spacing(largest), (high.astype(np.float64) - low)
    lost = (largest > EXACT) & (change < 100 * step) | (largest > LARGE_OBS) & (change > 0) & (change < 10 * step)
    if not lost.any():
        return ""
    at = int(np.flatnonzero(lost.ravel())[0])
    return (
        f"has numbers near {largest.ravel()[at]:.4g}, which the network reads as float32 in steps of "
        f"{step.ravel()[at]:.3g}: smaller changes are lost; subtract an offset in the environment"
    )


def still(spec: EnvSpec, t: RandomRollout) -> RuleOutput:
    """Observations that stay as the reset made them until the end of the episode, as of a picture that is never drawn.

    Not looked at: a mask, and episodes of one step, as of a contextual bandit.
    """
    changed = t.under_way & (t.looks[1:] != t.looks[:-1])
    lengths = np.where(t.ended & (t.age > 1), t.age, 0)  # of episodes, in the row of their end
    frozen, ends = [], np.zeros(0, np.int64)
    for agent in range(t.agents):
        own = lengths[:, agent :: t.agents]
        own = own[own > 0]
        if not changed[:, agent :: t.agents].any() and own.sum() >= STILL_STEPS and len(own) >= STILL_EPISODES:
            frozen.append(agent)
            ends = np.append(ends, own)
    if frozen:
        whose = f" of {textwrap.shorten(', '.join(spec.agents[agent] for agent in frozen), 80)}" if spec.agents else ""
        yield (
            "warn",
            f"the observation{whose} never changed within an episode, in {ends.sum():,} steps of {len(ends):,} "
            f"episodes: what happens cannot be seen; {SEE}",
        )


def outside(reading: Treatment, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether numbers leave bounds that matter: those of a leaf that is not normalized, except of a float vector."""
    if reading.scaling is Scaling.NORMALIZED or (reading.scaling is Scaling.NONE and reading.layout is None):
        return False
    least, most = np.asarray(reading.low), np.asarray(reading.high)
    slack = np.where(np.isfinite(most - least), 1e-3 * (most - least), 0.0)
    return bool((low.ravel() < least - slack).any() or (high.ravel() > most + slack).any())


def actions(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Bounds of numbers that a new policy, a normal distribution around 0, misses; masks that are not read as such."""
    config = plan.config
    yield from unread_masks(spec)
    boxes = {name: leaf for name, leaf in spec.actions.items() if leaf.kind == "box"}
    if config.model.squash or not boxes:
        return
    std = math.exp(config.model.log_std_init)
    squash = all(np.isfinite([*leaf.low, *leaf.high]).all() for leaf in boxes.values())
    flag = "--model.squash true"
    remedy = (flag,) if squash else ()
    write = flag if squash else "let the environment take numbers near 0 and scale them itself"
    for name, leaf in boxes.items():
        low, high = np.array(leaf.low), np.array(leaf.high)
        inside = np.array([_normal(b / std) - _normal(a / std) for a, b in zip(low, high, strict=True)])
        worst = int(inside.argmin())
        begin = (
            f"{name} is clipped to its bounds, and a new policy chooses numbers near 0 (standard deviation {std:.3g})"
        )
        if inside[worst] < RARELY_INSIDE and low[worst] < high[worst]:
            yield (
                "warn",
                f"{begin}: {1 - inside[worst]:.0%} of them become a bound of {low[worst]:g} to {high[worst]:g}, so "
                f"that it can hardly learn from the others: {write}",
                *remedy,
            )
        elif ((wide := np.minimum(-low, high)) > WIDE_ACTION * std).any() and squash:
            at = int(wide.argmax())
            yield "warn", f"{begin}, a small part of {low[at]:g} to {high[at]:g}: {write}", *remedy


def unread_masks(spec: EnvSpec) -> RuleOutput:
    """Leaves of the observation that look like a mask of the actions, but have another name."""
    choices = sum(sum(leaf.sizes) for leaf in spec.actions.values() if leaf.kind == "discrete")
    for name, leaf in spec.obs.items():
        looks = re.search("mask|legal|avail|valid", name.rpartition("/")[2].lower())
        if not spec.mask and looks and leaf.shape == (choices,) and choices > 1:
            yield (
                "warn",
                f"{name} has one number per choice of the action and is read as an observation only: if it says which "
                "are allowed, name it action_mask",
            )


def outside_mask(place: str) -> RuleOutput:
    """A mask that a single environment gives apart from its observation. place: where; empty if it has none."""
    if place:
        yield (
            "warn",
            f"{place}, which is not read: every action is chosen; to mask them, put it into a Dict observation under "
            "the key action_mask",
        )


def _normal(x: float) -> float:
    """Distribution function of the standard normal distribution."""
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def rewards(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Scale of the rewards: it sets that of the value loss, which shares the gradient norm with the policy."""
    config, r = plan.config, t.reward[t.under_way]
    pixels = any(reading.layout and not reading.grid for reading in plan.readings.values())
    if not r.any():
        yield (
            "warn",
            f"no reward in {len(r):,} steps: random actions may never find one; look longer (--seconds 60), or reward "
            "steps on the way to it",
        )
        return
    summary = f"{r.min():.4g} to {r.max():.4g}, mean {r.mean():.3g}, std {r.std():.3g}, {np.mean(r != 0):.0%} not zero"
    if t.episodes:
        returns = [episode.episodic_return for episode in t.episodes]
        summary += f"; {len(returns)} episodes, mean return {np.mean(returns):.4g}, std {np.std(returns):.3g}"
        summary += " (means over the agents)" if spec.agents else ""
    scaled = config.env.reward_clip or config.normalize.reward or config.normalize.value_targets
    large = np.abs(r).max() > (1.0 if pixels else LARGE_REWARD)
    if large and scaled:
        yield "ok", f"{summary}; large, and scaled for training"
    elif large:
        flag = "--env.reward-clip 1" if pixels else "--normalize.reward true"
        yield "warn", f"{summary}; large: {flag}", flag
    else:
        yield "ok", summary


def speed(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Steps per second of one core, and the cost of resets, for which the whole group waits."""
    resets, durations, reset_s, envs = t.reset.sum(axis=1), t.seconds, 0.0, t.reset.shape[1]
    if resets.any() and not resets.all():
        # A step with resets is a usual one without the share of its resets, plus these.
        usual, with_resets = float(np.median(durations[resets == 0])), resets > 0
        reset_s = max(0.0, float(np.median((durations[with_resets] - usual) / resets[with_resets])) + usual / envs)
    fraction = min(1.0, reset_s * resets.sum() / durations.sum())
    unit, size = ("agent steps", f" of {t.agents} agents") if spec.agents else ("steps", "")
    summary = f"{t.valid.sum() / durations.sum():,.0f} {unit}/s on one core, {envs} environments{size} in a group"
    summary += f"; a reset takes {1e3 * reset_s:.3g} ms, {fraction:.0%} of the time" if reset_s else ""
    slow = fraction > SLOW_RESETS
    remedy = ": all environments of a group wait for it; use smaller groups, as --sampling.envs-per-group 4"
    yield ("warn", summary + remedy) if slow else ("ok", summary)


def first_difference(a: RandomRollout, b: RandomRollout) -> int | None:
    """Return the step at which two rollouts first differ (0: the reset observation); None if they do not."""
    n = min(len(a.reward), len(b.reward))
    differs = a.checksums[: n + 1] != b.checksums[: n + 1]
    for name in COLUMNS:
        differs[1:] |= getattr(a, name)[:n] != getattr(b, name)[:n]
    return int(differs.any(axis=1).argmax()) if differs.any() else None


def seeds(t: RandomRollout, again: RandomRollout, other: RandomRollout) -> RuleOutput:
    """Determinism: compare with a rollout of the same seeds and one of other seeds, all with the same actions."""
    if (step := first_difference(t, again)) is not None:
        yield (
            "warn",
            f"the same seeds and actions give another trajectory after {step} steps: runs are not reproducible; draw "
            "random numbers from self.np_random, after super().reset(seed=seed)",
        )
    if first_difference(t, other) is None:
        yield "ok", "deterministic: other seeds change nothing"
    elif step is None:
        yield "ok", f"the same seeds repeat {len(again.reward):,} steps exactly, other seeds do not"


def network(spec: EnvSpec, t: RandomRollout, plan: Plan) -> RuleOutput:
    """Whether the network of the plan can read the observations, act, and train for two updates."""
    with loading_torch():
        from sfactory.tools.network_trial import try_network

    try:
        obs_treatments(spec, plan.config)
    except ValueError as error:
        yield "bad", str(error)
        return
    weights, problem = try_network(plan.config, spec, t)
    if problem:
        yield "bad", f"the network cannot be trained: {problem}"
    else:
        yield "ok", f"{weights:,} weights; it acts, and two updates on this data are finite"


RULES: tuple[Callable[[EnvSpec, RandomRollout, Plan], RuleOutput], ...] = (
    data, autoreset, final_observation, time_limit, observations, actions, rewards, speed,
)  # fmt: skip
"""Rules of one rollout, in the order of the report. `seeds` compares several, `network` trains on one."""
