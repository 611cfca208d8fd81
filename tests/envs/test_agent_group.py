"""AgentGroup: agents as rows, over a scripted environment whose every step is known."""

from typing import ClassVar

import numpy as np
import pettingzoo
import pytest
from agent_envs import Turns
from gymnasium import spaces

from sfactory.envs import EnvError, make_group
from sfactory.envs.agent_group import AgentGroup
from sfactory.envs.options import EnvOptions


class Scripted(pettingzoo.ParallelEnv):
    """Plays a script: for each step the rewards, and the agents that die, are truncated or are born."""

    metadata: ClassVar = {"name": "scripted", "render_modes": []}
    possible_agents: ClassVar = ["a", "b", "c"]
    script = ()
    begin = ("a", "b", "c")

    def __init__(self):
        self.seen, self.resets = [], 0

    def observation_space(self, agent):
        return spaces.Box(-100, 100, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def obs(self, agent):
        return np.array([self.t, ord(agent) - ord("a")], np.float32)

    def reset(self, seed=None, options=None):
        self.t, self.agents, self.resets = 0, list(self.begin), self.resets + 1
        return {agent: self.obs(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        self.seen.append({agent: int(action) for agent, action in actions.items()})
        now = self.script[self.t]
        self.t += 1
        before = list(self.agents)
        dead, cut, born = now.get("dead", ""), now.get("cut", ""), now.get("born", "")
        self.agents = [agent for agent in before if agent not in dead + cut] + list(born)
        there = before + list(born)
        return (
            {agent: self.obs(agent) for agent in there},
            {agent: now.get("reward", {}).get(agent, 0.0) for agent in there},
            {agent: agent in dead for agent in there},
            {agent: agent in cut for agent in there},
            {agent: {} for agent in there},
        )


def group_of(script, begin="abc", num_envs=1, **options):
    cls = type("One", (Scripted,), {"script": script, "begin": tuple(begin)})
    return AgentGroup(cls, num_envs, list(range(num_envs)), name="scripted", **options)


def flags(step, *names):
    return [np.asarray(getattr(step, name)).astype(int).tolist() for name in names]


def actions(*values):
    return {"action": np.array(values)}


def test_agent_group_gives_every_agent_a_row_and_its_own_reward():
    group = group_of([{"reward": {"a": 1, "b": -2}}, {"dead": "abc"}])
    assert group.spec.agents == ("a", "b", "c")
    obs = group.reset()
    assert obs["obs"].tolist() == [[0, 0], [0, 1], [0, 2]]
    step = group.step(actions(2, 1, 0))
    assert group.envs[0].seen == [{"a": 2, "b": 1, "c": 0}]
    assert step.reward.tolist() == [1, -2, 0]
    assert flags(step, "valid", "first", "terminated") == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_agent_group_marks_the_rows_of_an_agent_that_dies_before_the_others():
    group = group_of([{"dead": "b", "reward": {"b": -5}}, {}, {"dead": "ac"}])
    group.reset()
    death = group.step(actions(0, 0, 0))
    assert flags(death, "valid", "first", "terminated") == [[1, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert group.acting.tolist() == [True, False, True]
    assert death.obs["obs"][1].tolist() == [1, 1]  # the final observation
    after = group.step(actions(0, 0, 0))
    assert group.envs[0].seen[-1] == {"a": 0, "c": 0}
    assert flags(after, "valid", "first", "terminated") == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    end = group.step(actions(0, 0, 0))
    assert flags(end, "terminated") == [[1, 0, 1]]
    assert [episode.length for episode in end.episodes] == [3]
    assert end.episodes[0].episodic_return == pytest.approx(-5 / 3)
    assert dict(end.infos)[0] == {"return_a": 0.0, "return_b": -5.0, "return_c": 0.0}
    resets = group.envs[0].resets
    reset = group.step(actions(0, 0, 0))
    assert group.envs[0].resets == resets + 1
    assert flags(reset, "valid", "first") == [[0, 0, 0], [1, 1, 1]]
    assert group.acting.all()


def test_agent_group_begins_the_episode_of_an_agent_that_is_born_in_the_middle():
    group = group_of([{"born": "c"}, {"reward": {"c": 3}}, {"dead": "abc"}], begin="ab")
    group.reset()
    assert group.acting.tolist() == [True, True, False]
    birth = group.step(actions(0, 0, 0))
    assert flags(birth, "valid", "first") == [[1, 1, 0], [0, 0, 1]]
    assert birth.obs["obs"][2].tolist() == [1, 2]
    assert group.acting.all()
    next_step = group.step(actions(0, 0, 2))
    assert group.envs[0].seen[-1] == {"a": 0, "b": 0, "c": 2}
    assert flags(next_step, "valid", "first", "reward") == [[1, 1, 1], [0, 0, 0], [0, 0, 3]]


def test_agent_group_does_not_take_an_agent_again_whose_episode_is_over():
    group = group_of([{"dead": "b"}, {"born": "b"}, {}, {"dead": "ac"}])
    group.reset()
    for _ in range(3):
        step = group.step(actions(0, 0, 0))
        assert group.acting.tolist() == [True, False, True]
    assert flags(step, "valid", "first") == [[1, 0, 1], [0, 1, 0]]


def test_agent_group_leaves_an_agent_that_was_not_born_out_of_the_return():
    group = group_of([{"reward": {"a": 4, "b": 2}}, {"dead": "ab"}], begin="ab")
    group.reset()
    group.step(actions(0, 0, 0))
    end = group.step(actions(0, 0, 0))
    assert end.episodes[0].episodic_return == 3
    assert dict(end.infos)[0] == {"return_a": 4.0, "return_b": 2.0}


def test_agent_group_truncates_all_agents_and_resets_in_the_next_step():
    group = group_of([{}, {"cut": "abc"}])
    group.reset()
    group.step(actions(0, 0, 0))
    end = group.step(actions(0, 0, 0))
    assert flags(end, "truncated", "terminated", "first") == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert not group.acting.any()
    reset = group.step(actions(0, 0, 0))
    assert flags(reset, "valid", "first", "truncated") == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_agent_group_keeps_the_environments_of_a_group_apart():
    group = group_of([{"dead": "abc"}], num_envs=2)
    group.reset()
    group.envs[1].script = [{"reward": {"a": 7}}, {"dead": "abc"}]
    step = group.step(actions(0, 1, 2, 2, 1, 0))
    assert group.envs[1].seen == [{"a": 2, "b": 1, "c": 0}]
    assert flags(step, "terminated", "reward") == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 7, 0, 0]]
    assert [episode.env for episode in step.episodes] == [0]


def test_agent_group_makes_a_failure_a_reset_of_all_agents_of_its_environment():
    group = group_of([{"reward": {"a": float("nan")}}], num_envs=2)
    group.reset()
    group.envs[1].script = [{"reward": {"b": 2}}] * 2
    failed = group.envs[0]
    step = group.step(actions(*[0] * 6))
    assert group.envs[0] is not failed
    assert [fault.env for fault in step.faults] == [0]
    assert "NaN" in step.faults[0].message
    assert flags(step, "valid", "first", "reward") == [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 2, 0]]


def test_agent_group_refuses_an_agent_that_leaves_without_an_end():
    group = group_of([{}])
    group.reset()
    group.envs[0].step = lambda acts: (setattr(group.envs[0], "agents", ["a", "b"]), Scripted.obs)[0] or (
        {agent: np.zeros(2, np.float32) for agent in "abc"}, dict.fromkeys("abc", 0), dict.fromkeys("abc", False),
        dict.fromkeys("abc", False), {},
    )  # fmt: skip
    step = group.step(actions(0, 0, 0))
    assert "c left the environment without being terminated or truncated" in step.faults[0].message


class Unequal(Scripted):
    script = ({"dead": "abc"},)

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (1 + "abc".index(agent),), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2 + "abc".index(agent), start=1)

    def obs(self, agent):
        return np.full(1 + "abc".index(agent), 5, np.float32)


def test_agent_group_refuses_unequal_spaces_and_pads_them_if_told():
    with pytest.raises(EnvError, match=r"different observation spaces.*a: Box.*--env.pad-spaces"):
        AgentGroup(Unequal, 1, [0], name="unequal")
    group = AgentGroup(Unequal, 1, [0], name="unequal", pad_spaces=True)
    obs = group.reset()
    assert obs["obs"].tolist() == [[5, 0, 0], [5, 5, 0], [5, 5, 5]]
    assert group.spec.actions["action"].sizes == (4,)
    assert obs[group.spec.mask].astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    group.step(actions(1, 2, 3))
    assert group.envs[0].seen == [{"a": 2, "b": 3, "c": 4}]
    group.step(actions(0, 0, 0))
    fault = group.step(actions(3, 0, 0)).faults[0]  # a has two choices
    assert "illegal action" in fault.message


class Started(Scripted):
    """Choices and observations of every agent begin with another number."""

    script = ({}, {}, {"dead": "abc"})
    choices: ClassVar = {
        "a": spaces.Discrete(3, start=-1),
        "b": spaces.Discrete(3, start=5),
        "c": spaces.Discrete(2, dtype=np.int32),
    }
    shown: ClassVar = {"a": spaces.Discrete(4, start=-1), "b": spaces.Discrete(2, start=7), "c": spaces.Discrete(3)}

    def observation_space(self, agent):
        return self.shown[agent]

    def action_space(self, agent):
        return self.choices[agent]

    def obs(self, agent):
        return {"a": 2, "b": 7, "c": 1}[agent]

    def step(self, acts):
        assert all(self.choices[agent].contains(action) for agent, action in acts.items()), acts
        return super().step(acts)


def test_agent_group_counts_padded_choices_from_the_start_of_the_space_of_each_agent():
    with pytest.raises(EnvError, match=r"a: Discrete\(3, start=-1\); b: Discrete\(3, start=5\); c: Discrete\(2"):
        AgentGroup(type("Same", (Started,), {"shown": dict.fromkeys("abc", spaces.Discrete(9))}), 1, [0], name="x")
    group = AgentGroup(Started, 1, [0], name="started", pad_spaces=True)
    obs = group.reset()
    assert group.spec.actions["action"].sizes == (3,)
    assert obs[group.spec.mask].astype(int).tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert obs["obs"].astype(int).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert not group.step(actions(0, 0, 0)).faults
    assert not group.step(actions(2, 1, 1)).faults
    assert group.envs[0].seen == [{"a": -1, "b": 5, "c": 0}, {"a": 1, "b": 6, "c": 1}]
    fault = group.step(actions(0, 0, 2)).faults[0]
    assert "illegal action [[0, 0, 2]]" in fault.message


class MaskInInfo(Scripted):
    script = ({}, {"dead": "abc"})

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed, options)
        return obs, {agent: {"action_mask": np.array([0, 1, 1], np.int8)} for agent in infos}

    def step(self, acts):
        *rest, infos = super().step(acts)
        return *rest, {agent: {"action_mask": np.array([1, 0, 0], np.int8)} for agent in infos}


