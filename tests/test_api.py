"""`sfactory.train` from Python: settings, arguments and errors. Runs are in tests/system, in test_api_runs.py."""

import importlib
import inspect
import json
import multiprocessing
import os
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from builders import LOCKSTEP

import sfactory
from sfactory.config.python_values import switches, whole_numbers
from sfactory.envs import EnvError
from sfactory.errors import CommandError, Exit, SettingError, SettingNote
from sfactory.run.outcome import Outcome

pytestmark = pytest.mark.usefixtures("forked")


def test_missing_main_file_is_hidden_until_the_last_run_ends(monkeypatch):
    from sfactory.supervisor.main_script import MISSING_MAIN_FILE

    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "<stdin>", raising=False)
    with MISSING_MAIN_FILE:
        with MISSING_MAIN_FILE:
            assert not hasattr(main, "__file__")
        assert not hasattr(main, "__file__")
    assert main.__file__ == "<stdin>"


def test_train_refused_after_start_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sections = {**LOCKSTEP, "run": {"mode": "lockstep", "dir": "runs/a"}}
    for _ in range(2):  # the second time it is refused for the same reason
        with pytest.raises(EnvError, match="cannot be saved exactly"):
            sfactory.train("faults/count", **sections)
        assert list(tmp_path.iterdir()) == []


