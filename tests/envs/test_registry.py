"""Finding environments by name: families, error messages, and packages that are not imported."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from sfactory.envs import EnvError, EnvOptions, families, make_group, make_spec
from sfactory.envs import registry as envs
from sfactory.envs.gymnasium_adapter import EnvGroup


def test_families_lists_those_of_the_project():
    assert {"faults", "gymnasium", "minatar"} <= set(families())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("minatr/breakout", {}, r"unknown environment family 'minatr'; did you mean minatar\?; installed: .*faults"),
        ("xyz/breakout", {}, r"unknown environment family 'xyz'; there are .*installed: "),
        ("minatar/brakeout", {}, r"minatar has no game 'brakeout'; did you mean breakout\?"),
        ("minatar/Breakout-v0", {}, r"did you mean breakout\?"),
        ("minatar/xyz", {}, r"no game 'xyz'; there are asterix, breakout, freeway, seaquest, space_invaders"),
        ("minatar/breakout", {"sticky_action_probe": 0}, r"no such setting .*did you mean sticky_action_prob\?"),
        ("minatar/breakout", {"sticky_action_prob": 1.5}, r"sticky_action_prob must be in .0, 1. .got 1.5"),
        ("minatar/breakout", {"max_episode_steps": 0}, r"max_episode_steps must be >= 1 .got 0"),
        ("gymnasium/CartPoll-v1", {}, r"gymnasium knows no environment 'CartPoll-v1'; did you mean CartPole-v1\?"),
        ("gymnasium/CartPole-v7", {}, r"gymnasium knows no environment 'CartPole-v7'; did you mean CartPole-v1\?"),
        ("gymnasium/CartPole-v1", {"gravitas": 9}, r"CartPole-v1 could not be built: TypeError: .*gravitas"),
        ("faults/cuont", {}, r"faults has no environment 'cuont'; did you mean count\?"),
        ("CartPole-v1", {}, r"write FAMILY/ID"),
    ],
)
def test_make_spec_reports_an_unknown_name_in_one_line_with_a_suggestion(name, settings, message):
    with pytest.raises(EnvError, match=message) as caught:
        make_spec(name, settings)
    assert "\n" not in str(caught.value)


def test_make_group_needs_one_seed_for_each_environment():
    with pytest.raises(EnvError, match=r"3 environments need as many seeds \(got 2\)"):
        make_group("faults/count", 3, [1, 2])


def test_make_spec_names_the_command_that_installs_a_missing_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvError, match=r"needs minatar, .* pip install 'sfactory\[minatar\]'"):
        make_spec("minatar/breakout")


def test_load_family_names_the_extra_of_a_family_that_cannot_be_imported(monkeypatch):
    point = EntryPoint("atari", "no_such_package_at_all:make", "sfactory.envs")
    monkeypatch.setattr(envs, "families", lambda: {"atari": point})
    with pytest.raises(EnvError, match=r"needs no_such_package_at_all, .* pip install 'sfactory\[atari\]'"):
        make_spec("atari/pong")


def test_make_group_builds_a_third_party_family(monkeypatch):
    import gymnasium

    def make(env_id, *, num_envs, seeds, **settings):
        return EnvGroup(lambda: gymnasium.make(env_id, **settings), num_envs, seeds, name=f"mygame/{env_id}")

    monkeypatch.setattr(envs, "load_family", {"mygame": make}.__getitem__)
    group = make_group("mygame/CartPole-v1", 2, [1, 2], {"max_episode_steps": 5})
    assert group.spec.name == "mygame/CartPole-v1"
    assert group.reset()["obs"].shape == (2, 4)
    assert group.step({"action": np.array([0, 1])}).valid.all()


def imported(code):
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_minatar_group_imports_neither_torch_nor_plots_nor_gymnasium():
    names = imported("from sfactory.envs import make_group as m; g = m('minatar/breakout', 2, [0, 1]); g.reset()")
    assert "sfactory_envs" in names
    assert not names & {"torch", "pandas", "seaborn", "matplotlib", "minatar", "gymnasium"}


def test_gymnasium_group_does_not_import_torch():
    names = imported("from sfactory.envs import make_group as m; m('gymnasium/CartPole-v1', 1, [0]).reset()")
    assert "gymnasium" in names
    assert not names & {"torch", "pandas", "matplotlib"}


def test_envs_still_exports_episode_tally_under_its_earlier_name():
    import sfactory.envs

    assert sfactory.envs.Tally is sfactory.envs.EpisodeTally


NAMES = ("env_id", "num_envs", "seeds", "exact", "name", "vectorization_mode", "id", "settings", "drop", "wrap",
         "wrappers", "vector_kwargs", "env_index", "protocol", "index", "spec", "entry_point", "kwargs")  # fmt: skip


@pytest.mark.parametrize("target", ["gymnasium/my_file:Named-v0", "my_file:Named"])
@pytest.mark.parametrize("name", NAMES)
def test_settings_reach_the_environment_whatever_their_names(own_file, target, name):
    parameters = ", ".join(f"{parameter}=None" for parameter in NAMES)
    text = f"class Named(MyEnv):\n    def __init__(self, {parameters}):\n        CALLS.append(dict(locals()))\n"
    own_file("my_file.py", text + "gymnasium.register('Named-v0', entry_point=Named)\n")
    make_group(target, 1, [0], {name: "given"})
    call = sys.modules["my_file"].CALLS[0]
    assert {parameter: call[parameter] for parameter in NAMES if call[parameter] is not None} == (
        {name: "given"} if name == "env_index" else {name: "given", "env_index": 0}
    )


def test_arguments_of_gymnasium_make_keep_their_meaning(own_file):
    text = """
