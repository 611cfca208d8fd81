"""`sfactory.train` from Python: threads of a notebook, repeated runs, and errors. Scripts are in tests/system."""

import gc
import json
import math
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sfactory
from sfactory import api
from sfactory.config.toml_file import from_toml
from sfactory.envs import EnvError
from sfactory.errors import CommandError, Exit, SettingNote
from sfactory.run.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("forked")

SHORT = {
    "stop": {"env_steps": 2000},
    "sampling": {"num_samplers": 2, "envs_per_group": 4, "rollout_length": 16},
    "batch": {"minibatches": 2},
    "log": {"quiet": True},
}
LOCKSTEP = {**SHORT, "run": {"mode": "lockstep"}, "stop": {"env_steps": 300}}


def test_train_in_a_thread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    thread = threading.Thread(target=lambda: found.append(sfactory.train("classic/cartpole", **LOCKSTEP)))
    thread.start()
    thread.join()
    assert [outcome.code for outcome in found] == [0]


def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def weights(run_dir):
    return next(iter(sorted(Path(run_dir).glob("checkpoints/*/model.safetensors"), reverse=True))).read_bytes()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_train_in_two_threads_at_once(tmp_path, monkeypatch, mode):
    """Each has a folder of its own; in lockstep each has the weights that it would have alone."""
    monkeypatch.chdir(tmp_path)
    streams, found, failed = (sys.stdout, sys.stderr), {}, []
    sections = {**(LOCKSTEP if mode == "lockstep" else SHORT), "run": {"mode": mode}}

    def work(number):
        try:
            found[number] = sfactory.train("classic/cartpole", **sections)
        except BaseException as error:
            failed.append(error)

    in_threads(2, work)
    assert failed == []
    assert [outcome.code for outcome in found.values()] == [0, 0]
    assert len({outcome.run_dir for outcome in found.values()}) == 2
    assert (sys.stdout, sys.stderr) == streams
    if mode == "lockstep":
        alone = sfactory.train("classic/cartpole", **sections)
        assert len({weights(outcome.run_dir) for outcome in [alone, *found.values()]}) == 1


def test_the_network_of_a_run_is_the_same_when_others_are_built_at_once():
    from sfactory.envs import make_spec
    from sfactory.learning.network import build_model

    config, spec = sfactory.make_config("classic/cartpole"), make_spec("gymnasium/CartPole-v1")
    found = []
    in_threads(4, lambda _: found.extend(str(build_model(config, spec).state_dict()) for _ in range(20)))
    assert len(set(found)) == 1


def test_missing_main_file_is_hidden_until_the_last_run_ends(monkeypatch):
    from sfactory.supervisor.main_script import MISSING_MAIN_FILE

    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "<stdin>", raising=False)
    with MISSING_MAIN_FILE:
        with MISSING_MAIN_FILE:
            assert not hasattr(main, "__file__")
        assert not hasattr(main, "__file__")
    assert main.__file__ == "<stdin>"


