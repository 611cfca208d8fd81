"""Policies of other runs as opponents: with the network, treatment of observations and code of their own run."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from match_runs import NETS, write_run

import sfactory
from sfactory.config.toml_file import from_toml
from sfactory.envs import make_spec
from sfactory.errors import CheckpointError
from sfactory.run.opponent_rules import check_self_play
from sfactory.run.trust import record_run
from sfactory.workers.opponent_pool import outside
from sfactory.workers.opponents import Opponents
from sfactory.workers.shared import RunSpec

torch.set_num_threads(1)
GAME = "pettingzoo/match_envs:Highest"


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The folder in which a run with an encoder of its own file was trained. Afterwards this is another folder."""
    folder = tmp_path / "rival"
    folder.mkdir()
    (folder / "nets_of_a_rival.py").write_text(NETS)
    (tmp_path / "here").mkdir()
    yield folder
    sys.modules.pop("nets_of_a_rival", None)


def opponents_of(*paths, **sections):
    """The opponents of a run of this game whose own network is small."""
    selfplay = {"share": 0.5, "opponents": ",".join(map(str, paths))}
    model = {"hidden": [4], "separate": False} | sections.pop("model", {})
    config = sfactory.make_config(GAME, selfplay=selfplay, model=model, **sections)
    spec = make_spec(GAME, config.env.options)
    spec = replace(spec, obs=dict(reversed(spec.obs.items())))  # no rule says in which order the leaves come
    check_self_play(config, spec)
    return Opponents(RunSpec(config, spec, "unused", 0), torch.device("cpu"))


def inputs(rows=6, memory=0):
    rng = np.random.default_rng(0)
    found = {
        "obs": torch.from_numpy(3 * rng.random((rows, 2), np.float32)),
        "agent_id": torch.eye(2, dtype=torch.bool).repeat(rows // 2, 1),
        "acting": torch.ones(rows, dtype=torch.bool),
        "first": torch.zeros(rows, dtype=torch.bool),
        "noise": torch.from_numpy(rng.random((rows, 1), np.float32)),
    }
    return found | ({"state": torch.from_numpy(rng.random((rows, memory), np.float32))} if memory else {})


@torch.inference_mode()
def by_its_own_run(path, given):
    """What the policy of a run computes if it is loaded as `eval` does."""
    model = sfactory.load_policy(path, trust=True).model
    return model({name: given[name] for name in ("obs", "agent_id", "acting")}, given.get("state"), given["first"])


def test_opponents_act_with_the_network_of_their_own_run(tmp_path):
    """Another width, depth, activation, critic and normalizer than those of the run that learns."""
    model = {"hidden": [16, 8], "activation": "relu", "separate": True}
    run = write_run(tmp_path / "run", GAME, 100, model=model, normalize={"obs": True})
    given = inputs()
    found = opponents_of(run, model={"activation": "tanh"}, normalize={"obs": False}).outputs(outside(0), given)
    expected = by_its_own_run(run, given)
    torch.testing.assert_close(found["params"], expected.params)
    torch.testing.assert_close(found["value"], expected.value)
    assert found["params"].std() > 0


def test_opponents_read_the_leaves_of_an_observation_in_the_order_of_their_own_run(tmp_path):
    run = write_run(tmp_path / "run", GAME, 100, model={"hidden": [16]}, env={"agent_id": True})
    given = inputs()
    found = opponents_of(run, env={"agent_id": True}).outputs(outside(0), given)
    torch.testing.assert_close(found["params"], by_its_own_run(run, given).params)


def test_opponents_with_a_memory_use_that_of_the_run_and_others_leave_it(tmp_path):
    memory = {"core": "gru", "core_size": 8, "separate": False}
    run = write_run(tmp_path / "run", GAME, 100, model={**memory, "hidden": [16]})
    plain = write_run(tmp_path / "plain", GAME, 100, model={"core": "none", "hidden": [8]})
    opponents, given = opponents_of(run, plain, model=memory), inputs(memory=8)
    found, expected = opponents.outputs(outside(0), given), by_its_own_run(run, given)
    torch.testing.assert_close(found["params"], expected.params)
    torch.testing.assert_close(found["state"], expected.state)
    assert "state" not in opponents.outputs(outside(1), given)
    with pytest.raises(ValueError, match=r"its model\.core gru of 8 needs a memory that this run does not have"):
        opponents_of(run)


def test_opponents_have_an_encoder_of_the_users_own_file_from_the_folder_of_its_run(tmp_path, nets, monkeypatch):
    monkeypatch.chdir(nets)
    monkeypatch.syspath_prepend(str(nets))
    run = write_run(tmp_path / "run", GAME, 100, model={"encoder": "nets_of_a_rival:Wide", "hidden": [16]})
    record_run(run, from_toml(run / "config.toml"))
    given = inputs()
    expected = by_its_own_run(run, given)
    monkeypatch.undo()
    del sys.modules["nets_of_a_rival"]
    monkeypatch.chdir(tmp_path / "here")
    found = opponents_of(run).outputs(outside(0), given)
    assert str(nets) not in sys.path
    torch.testing.assert_close(found["params"], expected.params)


def test_opponents_whose_network_is_not_that_of_their_settings_are_refused(tmp_path):
    run = write_run(tmp_path / "run", GAME, 100, model={"hidden": [16], "separate": False})
    text, changed = re.subn(r"hidden = \[\s*16,?\s*\]", "hidden = [2]", (run / "config.toml").read_text())
    assert changed
    (run / "config.toml").write_text(text)
    with pytest.raises(CheckpointError, match="another network"):
        opponents_of(run).outputs(outside(0), inputs())
