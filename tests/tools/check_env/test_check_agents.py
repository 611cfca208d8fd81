"""`check-env` on environments with several agents: the report, and each rule on their rows violated."""

import numpy as np
import pytest
from agent_envs import Bits, Turns
from conforming_env import ConformingEnv, checked, levels, sentences
from pettingzoo.utils.conversions import turn_based_aec_to_parallel

from sfactory.config import parsing, presets
from sfactory.envs.agent_group import AgentGroup
from sfactory.learning.network import build_model
from sfactory.tools.check_env import check
from sfactory.tools.env_rules import autoreset_of_agents
from sfactory.tools.network_trial import _batch
from sfactory.tools.random_rollout import KEPT, record


def group_of(env, change=lambda step, t: None):
    """How `check` builds groups; `change(step, t)` spoils what step t returned."""

    class Changed(AgentGroup):
        calls = 0

        def step(self, action):
            step = super().step(action)
            change(step, self.calls)
            self.calls += 1
            return step

    return lambda num_envs, seeds: Changed(env, num_envs, seeds, name="bits")


def turns():
    return turn_based_aec_to_parallel(Turns())


def test_check_of_agents_that_act_together_passes_and_counts_their_steps():
    report = checked(group_of(Bits), steps=84)
    assert set(levels(report).values()) == {"ok"}, report.text()
    assert report.steps == 8 * 80  # 4 environments of 2 agents; 4 of the 84 steps were resets
    assert sentences(report, "autoreset").startswith("32 ends of agents; 16 ends of environments")
    assert "0 terminated, 32 truncated, after 20 to 20 steps" in sentences(report, "time limit")
    assert "agent steps/s on one core, 4 environments of 2 agents" in sentences(report, "speed")
    assert "means over the agents" in sentences(report, "rewards")
    assert "2: a, b" in report.text()


def test_check_of_agents_that_act_in_turns_counts_one_step_of_an_agent_in_each():
    report = checked(group_of(turns), steps=82)
    assert {title for title, level in levels(report).items() if level != "ok"} == {"time limit"}  # always 40 moves
    assert "all 16 episodes are terminated after exactly 40 steps" in sentences(report, "time limit")
    assert report.steps == 4 * 80


class HalfBlind(Bits):
    """`b` sees the same picture as long as an episode lasts, and another one in the next."""

    def observe(self, agent):
        return super().observe(agent) if agent == "a" else np.full(3, self.shown, np.float32)

    def reset(self, seed=None, options=None):
        self.shown = 0.25 if getattr(self, "shown", 0) == 0.5 else 0.5
        return super().reset(seed, options)


def test_check_of_agents_names_those_whose_observation_never_changes_within_an_episode():
    report = checked(group_of(HalfBlind), steps=126)
    assert "the observation of b never changed within an episode, in 480 steps of 24 episodes" in sentences(
        report, "observations"
    )


def test_check_of_agents_that_see_nothing_does_not_suggest_to_leave_the_only_observation_out():
    class Blind(Bits):
        def observe(self, agent):
            return np.zeros(3, np.float32)

    found = sentences(checked(group_of(Blind), steps=84), "observations")
    assert "obs never changed in 84 steps; nothing can be learned from it: see what reset() and step() return" in found
    assert "--env.drop" not in found
    assert "within an episode" not in found, "said once"


def test_check_of_an_environment_of_ones_own_suggests_the_settings_for_several_agents():
    report = check("my_agents:Bits", make=group_of(Bits), steps=42)
    assert report.train.startswith("sfactory train pettingzoo/my_agents:Bits")
    assert report.settings_from == "the defaults of pettingzoo"
    alone = check("my_agents:One", make=ConformingEnv, steps=42)
    assert alone.train.startswith("sfactory train my_agents:One")
    assert alone.settings_from == "the defaults of gymnasium"


