"""Runs that `sfactory.train`, `resume` and `evaluate` start in this process: threads, repeated runs, continued ones."""

import gc
import math
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import LOCKSTEP, SHORT

import sfactory
from sfactory.config.toml_file import from_toml
from sfactory.errors import CommandError
from sfactory.run.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("forked")


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


def test_failed_resume_releases_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = sfactory.train("classic/cartpole", **{**LOCKSTEP, "run": {"mode": "lockstep", "dir": "runs/a"}})
    for state in Path(outcome.run_dir).glob("checkpoints/*/state.json"):
        state.write_text("{}")
    with pytest.raises(CheckpointError, match="bytes, expected"):
        sfactory.resume("runs/a", stop={"env_steps": 600})
    assert not [name for name in descriptors() if name.endswith(".lock")]


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
