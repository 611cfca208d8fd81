"""Environments with several agents in a file of the user's own: `my_file:MyEnv`, with and without the family's name."""

import sys
from pathlib import Path

import agent_envs
import numpy as np
import pytest

from sfactory.config.presets import target_layers
from sfactory.envs import EnvError, EnvOptions, make_group, make_spec
from sfactory.envs.agent_group import AgentGroup

MORE = (
    Path(agent_envs.__file__).read_text()
    + '''
import gymnasium
from pettingzoo.utils import BaseParallelWrapper

BUILT = []

class Counted(Bits):
    def __init__(self, moves=MOVES, env_index=-1):
        BUILT.append((moves, env_index))

def turns():
    return Turns()

def one_or_several(env_index):
    return Bits() if env_index == 0 else gymnasium.make("CartPole-v1")

def one():
    return gymnasium.make("CartPole-v1")

class Double(BaseParallelWrapper):
    """Rewards times two."""
    def __init__(self, env, factor=2):
        super().__init__(env)
        self.factor = factor
    def step(self, actions):
        obs, rewards, *rest = self.env.step(actions)
        return obs, {agent: self.factor * reward for agent, reward in rewards.items()}, *rest

def broken(env):
    return 3
'''
)


@pytest.fixture
def agents_file(own_file):
    return own_file("my_agents.py", MORE, base=False)


def played(target, options=None, steps=45):
    """Rewards, valid and first rows of a few steps in which every agent repeats the bit it sees."""
    group = make_group(target, 2, [3, 4], options)
    obs, found = group.reset(), []
    for _ in range(steps):
        step = group.step({"action": obs["obs"][:, 0].astype(np.int64)})
        obs = step.obs
        found.append(np.concatenate([step.reward, step.valid, step.first, step.terminated, obs["acting"]]))
    group.close()
    return np.array(found)


@pytest.mark.parametrize("name", ["Bits", "Turns", "turns"])
def test_an_own_environment_with_agents_is_the_same_with_and_without_the_name_of_the_family(agents_file, name):
    plain = played(f"my_agents:{name}")
    assert plain.sum() > 0
    for other in (f"pettingzoo/my_agents:{name}", f"my_agents.py:{name}", f"pettingzoo/my_agents.py:{name}"):
        np.testing.assert_array_equal(plain, played(other))


def test_an_own_environment_with_agents_is_built_once_for_each_copy(agents_file):
    group = make_group("my_agents:Counted", 3, [1, 2, 3], {"moves": 7}, env_index=5)
    assert isinstance(group, AgentGroup)
    assert sys.modules["my_agents"].BUILT == [(7, 5), (7, 6), (7, 7)]
    assert group.spec.protocol == "my_agents:Counted, moves=7"
    assert group.spec.agents == ("a", "b")


def test_flags_for_agents_reach_an_own_environment_and_are_refused_where_it_has_one_agent(agents_file):
    assert make_spec("my_agents:Bits", EnvOptions(agent_id=True)).obs["agent_id"].shape == (2,)
    for options in (EnvOptions(agent_id=True), EnvOptions(pad_spaces=True)):
        with pytest.raises(
            EnvError, match=r"my_agents:one: env\.(agent-id|pad-spaces) is for environments with several"
        ):
            make_group("my_agents:one", 1, [0], options)


@pytest.mark.usefixtures("short_retries")
def test_copies_with_one_agent_and_with_several_are_refused(agents_file):
    with pytest.raises(EnvError, match="environments with one agent and with several"):
        make_group("my_agents:one_or_several", 2, [0, 1])


@pytest.mark.parametrize("family", ["", "pettingzoo/"])
def test_wrappers_of_the_users_own_are_around_environments_with_agents(agents_file, family):
    options = EnvOptions(wrappers=("my_agents:Double",), wrapper_settings={"Double": {"factor": 3}})
    for name in ("Bits", "Turns"):
        target = f"{family}my_agents:{name}"
        plain, wrapped = played(target), played(target, options)
        np.testing.assert_array_equal(3 * plain[:, :4], wrapped[:, :4])
        np.testing.assert_array_equal(plain[:, 4:], wrapped[:, 4:])
    assert make_spec(target, options).protocol == f"{target}, my_agents:Double(factor=3)"


@pytest.mark.parametrize(
    ("target", "wrapper", "reason"),
    [
        ("Bits", "TimeLimit", "env.wrappers TimeLimit: gymnasium's wrappers are for one agent; for several there is"),
        ("Bits", "my_agents:broken", "the wrapper my_agents:broken returned an object of type int, expected a Par"),
        ("one", "SmallPictures", "env.wrappers SmallPictures: it is for environments with several agents"),
        ("Bits", "SmallPictures", "the wrapper SmallPictures could not be built: ValueError: pictures of bytes are"),
    ],
)  # fmt: skip
def test_wrappers_that_do_not_fit_the_number_of_agents_are_refused(agents_file, target, wrapper, reason):
    with pytest.raises(EnvError, match="^" + reason.replace(".", r"\.")):
        make_group(f"my_agents:{target}", 1, [0], EnvOptions(wrappers=(wrapper,)))


def test_a_file_in_the_family_pettingzoo_is_an_id_of_the_family():
    layers = target_layers("pettingzoo/sub/my_agents.py:Bits")
    assert layers[-1]["env.name"].value == "pettingzoo/sub/my_agents.py:Bits"
    assert layers[0] == target_layers("pettingzoo/mpe/simple_tag")[0]


def test_an_unknown_name_in_a_file_of_the_family_is_explained(agents_file):
    with pytest.raises(EnvError, match=r"my_agents:Bitz: my_agents has no Bitz; did you mean Bits\?"):
        make_group("pettingzoo/my_agents:Bitz", 1, [0])
    with pytest.raises(EnvError, match="takes no 'movez'; did you mean moves"):
        make_group("pettingzoo/my_agents:Counted", 1, [0], {"movez": 3})