def put(name, row, value, at):
    """Set a flag of a row in the step `at`; 20 ends an episode of Bits, counted from 0 the step 19."""
    return lambda step, t: getattr(step, name).__setitem__(row, value) if t == at else None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("valid", 3, False, 4), "valid on a row whose agent did not act, or not on one whose agent acted: 1 times"),
        (put("valid", 3, True, 20), "valid on a row whose agent did not act"),
        (
            lambda step, t: step.obs["acting"].__setitem__(3, True) if t == 19 else None,
            "an agent acts in the observation with which its episode ended",
        ),
        (put("first", 3, True, 4), "first on a valid row: 1 times, first at step 4 of environment 1, b"),
        (put("first", 3, True, 4), "an episode of an agent begins and the one before did not end"),
        (put("reward", 3, 1.0, 20), "an agent that is not there has a reward or an end"),
        (put("truncated", 3, True, 20), "an agent that is not there has a reward or an end"),
        (put("first", 3, False, 20), "no reset of all agents after the episode of the environment"),
        (
            lambda step, t: (
                (step.first.__setitem__(slice(2, 4), True), step.valid.__setitem__(slice(2, 4), False))
                if t == 4
                else None
            ),
            "a reset of all agents without an end of episode before it",
        ),
    ],
)
def test_autoreset_rule_of_agents_rejects(change, text):
    group = group_of(Bits, change)(4, range(4))
    found = list(autoreset_of_agents(group.spec, record(group, 42, 60, seed=0)))
    assert {level for level, _ in found} == {"bad"}
    assert any(sentence.startswith(text) for _, sentence in found)


def test_final_observation_rule_of_agents_rejects_that_of_the_reset():
    class Early(Bits):
        """Returns the observation of the next episode with the end of the last one."""

        def reset(self, seed=None, options=None):
            obs, infos = super().reset(seed, options)
            return self.__dict__.pop("early", obs), infos

        def step(self, actions):
            obs, *rest = super().step(actions)
            if not self.agents:
                self.early = obs
            return obs, *rest

    report = checked(group_of(Early), steps=84)
    assert "equal the reset row after them" in sentences(report, "final observation")


def test_check_of_agents_accepts_an_agent_that_ends_before_the_others():
    class Leaves(Bits):
        """The episode of `b` is over after 12 steps."""

        def step(self, actions):
            obs, reward, terminated, truncated, infos = super().step({"b": 0, **actions})
            if self.time == 12:
                terminated, self.agents = terminated | {"b": True}, ["a"]
            there = {"a", "b"} if self.time <= 12 else {"a"}
            return *({k: v for k, v in x.items() if k in there} for x in (obs, reward, terminated, truncated)), infos

    report = checked(group_of(Leaves), steps=84)
    assert set(levels(report).values()) == {"ok"}, report.text()
    assert "after 12 to 20 steps" in sentences(report, "time limit")
    assert sentences(report, "final observation").startswith("16 of 16")  # those of `a`: `b` stays as it was


def test_network_trial_of_agents_gives_actions_their_outcome_in_own_time():
    group = group_of(turns)(4, range(4))
    rollout = record(group, KEPT, 60, seed=0)
    config = parsing.build(*presets.target_layers("classic/cartpole"))
    batch = _batch(config, build_model(config, group.spec), group.spec, rollout)
    assert batch.valid.any(1).tolist() == [True] * 7 + [False]  # the last action has no outcome yet
    later = np.stack([rollout.reward[t + 1] for t in range(7)])
    assert np.array_equal(batch.reward[:7].numpy()[rollout.valid[:7]], later[rollout.valid[:7]])


def test_check_of_agents_finds_what_is_wrong_with_one_agent():
    class Broken(Bits):
        def step(self, actions):
            obs, reward, *rest = super().step(actions)
            return obs, reward | {"b": np.nan if self.time == 5 else 0.0}, *rest

    report = checked(group_of(Broken), steps=42)
    assert levels(report)["data"] == "bad"
    assert "NaN" in sentences(report, "data")
    assert levels(report).get("autoreset") != "bad"