def test_agent_group_reads_masks_from_the_infos():
    group = AgentGroup(MaskInInfo, 1, [0], name="masked")
    assert group.spec.mask == "action_mask"
    assert group.reset()["action_mask"].astype(int).tolist() == [[0, 1, 1]] * 3
    assert group.step(actions(1, 1, 1)).obs["action_mask"].astype(int).tolist() == [[1, 0, 0]] * 3


def test_agent_group_appends_the_number_of_the_agent():
    group = group_of([{}], num_envs=2, agent_id=True)
    assert group.reset()["agent_id"].astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]] * 2


def test_pettingzoo_family_plays_connect_four_in_turns():
    group = make_group("pettingzoo/classic/connect_four", 1, [3])
    obs = group.reset()
    assert group.acting.tolist() == [True, False]
    assert obs[group.spec.mask].all()
    for turn in range(6):  # the players drop pieces in columns 0 and 1 until player 0 wins
        step = group.step(actions(0, 1))
        assert flags(step, "valid") == [[1 - turn % 2, turn % 2]]
        assert not step.terminated.any()
        assert not step.first.any()
    end = group.step(actions(0, 1))
    assert flags(end, "terminated", "reward") == [[1, 1], [1, -1]]
    assert flags(group.step(actions(0, 0)), "valid", "first") == [[0, 0], [1, 1]]
    assert group.acting.tolist() == [True, False]