class Limited(MyEnv):
    def __init__(self, max_episode_steps=None):
        CALLS.append(max_episode_steps)

gymnasium.register("Limited-v0", entry_point=Limited, max_episode_steps=7)
"""
    own_file("my_file.py", text)
    assert make_spec("gymnasium/my_file:Limited-v0").max_episode_steps == 7
    assert make_spec("gymnasium/my_file:Limited-v0", {"max_episode_steps": 3}).max_episode_steps == 3
    assert make_spec("my_file:Limited", {"max_episode_steps": 3}).max_episode_steps is None  # nothing but a setting
    assert sys.modules["my_file"].CALLS == [None, None, 3]


def old_family(env_id, *, num_envs, seeds, exact=False, **settings):
    import gymnasium

    received.append((exact, settings))
    return EnvGroup(lambda: gymnasium.make(env_id), num_envs, seeds, name=f"mygame/{env_id}")


received = []


def test_a_family_with_settings_as_keywords_receives_all_but_its_own_parameters(monkeypatch):
    monkeypatch.setattr(envs, "load_family", {"mygame": old_family}.__getitem__)
    received.clear()
    settings = {"drop": 1, "wrap": 2, "env_index": 3, "render_mode": "human", "id": 4}
    make_group("mygame/CartPole-v1", 1, [0], EnvOptions(settings, protocol="p"), exact=True)
    assert received == [(True, {**settings, "protocol": "p"})]
    for name in ("env_id", "num_envs", "seeds", "exact"):
        with pytest.raises(
            EnvError, match=rf"mygame/CartPole-v1: the setting '{name}' cannot reach the environment"
        ) as e:
            make_group("mygame/CartPole-v1", 1, [0], {name: 1})
        assert e.value.exit_code == 2
    for option, flag in ((EnvOptions(wrappers=("ClipAction",)), "env.wrappers"), (EnvOptions(drop=("x",)), "env.drop")):
        with pytest.raises(EnvError, match=f"mygame/CartPole-v1: {flag} is "):
            make_group("mygame/CartPole-v1", 1, [0], option)


def test_a_family_with_one_mapping_receives_everything(monkeypatch):
    calls = []

    def make(env_id, *, num_envs, seeds, speed=1, settings, env_index, wrap=None, drop=()):
        import gymnasium

        calls.append((speed, dict(settings), env_index, bool(wrap), drop))
        return EnvGroup(lambda: gymnasium.make(env_id), num_envs, seeds, name=f"mygame/{env_id}")

    monkeypatch.setattr(envs, "load_family", {"mygame": make}.__getitem__)
    options = EnvOptions({"speed": 2, "seeds": 3, "settings": 4}, wrappers=("ClipAction",), drop=("x",))
    make_group("mygame/CartPole-v1", 1, [0], options, env_index=5)
    make_group("mygame/CartPole-v1", 1, [0])
    expected = [(2, {"seeds": 3, "settings": 4}, 5, True, ("x",)), (1, {}, 0, False, ())]
    assert calls == expected
    with pytest.raises(EnvError, match=r"env\.protocol dqn: it has no protocols to choose from"):
        make_group("mygame/CartPole-v1", 1, [0], EnvOptions(protocol="dqn"))


def test_make_spec_names_a_setting_of_atari_that_is_decided_elsewhere():
    with pytest.raises(EnvError, match="'num_envs' is decided by the protocol and by sfactory; leave it out"):
        make_spec("atari/pong", {"num_envs": 3})


def test_settings_of_the_configuration_travel_as_one_object():
    import sfactory

    env = {
        "settings": {"gravity": 5.0}, "wrappers": " TimeLimit , my_file:wrap", "drop": "mission,obs/x", "protocol": "p",
        "wrapper_settings": {"TimeLimit": {"max_episode_steps": 9}},
    }  # fmt: skip
    options = sfactory.make_config("gymnasium/CartPole-v1", env=env).env.options
    tables = {"TimeLimit": {"max_episode_steps": 9}}
    assert options == EnvOptions({"gravity": 5.0}, "p", ("TimeLimit", "my_file:wrap"), tables, ("mission", "obs/x"))
    assert sfactory.make_config("gymnasium/CartPole-v1").env.options == EnvOptions()
