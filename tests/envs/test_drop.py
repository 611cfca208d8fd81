"""`env.drop`: leaves of the observation that are left out."""

import re

import numpy as np
import pytest
from gymnasium import spaces

from sfactory.envs import EnvError, EnvOptions, make_group
from sfactory.envs.space_leaves import kept_leaves

MISSION = """
SPACE = spaces.Dict(
    image=spaces.Box(0, 1, (2,), np.float32), mission=spaces.Text(30),
    inner=spaces.Dict(x=spaces.Box(0, 1, (1,), np.float32), y=spaces.Discrete(3)),
)
OBS = {"image": np.ones(2, np.float32), "mission": "go", "inner": {"x": np.zeros(1, np.float32), "y": 1}}

class Mission(MyEnv):
    observation_space = SPACE
    def reset(self, **options):
        super().reset(**options)
        return OBS, {}
    def step(self, action):
        return OBS, *super().step(action)[1:]

class MissionVector(gymnasium.vector.VectorEnv):
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
    def __init__(self, num_envs):
        self.num_envs, self.single_observation_space, self.single_action_space = num_envs, SPACE, spaces.Discrete(2)
    def look(self):
        inner = {"x": np.zeros((self.num_envs, 1), np.float32), "y": np.ones(self.num_envs, np.int64)}
        return {"image": np.ones((self.num_envs, 2), np.float32), "mission": ("go",) * self.num_envs, "inner": inner}
    def reset(self, **options):
        return self.look(), {}
    def step(self, action):
        never = np.zeros(self.num_envs, bool)
        return self.look(), np.ones(self.num_envs), never, never, {}

gymnasium.register("Mission-v0", entry_point=Mission)
gymnasium.register("MissionVector-v0", vector_entry_point=MissionVector)
"""
NAMES = ["my_file:Mission", "gymnasium/my_file:Mission-v0", "gymnasium/my_file:MissionVector-v0"]


def group_of(name, drop, num_envs=2):
    return make_group(name, num_envs, list(range(num_envs)), EnvOptions(drop=tuple(drop.split(","))))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("drop", "left"),
    [
        ("mission", ["obs/image", "obs/inner/x", "obs/inner/y"]),
        ("obs/mission,inner/y", ["obs/image", "obs/inner/x"]),
        ("mission,inner", ["obs/image"]),  # a Dict with everything in it
    ],
)
def test_drop_leaves_leaves_of_the_observation_out(own_file, name, drop, left):
    own_file("my_file.py", MISSION)
    group = group_of(name, drop)
    assert list(group.spec.obs) == left
    assert sorted(group.reset()) == sorted(left)
    step = group.step({"action": np.zeros(2, np.int64)})
    assert sorted(step.obs) == sorted(left)
    assert step.obs["obs/image"].tolist() == [[1, 1], [1, 1]]
    assert step.valid.all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("misson", r"env\.drop misson: the observation has no such leaf; did you mean mission\?"),
        ("a", r"env\.drop a: the observation has no such leaf; there are image, inner/x, inner/y, mission"),
        ("mission,image,inner", r"env\.drop mission,image,inner leaves nothing of the observation; keep at least one"),
        ("obs", r"env\.drop obs leaves nothing of the observation"),
    ],
)
def test_drop_refuses_unknown_names_and_the_whole_observation(own_file, name, drop, message):
    own_file("my_file.py", MISSION)
    with pytest.raises(EnvError, match=f"^{re.escape(name)}: {message}") as caught:
        group_of(name, drop)
    assert caught.value.exit_code == 2


def test_drop_of_a_key_called_obs_leaves_the_others(own_file):
    space = spaces.Dict(obs=spaces.Discrete(2), x=spaces.Discrete(2))
    assert [leaf.name for leaf in kept_leaves("e", space, ["obs"])] == ["obs/x"]
    assert [leaf.name for leaf in kept_leaves("e", space, ["obs/obs"])] == ["obs/x"]


def test_a_vector_environment_of_gymnasium_gives_way_to_single_ones(own_file):
    """There is nothing to drop, so the message is that of a single environment."""
    with pytest.raises(EnvError, match="leaves nothing of the observation"):
        group_of("gymnasium/CartPole-v1", "obs")


def test_families_without_leaves_refuse_drop():
    with pytest.raises(
        EnvError, match=r"^minatar/breakout: env\.drop is not possible here: make\(\) of the family minatar"
    ):
        group_of("minatar/breakout", "obs")


@pytest.mark.envpool
def test_drop_works_in_envpool():
    group = group_of("envpool/CheetahRun-v1", "position")
    assert sorted(group.reset()) == ["obs/velocity"]