def descriptors():
    """Open shared memory, pipes and locks of this process."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.exists() or path.is_symlink()]
    found = [os.readlink(path) for path in links if os.path.lexists(path)]
    return sorted(name for name in found if "memfd" in name or "pipe:" in name or name.endswith(".lock"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_repeated_runs_in_one_process_leave_no_descriptors(tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    sections = {**LOCKSTEP, "run": {"mode": mode}}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for number in range(2):
            outcome = sfactory.train("classic/cartpole", **{**sections, "run": {"mode": mode, "dir": f"runs/{number}"}})
            assert outcome.code == 0
            gc.collect()  # a mapping keeps its file until its last array is gone
            found.append(descriptors())
        assert len(found[0]) == len(found[1]), "the first run may start helpers of Python"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


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


def test_failed_resume_releases_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = sfactory.train("classic/cartpole", **{**LOCKSTEP, "run": {"mode": "lockstep", "dir": "runs/a"}})
    for state in Path(outcome.run_dir).glob("checkpoints/*/state.json"):
        state.write_text("{}")
    with pytest.raises(CheckpointError, match="bytes, expected"):
        sfactory.resume("runs/a", stop={"env_steps": 600})
    assert not [name for name in descriptors() if name.endswith(".lock")]


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
        sfactory.api.export("none", out="policy.txt")
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
    ],
)
def test_functions_name_a_wrong_argument_before_anything_starts(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call()


def test_whole_numbers_of_numpy_are_plain_numbers_in_a_result():
    found = api._whole_numbers(episodes=np.int64(3), seed=np.uint8(0))
    assert [type(value) for value in found.values()] == [int, int]


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
        ("classic/cartpole", {"run": {"dir": ["a", "b"]}}, "run.dir: expected one value, got 2"),
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


def test_train_refuses_an_existing_run_and_resume_continues_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sections = {**LOCKSTEP, "run": {"mode": "lockstep", "dir": "runs/a"}}
    first = sfactory.train("classic/cartpole", **sections)
    assert first.run_dir == "runs/a"
    with pytest.raises(ValueError, match=r"runs/a holds a run already; .*sfactory.resume\('runs/a'\)"):
        sfactory.train("classic/cartpole", **sections)
    second = sfactory.resume("runs/a", stop={"env_steps": 600})
    assert second.code == 0
    assert second.env_steps >= 600 > first.env_steps
    with pytest.raises(ValueError, match=r"model\.hidden cannot change in the middle of a run"):
        sfactory.resume("runs/a", model={"hidden": (16,)})
    sfactory.resume("runs/a", allow=["run.mode"], run={"mode": "lockstep"}, stop={"env_steps": 900})
    with pytest.raises(ValueError, match="runs/absent does not exist"):
        sfactory.resume("runs/absent")


def test_resume_and_requeue_keep_the_samplers_of_a_run_where_num_samplers_is_0(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = {"mode": "lockstep", "dir": "runs/a"}
    sfactory.train("classic/cartpole", **{**LOCKSTEP, "run": run})
    undecided = {**LOCKSTEP["sampling"], "num_samplers": 0}
    assert sfactory.resume("runs/a", sampling={"num_samplers": 0}, stop={"env_steps": 600}).code == 0
    again = {**LOCKSTEP, "sampling": undecided, "run": {**run, "requeue": True}, "stop": {"env_steps": 900}}
    assert sfactory.train("classic/cartpole", **again).code == 0
    assert from_toml(Path("runs/a/config.toml")).sampling.num_samplers == 2


def test_train_writes_the_settled_number_of_samplers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    undecided = {**LOCKSTEP, "sampling": {**LOCKSTEP["sampling"], "num_samplers": 0}, "run": {"mode": "lockstep"}}
    config = from_toml(Path(sfactory.train("classic/cartpole", **undecided).run_dir) / "config.toml")
    assert (config.sampling.num_samplers, config.sampling.envs_per_group, config.run.inference_workers) == (1, 4, 1)


def test_evaluate_plays_episodes_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sfactory.train("classic/cartpole", **{**LOCKSTEP, "run": {"mode": "lockstep", "dir": "runs/a"}})
    result = sfactory.evaluate("runs/a", episodes=3, greedy=True, max_steps=20, seed=1)
    assert len(result.returns) == 3
    assert result.greedy
    with pytest.raises(ValueError, match="runs/absent does not exist"):
        sfactory.evaluate("runs/absent")


@pytest.mark.slow
def test_paths_begin_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sfactory.train("classic/cartpole", **{**LOCKSTEP, "run": {"mode": "lockstep", "dir": "~/runs/a"}})
    assert sfactory.resume("~/runs/a", stop={"env_steps": 600}).code == 0
    assert len(sfactory.evaluate("~/runs/a", episodes=2, max_steps=5).returns) == 2
    assert sfactory.load_policy("~/runs/a").act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_train_without_run_dir_refuses_requeue():
    with pytest.raises(CommandError, match=r"run\.requeue needs run\.dir") as raised:
        sfactory.train("classic/cartpole", run={"requeue": True})
    assert raised.value.exit_code == Exit.USAGE


PROBE = """\
import gymnasium, json
class Probe(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
    def __init__(self, **given):
        with open("given.jsonl", "a") as file: file.write(json.dumps(given, sort_keys=True) + "\\n")
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); return self.observation_space.sample(), {}
    def step(self, action): return self.observation_space.sample(), 1.0, False, True, {}
gymnasium.register("Probe-v0", entry_point=Probe)
"""


def test_an_environment_gets_the_same_arguments_at_the_start_and_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "probe.py").write_text(PROBE)
    settings = {"none": None, "bool": np.bool_(False), "n": np.int64(8), "nan": math.nan, "t": {"a": (None, 1.0)}}
    sections = {**LOCKSTEP, "run": {"mode": "lockstep", "dir": "runs/a"}, "checkpoint": {"exact": False}}
    sfactory.train("gymnasium/probe:Probe-v0", **sections, env={"settings": settings})
    assert sfactory.resume("runs/a", stop={"env_steps": 600}).code == 0
    assert "env.settings" not in (tmp_path / "runs/a/log.txt").read_text()
    given = (tmp_path / "given.jsonl").read_text().splitlines()
    assert set(given) == {'{"bool": false, "n": 8, "nan": NaN, "none": null, "t": {"a": [null, 1.0]}}'}
    with pytest.raises(CommandError, match=r"env\.settings cannot change"):
        sfactory.resume("runs/a", env={"settings": {"n": True, "bool": 0}}, stop={"env_steps": 900})