def test_pettingzoo_family_steps_simple_spread_with_the_newest_version():
    group = make_group("pettingzoo/mpe/simple_spread", 2, [1, 2], EnvOptions({"max_cycles": 4}))
    assert group.spec.agents == ("agent_0", "agent_1", "agent_2")
    assert group.reset()["obs"].shape == (6, 18)
    for _ in range(3):
        assert not group.step(actions(*[0] * 6)).truncated.any()
    end = group.step(actions(*[0] * 6))
    assert end.truncated.all()
    assert len(end.episodes) == 2
    with pytest.raises(EnvError, match=r"mpe/simple_spred; did you mean mpe/simple_spread"):
        make_group("pettingzoo/mpe/simple_spred", 1, [0])


def test_pettingzoo_family_leaves_out_wrappers_that_only_check():
    spread = make_group("pettingzoo/mpe/simple_spread", 1, [0]).envs[0]
    assert type(spread.aec_env).__name__ == "raw_env"
    four = make_group("pettingzoo/classic/connect_four", 1, [0]).envs[0]
    assert type(four.aec_env).__name__ == "TerminateIllegalWrapper"  # it ends the game: not a check alone


class Moves(Scripted):
    """The action space of agent `b` changes at the third reset."""

    script: ClassVar = [{"dead": "abc"}]
    spaces_of: ClassVar = {
        kind: {a: spaces.Discrete(3, start=n) for a in "abc"} for kind, n in (("old", 0), ("new", 1))
    }

    def action_space(self, agent):
        moved = self.resets > 2 and agent == "b"
        return self.spaces_of["new" if moved else "old"][agent]

    def observation_space(self, agent):
        return self.box.setdefault(agent, spaces.Box(-100, 100, (2,), np.float32))

    def __init__(self):
        super().__init__()
        self.box = {}