def test_train_that_fails_by_a_bug_has_status_failed(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sfactory.supervisor.train.run_lockstep", fail)
    sections = {**LOCKSTEP, "run": {"mode": "lockstep", "dir": "runs/a"}}
    with pytest.raises(RuntimeError, match="a bug"):
        sfactory.train("classic/cartpole", **sections)
    status = json.loads(Path("runs/a/status.json").read_text())
    assert (status["state"], status["sentence"]) == ("failed", "a bug")
    with pytest.raises(CommandError, match="runs/a holds a run whose start failed; remove it, or choose another run"):
        sfactory.train("classic/cartpole", **sections)


def test_make_config_applies_one_dict_per_section_to_a_preset_or_a_config():
    config = sfactory.make_config("minatar/breakout", optim={"lr": 0.5}, env={"settings": {"difficulty": 1}})
    assert (config.optim.lr, config.env.settings, config.env.name) == (0.5, {"difficulty": 1}, "minatar/breakout")
    same = sfactory.make_config(config)
    assert same == config
    other = sfactory.make_config(config, stop={"env_steps": 10_000}, model={"hidden": (8, 8)}, run={"debug": True})
    assert other == replace(
        config,
        stop=replace(config.stop, env_steps=10_000),
        model=replace(config.model, hidden=(8, 8)),
        run=replace(config.run, debug=True),
    )
    assert sfactory.make_config("classic/cartpole", stop={"target_return": 475.5}).stop.target_return == 475.5
    assert sfactory.make_config("classic/cartpole", optim={"lr": "2.5e-4"}).optim.lr == 2.5e-4


def test_make_config_takes_one_wrapper_without_a_list_and_lists_of_names():
    def wrappers(given):
        return sfactory.make_config("classic/cartpole", wrappers=given).env.wrappers

    assert wrappers("FlattenObservation") == wrappers(["FlattenObservation"]) == "FlattenObservation"
    own = lambda env: env  # noqa: E731  (what people pass)
    assert wrappers(own) == wrappers([own]) == wrappers((own,))
    names = {"env": {"info_keys": ["a", "b.c"]}, "log": {"wandb": True, "wandb_tags": ("x", "y")}}
    config = sfactory.make_config("classic/cartpole", **names)
    assert (config.env.info_keys, config.log.wandb_tags) == ("a,b.c", "x,y")
    tasks = ["minatar/freeway", "minatar/breakout"]
    assert sfactory.make_config("classic/cartpole", env={"name": tasks}).env.tasks == tuple(tasks)


def test_functions_take_old_names_of_arguments_with_a_note(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.warns(SettingNote, match=r"^run is now run_dir \(the old name still works\)$") as notes,
        pytest.raises(ValueError, match="none does not exist"),
    ):
        sfactory.load_policy(run="none")
    assert notes[0].filename == __file__
    with (
        pytest.warns(SettingNote, match=r"^out is now output "),
        pytest.raises(ValueError, match=r"policy\.txt"),
    ):
        sfactory.export("none", out="policy.txt")
    with pytest.raises(TypeError, match=r"load_policy\(\) got run and run_dir, two names of one argument"):
        sfactory.load_policy(run="a", run_dir="b")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sfactory.evaluate("run", 2.5), "episodes: 2.5 is not a whole number"),
        (lambda: sfactory.evaluate("run", "10"), "episodes: '10' is not a whole number"),
        (lambda: sfactory.evaluate("run", 2, num_envs=True), "num_envs: True is not a whole number"),
        (lambda: sfactory.evaluate("run", 2, video_episodes=None), "video_episodes: None is not a whole number"),
        (lambda: sfactory.play_match("run", "random", seed=0.0), "seed: 0.0 is not a whole number"),
        (lambda: sfactory.load_policy("run", seed="1"), "seed: '1' is not a whole number"),
        (lambda: sfactory.load_policy("run"), "run does not exist"),
        (lambda: sfactory.load_policy(None), "run_dir: expected a path, got None"),
        (lambda: sfactory.load_policy(b"run"), "run_dir: expected a path, got b'run'"),
        (lambda: sfactory.load_policy("run", trust="no"), "trust: expected True or False, got 'no'"),
        (lambda: sfactory.evaluate(Outcome("a", 0, "b", run_dir="c")), "c does not exist"),
        (lambda: sfactory.report(Outcome("a", 0, "b", run_dir="c")), "c does not exist"),
        (lambda: sfactory.compare([Outcome("a", 0, "b", run_dir="c")]), "c does not exist"),
        (lambda: sfactory.report("c", Outcome("a", 0, "b", run_dir="d")), "c does not exist"),
        (lambda: sfactory.evaluate("run", 2, greedy="no"), "greedy: expected True or False, got 'no'"),
        (lambda: sfactory.evaluate("run", n_eval_episodes=3), "n_eval_episodes: no such argument; here episodes="),
        (lambda: sfactory.evaluate("run", deterministic=True), "deterministic: no such argument; here greedy="),
        (lambda: sfactory.evaluate("run", render=True), 'render: no such argument; here video="FILE.mp4"$'),
        (lambda: sfactory.evaluate("run", episode=3), r"episode: no such argument; did you mean episodes\?"),
        (lambda: sfactory.evaluate("run", 2, video=True), "video: expected a path, got True"),
        (lambda: sfactory.train("classic/cartpole", check="no"), "check: expected True or False, got 'no'"),
        (lambda: sfactory.resume("run", allow=5), "allow: expected names of settings, as env.settings, got 5"),
        (lambda: sfactory.report(5), "run_dir: expected a path, got 5"),
        (lambda: sfactory.compare(None), "runs: expected a path, got None"),
        (lambda: sfactory.compare(["run", 5]), "runs: expected a path, got 5"),
        (lambda: sfactory.compare("run", labels=5), r"labels: expected texts, got \[5\]"),
        (lambda: sfactory.compare("run", metric=5), "metric: expected the name of one metric, got 5"),
    ],
)
def test_functions_name_a_wrong_argument_before_anything_starts(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call", [sfactory.evaluate, lambda *run, **given: sfactory.play_match(*run, "random", **given)]
)
@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("best", True, 'here checkpoint="best"'),
        ("step", 3, "here checkpoint=3"),
        ("steps", 3, "here checkpoint=3"),
        ("max_episode_steps", 3, "here max_steps="),
        ("max_ep_len", 3, "here max_steps="),
        ("return_episode_rewards", True, "here the result has `returns`, one of each episode"),
        ("n_eval_episodes", 3, "here episodes="),
        ("deterministic", True, "here greedy="),
        ("device", "cpu", "here a policy acts on the CPU"),
        ("env_id", "CartPole-v0", 'here the environment is that of training; change it by env={"settings": {...}}'),
    ],
)
def test_evaluate_and_play_match_say_what_an_argument_of_another_name_is_here(call, name, value, answer):
    with pytest.raises(SettingError) as raised:
        call("run", **{name: value})
    assert str(raised.value) == f"{name}: no such argument; {answer}"


def test_evaluate_and_play_match_say_that_a_run_keeps_its_environment():
    answer = 'here the environment is that of training; change it by env={"settings": {...}}'
    for env in ("gymnasium/CartPole-v0", gymnasium.Env()):
        for play, words in ((sfactory.evaluate, ["run"]), (sfactory.play_match, ["run", "random"])):
            with pytest.raises(SettingError) as raised:
                play(*words, env=env)
            assert str(raised.value) == f"env: expected a dict of settings; {answer}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sfactory.play_match("run", against="random"), "against: no such argument; here opponent="),
        (lambda: sfactory.play_match("run", "random", against="random"), "against: no such argument; here opponent="),
        (
            lambda: sfactory.play_match("run", "random", render=True),
            "render: no such argument; here a match is not recorded",
        ),
        (
            lambda: sfactory.play_match("run", "random", video="a.mp4"),
            "video: no such argument; here a match is not recorded",
        ),
        (lambda: sfactory.evaluate("run", render_mode="human"), 'render_mode: no such argument; here video="FILE.mp4"'),
        (lambda: sfactory.evaluate("run", watch=True), 'watch: no such argument; here video="FILE.mp4"'),
        (lambda: sfactory.evaluate(path="run"), "path: no such argument; here run_dir="),
        (lambda: sfactory.evaluate(run="run"), "run: no such argument; here run_dir="),
        (lambda: sfactory.play_match(run="run", opponent="random"), "run: no such argument; here run_dir="),
        (lambda: sfactory.load_policy("run", device="cpu"), "device: no such argument; here a policy acts on the CPU"),
        (lambda: sfactory.load_policy(path="run"), "path: no such argument; here run_dir="),
        (lambda: sfactory.load_policy("run", best=True), 'best: no such argument; here checkpoint="best"'),
        (lambda: sfactory.load_policy("run", step=3), "step: no such argument; here checkpoint=3"),
    ],
)
def test_functions_say_what_an_argument_of_another_name_is_here(call, message):
    with pytest.raises(SettingError) as raised:
        call()
    assert str(raised.value) == message


