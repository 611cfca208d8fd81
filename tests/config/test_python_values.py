"""Classes, functions and nested dicts from Python, as the command line would name them."""

import functools
import threading

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

from sfactory.config import Config, Env
from sfactory.config.python_values import label_of, layer_of, target_name, with_registered
from sfactory.errors import EnvError, OnlyRegisteredHere, SettingError


def made_here():
    class Game(gymnasium.Env):
        pass

    return Game


def test_target_name_pickles_code_that_no_module_defines_and_refuses_what_is_no_environment():
    game = made_here()
    assert target_name("minatar/breakout") == "minatar/breakout"
    assert target_name(gymnasium.wrappers.TimeLimit).startswith("gymnasium.wrappers.")
    assert target_name(game).startswith("cloudpickle:Game-")
    assert (label_of(game), label_of("a/b"), label_of(Config())) == ("Game", "a/b", "")
    assert (label_of(functools.partial(game, 3)), label_of(lambda: game())) == ("Game", "lambda")
    with pytest.raises(SettingError, match="pass the class, or a function"):
        target_name(game())
    with pytest.raises(SettingError, match="got int"):
        target_name(3)


def test_layer_of_names_code_and_leaves_none_out():
    sections = {
        "env": {"wrappers": [gymnasium.wrappers.TimeLimit, "my_file:wrap"], "settings": {"a.b": 1}},
        "model": {"hidden": (8, 4)},
        "optim": {"lr": None, "beta1": 0.8},
    }
    found = {name: raw.value for name, raw in layer_of(sections).items()}
    expected = {"env.wrappers": "TimeLimit,my_file:wrap", "env.settings.a.b": 1, "model.hidden": [8, 4]}
    assert found == {**expected, "optim.beta1": 0.8}
    with pytest.raises(SettingError, match=r"^lr: "):
        layer_of({"lr": 1e-3})


def test_layer_of_takes_dashes_as_messages_write_them_and_numbers_of_other_libraries():
    lr, hidden = np.array(0.5), torch.tensor([8, 4])
    found = layer_of({"stop": {"env-steps": 5}, "optim": {"lr": lr}, "model": {"hidden": hidden}})
    assert {name: raw.value for name, raw in found.items()} == {
        "stop.env_steps": 5, "optim.lr": 0.5, "model.hidden": [8, 4],
    }  # fmt: skip
    assert layer_of({"model": {"hidden": range(2, 4)}})["model.hidden"].value == [2, 3]
    with pytest.raises(SettingError, match=r"stop.env_steps is given twice, with a dash and with an underscore"):
        layer_of({"stop": {"env-steps": 5, "env_steps": 6}})


def test_a_config_of_dicts_is_answered_with_make_config():
    with pytest.raises(ValueError, match=r"^optim: a Config takes objects; sfactory.make_config makes one of dicts$"):
        Config(optim={"lr": 1e-3})


def test_with_registered_replaces_one_task_by_its_code(monkeypatch):
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    gymnasium.register("Late-v0", entry_point=made_here())
    config = Config(env=Env("gymnasium/Late-v0,gymnasium/CartPole-v1"))
    first, second = with_registered(config, OnlyRegisteredHere("why", "gymnasium/Late-v0")).env.tasks
    assert first.startswith("cloudpickle:Late_v0-")
    assert second == "gymnasium/CartPole-v1"
    gymnasium.register("Late-v1", entry_point=made_here(), kwargs={"lock": threading.Lock()})  # cannot be pickled
    with pytest.raises(EnvError, match="why"):
        with_registered(config, OnlyRegisteredHere("why", "gymnasium/Late-v1"))


def test_layer_of_takes_a_wrapper_with_its_settings_as_a_partial_and_says_so():
    given = (TimeLimit, {"max_episode_steps": 5})
    for wrappers in ([given], given, list(given)):
        with pytest.raises(SettingError) as raised:
            layer_of({"env": {"wrappers": wrappers}})
        advice = "pass functools.partial(TimeLimit, max_episode_steps=5)"
        assert str(raised.value) == f"env.wrappers: TimeLimit with its settings is not one value; {advice}"
    found = layer_of({"env": {"wrappers": [functools.partial(TimeLimit, max_episode_steps=5)]}})
    assert found["env.wrappers"].value.startswith("cloudpickle:TimeLimit-")


@pytest.mark.parametrize("value", [object(), torch.nn.Linear(2, 2)])
@pytest.mark.parametrize("setting", ["model.network", "model.encoder", "env.wrappers"])
def test_layer_of_asks_for_the_class_of_an_object_that_exists_already(setting, value):
    section, key = setting.split(".")
    advice = f"got an object of the class {type(value).__name__}; every process makes its own: pass the class, or a"
    for given in (value, [value]):
        with pytest.raises(SettingError, match=f"^{setting}: expected a name, a class or a function, {advice}"):
            layer_of({section: {key: given}})


@pytest.mark.parametrize("value", [3, True, b"nature", {"a": 1}, [3], [["nature"]], [None]])
def test_layer_of_refuses_what_is_neither_a_name_nor_code(value):
    with pytest.raises(SettingError, match=r"^model\.encoder: .* is no name, class or function$"):
        layer_of({"model": {"encoder": value}})