def test_agent_group_refuses_a_space_that_changes_after_the_environment_was_built():
    group = AgentGroup(Moves, 1, [0], name="moves")
    group.reset()
    taken = [group.step(actions(0, 0, 0)) for _ in range(4)]
    assert [len(step.faults) for step in taken] == [0, 1, 0, 0]
    assert (
        taken[1]
        .faults[0]
        .message.startswith(
            "ValueError: the action space of b is Discrete(3, start=1), and was Discrete(3) when it was built"
        )
    )


def test_agent_group_refuses_other_spaces_of_an_environment_that_replaces_a_failed_one():
    class Wide(Scripted):
        script = ({},)

        def action_space(self, agent):
            return spaces.Discrete(4)

    class Fails(Scripted):
        script = ()

    envs = [Fails, Wide, Scripted]
    group = AgentGroup(lambda: envs.pop(0)(), 1, [0], name="wide")
    group.reset()
    assert group.step(actions(0, 0, 0)).faults
    assert type(group.envs[0]) is Scripted
    assert not envs


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    ("obs", "space", "message"),
    [
        (np.array([300, 1], np.uint16), spaces.Box(0, 255, (2,), np.uint8), "obs of a is 300, but its space has uint8"),
        ((1, 1, 1), spaces.Tuple([spaces.Discrete(2)] * 2), "obs has 3 parts, but its space has 2"),
        ({"x": 1}, spaces.Dict(y=spaces.Discrete(2)), "the observation has no 'y', which its space has"),
    ],
)
def test_agent_group_refuses_observations_that_are_not_of_their_space(obs, space, message):
    class Other(Scripted):
        def observation_space(self, agent):
            return space

        def obs(self, agent):
            return obs

    with pytest.raises(EnvError, match=message):
        AgentGroup(Other, 1, [0], name="other").reset()


def test_agent_group_refuses_a_time_limit_that_is_returned_as_terminated():
    class Limit(Scripted):
        script = ({"dead": "ab", "cut": "c"},)

        def step(self, actions):
            *results, infos = super().step(actions)
            return *results, {agent: {"TimeLimit.truncated": True} for agent in infos}

    group = AgentGroup(Limit, 1, [0], name="limit")
    group.reset()
    assert "info says TimeLimit.truncated" in group.step(actions(0, 0, 0)).faults[0].message


def test_agent_group_says_where_a_step_returned_something_wrong():
    class Silent(Scripted):
        def step(self, actions):
            obs, _, *rest = super().step(actions)
            return obs, {"a": 1.0} if self.t == 1 else {"a": np.nan, "b": 0.0, "c": 0.0}, *rest

    Silent.script = ({}, {})
    group = AgentGroup(Silent, 1, [0], name="silent")
    group.reset()
    place = f"; see step, {__file__}, line {Silent.step.__code__.co_firstlineno} (seed 0, step 0 of the episode)"
    assert f"step() returned no reward of b{place}" in group.step(actions(0, 0, 0)).faults[0].message
    group.envs[0].t = 1
    assert "NaN or infinity in an observation or reward; see step, " in group.step(actions(0, 0, 0)).faults[0].message


def test_agent_group_names_the_class_of_a_game_in_turns_and_not_that_of_its_conversion():
    group = make_group("agent_envs:Turns", 1, [0])
    group.reset()
    assert group._place(0, "step").startswith(f"{Turns.step.__code__.co_filename}, line ")


def test_agent_group_reports_the_actions_of_a_step_that_raises():
    group = group_of([])
    group.reset()
    said = group.step(actions(0, 1, 2)).faults[0].message.splitlines()[0]
    assert "IndexError: list index out of range" in said
    assert said.endswith(
        "(seed 0, step 0 of the episode, action {'a': np.int64(0), 'b': np.int64(1), 'c': np.int64(2)})"
    )