def test_functions_keep_the_error_of_python_for_an_argument_that_is_not_known():
    with pytest.raises(TypeError, match=r"load_policy\(\) got an unexpected keyword argument 'colour'"):
        sfactory.load_policy("run", colour=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'opponent'"):
        sfactory.play_match("run")


def test_signatures_are_those_of_the_functions_and_not_of_their_checks():
    assert list(inspect.signature(sfactory.load_policy).parameters) == ["run_dir", "seed", "trust", "checkpoint"]
    assert list(inspect.signature(sfactory.play_match).parameters)[:3] == ["run_dir", "opponent", "episodes"]
    assert next(iter(inspect.signature(sfactory.compare).parameters)) == "runs"


def test_compare_says_that_it_takes_one_list():
    with pytest.raises(TypeError, match=r"^compare\(\) takes one list of runs: compare\(\[a, b\]\)$"):
        sfactory.compare("a", "b")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'runs'"):
        sfactory.compare()


def test_export_is_a_public_name_and_the_old_module_of_this_name_has_moved():
    assert sfactory.export is sfactory.api.export
    with pytest.raises(ImportError, match=r"sfactory\.export has moved to sfactory\.play\.export"):
        importlib.import_module("sfactory.export")


def test_a_daemonic_process_is_told_why_it_cannot_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # as in a Pool
    for call in (lambda: sfactory.train("classic/cartpole"), lambda: sfactory.resume("run")):
        with pytest.raises(
            CommandError, match=r"a daemonic process, as those of multiprocessing\.Pool, may start none"
        ):
            call()
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_numpy_are_plain_numbers_in_a_result():
    found = whole_numbers(episodes=np.int64(3), seed=np.uint8(0))
    assert [type(value) for value in found.values()] == [int, int]
    assert switches(greedy=np.bool_(True)) == {"greedy": True}


@pytest.mark.parametrize(
    ("target", "sections", "message"),
    [
        ("minatar/breakot", {}, "did you mean breakout"),
        ("classic/cartpol", {}, "did you mean classic/cartpole"),
        ("classic/cartpole", {"optim": {"lrr": 1}}, "optim.lrr: no such setting; did you mean optim.lr"),
        ("classic/cartpole", {"optimizer": {"lr": 1}}, "no such setting"),
        ("classic/cartpole", {"optim": 1e-3}, "expected a dict of settings"),
        ("classic/cartpole", {"optim": {"lr": "fast"}}, "'fast' is not a number"),
        ("classic/cartpole", {"wrappers": 5}, "wrappers: expected classes, functions or names, got 5"),
        ("classic/cartpole", {"run": {"dir": b"x"}}, "run.dir: b'x' is not text"),
        ("classic/cartpole", {"env": {"info_keys": ["a,b"]}}, "env.info-keys: 'a,b' has a comma"),
        ("classic/cartpole", {"env": {"info_keys": [1]}}, "env.info-keys: 1 is not text"),
        ("classic/cartpole", {"run": {"dir": ["a", "b"]}}, "run.dir: expected one value, got a list of 2"),
        ("classic/cartpole", {"batch": {"minibatches": 7}}, "must divide into 7 minibatches"),
        ("", {}, "no TARGET"),
    ],
)
def test_train_reports_mistakes_in_one_line(tmp_path, monkeypatch, target, sections, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        sfactory.train(target, **sections)
    assert "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_train_with_an_unknown_environment_raises_env_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvError, match="minatar has no game 'pong'"):
        sfactory.train("minatar/pong")


def test_train_without_run_dir_refuses_requeue():
    with pytest.raises(CommandError, match=r"run\.requeue needs run\.dir") as raised:
        sfactory.train("classic/cartpole", run={"requeue": True})
    assert raised.value.exit_code == Exit.USAGE
