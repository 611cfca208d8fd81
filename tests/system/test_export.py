"""`sfactory export`: the file computes what the policy computes, or it is not written."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import Everything, Nested, train_odd, train_own, trained

import sfactory
from sfactory.api import export
from sfactory.play import export as export_module
from sfactory.play.export import ExportedPolicy, ExportMismatch
from sfactory.run import checkpoint

TARGETS = {
    "dae": ("minatar/breakout", {"algorithm": {"name": "dae"}}),
    "minatar": ("minatar/breakout", {}),
    "cartpole": ("classic/cartpole", {"normalize": {"obs": True, "value_targets": True}}),
    "squash": ("classic/pendulum", {"model": {"squash": True}}),
    "pqn": ("minatar/breakout", {"algorithm": {"name": "pqn"}}),
    "ppg": ("classic/pendulum", {"algorithm": {"name": "ppg"}, "ppg": {"policy_updates": 1, "phase_epochs": 1}}),
    "bins": ("classic/cartpole", {"model": {"value_head": "hl_gauss"}, "normalize": {"value_targets": True}}),
    "atari": ("atari/pong", {"stop": {"env_steps": 128}}),
    "gru": ("memory/tmaze", {"model": {"core": "gru", "core_size": 8}}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that trains each of TARGETS once and returns its run folder."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def get(name):
        target, sections = TARGETS[name]
        if name not in made:
            made[name] = trained(folder / name, target, **sections)
        return made[name]

    return get


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.sampled(4)  # dae, pqn, gru (.pt2), squash, atari (.onnx); tests below export minatar, cartpole and bins
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_export_writes_a_file_equal_to_every_kind_of_policy(run, tmp_path, name, suffix):
    done = export(run(name), tmp_path / f"policy{suffix}")
    assert done.rows >= 64
    assert done.difference <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [f"policy{suffix}"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_export_keeps_the_names_of_dict_observations_and_actions(tmp_path, suffix):
    run = train_own(tmp_path / "run", Nested)
    done = export(run, tmp_path / f"policy{suffix}")
    assert done.metadata["inputs"] == ["obs/image", "obs/vector", "obs/which"]
    assert done.metadata["outputs"] == ["action/go", "action/push", "params", "value"]
    if suffix == ".onnx":
        assert [x.name for x in session(done.path).get_inputs()] == done.metadata["inputs"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("suffix", "normalize"), [(".pt2", True), (".onnx", False)])
def test_exported_file_reads_pictures_and_integers_like_the_policy(tmp_path, suffix, normalize):
    run = train_own(tmp_path / "run", Everything, normalize={"obs": normalize}, stop={"env_steps": 64})
    assert export(run, tmp_path / f"policy{suffix}").difference <= 1e-4


@pytest.mark.sampled(2)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_export_gives_actions_the_shape_of_their_spaces(tmp_path, suffix):
    """Flat leaves become tables again; a leaf without numbers is no output."""
    run = train_odd(tmp_path / "run")
    done = export(run, tmp_path / f"policy{suffix}")
    names = [f"action/{key}" for key in ("bits", "force", "level", "table")]
    assert done.metadata["outputs"] == [*names, "params", "value"]
    if suffix == ".onnx":
        outputs = session(done.path).run(names, {"obs/x": np.zeros((2, 3), np.float32)})
        assert [out.shape for out in outputs] == [(2, 2, 2), (2,), (2, 1), (2, 2, 2)]
        one = sfactory.load_policy(run).act({"x": np.zeros(3, np.float32)})
        assert outputs[3][0].tolist() == one["table"].tolist()


def test_exported_file_plays_an_episode_like_the_policy(run, tmp_path):
    policy = sfactory.load_policy(run("cartpole"))
    alone = session(export(run("cartpole"), tmp_path / "policy.onnx").path)
    program = torch.export.load(export(run("cartpole"), tmp_path / "policy.pt2").path).module()
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=5)
    steps = 0
    while True:
        steps += 1
        one = policy.act(obs)
        assert alone.run(["action"], {"obs": obs[None]})[0][0] == one
        assert program({"obs": torch.from_numpy(obs[None])}, None, None)["action"][0] == one
        obs, _, terminated, truncated, _ = env.step(one)
        if terminated or truncated:
            break
    assert steps > 5


def test_exported_recurrent_state_is_an_input_and_an_output(run, tmp_path):
    policy = sfactory.load_policy(run("gru"))
    alone = session(export(run("gru"), tmp_path / "policy.onnx").path)
    state = np.full((1, 8), np.nan, np.float32)  # first: the state is ignored
    for step, obs in enumerate(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)):
        feeds = {"obs": obs[None], "state": state, "first": np.array([step == 0])}
        action, state = alone.run(["action", "next_state"], feeds)
        assert action[0] == policy.act(obs, first=step == 0)
        np.testing.assert_allclose(state, policy._actor.state.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["cartpole", "bins"])
def test_exported_value_is_in_units_of_reward_with_normalized_value_targets(run, tmp_path, name):
    folder = run(name)
    program = torch.export.load(export(folder, tmp_path / "policy.pt2").path).module()
    scale = checkpoint.read(checkpoint.newest(folder), ("normalizers",)).parts["normalizers"]
    mean, std = float(scale["target.mean"]), float(scale["target.std"])
    assert abs(std - 1.0) > 0.2  # otherwise the test could not fail
    obs = {"obs": torch.randn(5, 4)}
    value = sfactory.load_policy(folder).model(obs).value
    torch.testing.assert_close(program(obs, None, None)["value"], mean + std * value, rtol=1e-4, atol=1e-4)


def test_exported_file_holds_metadata(run, tmp_path):
    folder = run("minatar")
    steps = sfactory.load_policy(folder).env_steps
    export(folder, tmp_path / "policy.onnx")
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert (metadata["env"], metadata["env_steps"]) == ("minatar/breakout", str(steps))
    assert metadata["sfactory"] == sfactory.__version__
    export(folder, tmp_path / "policy.pt2")
    extra = {"sfactory.json": ""}
    torch.export.load(tmp_path / "policy.pt2", extra_files=extra)
    assert json.loads(extra["sfactory.json"])["env_steps"] == steps


def _slightly_off(output):
    return {**output, "value": output["value"] + 2e-4 * output["value"].abs().clamp(min=1.0)}


def _nan(output):
    return {**output, "value": output["value"] * float("nan")}


def _other_action(output):
    return {**output, "action": 1 - output["action"]}


def _renamed(output):
    return {**output, "next_state": output["value"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_slightly_off, "value differs from the policy's by 2.0e-04"),
        (_nan, "value differs from the policy's by nan"),
        (_other_action, "action differs for 1 of 1 random observations"),
        (_renamed, "the outputs are action, params, value, next_state, expected action, params, value"),
    ],
)
def test_export_deletes_a_file_that_differs_from_the_policy(run, tmp_path, monkeypatch, change, message):
    original = ExportedPolicy.forward
    monkeypatch.setattr(
        ExportedPolicy, "forward", lambda self, obs, state=None, first=None: change(original(self, obs))
    )
    with pytest.raises(ExportMismatch, match=message):
        export(run("cartpole"), tmp_path / "policy.pt2")
    assert list(tmp_path.iterdir()) == []


def test_export_accepts_either_of_two_equally_likely_actions(run):
    """Another build of the same products may round the last bit of a logit the other way."""
    policy = sfactory.load_policy(run("cartpole"))
    head = policy.model.policy_head

    def other(*inputs):
        out = export_module._reference(policy, inputs)
        return {**out, "action": 1 - out["action"]}

    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1e-6]))
        assert export_module.compare(policy, other) <= 1e-6
        head.bias.copy_(torch.tensor([0.0, 1e-3]))
        with pytest.raises(ExportMismatch, match="action differs for 1 of 1"):
            export_module.compare(policy, other)


def test_export_command_prints_the_check_and_exits_1_on_a_mismatch(typed, run, tmp_path, monkeypatch):
    code, out, line = typed("export", run("cartpole"), "-o", "p.pt2")
    assert code == 0
    assert "inputs    obs; any batch size" in out
    assert line.startswith("sfactory: exported (exit 0): p.pt2: same actions on 72 random observations")
    code, out, _ = typed("export", run("cartpole"), "--out=q.pt2", "--json")
    assert json.loads(out)["outputs"] == ["action", "params", "value"]
    original = ExportedPolicy.forward
    monkeypatch.setattr(ExportedPolicy, "forward", lambda self, obs, state=None, first=None: _nan(original(self, obs)))
    code, _, line = typed("export", run("cartpole"), "-o", "r.pt2")
    assert (code, "not equal (exit 1): r.pt2 was not written" in line) == (1, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.pt2", "q.pt2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export {run}", "export needs a file: sfactory export"),
        ("export {run} -o policy.pth", "policy.pth: the suffix selects the format; use .onnx or .pt2"),
        ("export {run} -o absent/policy.pt2", "the folder absent does not exist"),
        ("export {run} -o folder.pt2", "folder.pt2 is a folder; name a file"),
        ("export absent -o policy.pt2", "absent does not exist"),
        ("export {run} -o policy.pt2 --optim.lr 1", "optim.lr: export takes no settings"),
    ],
)
def test_export_reports_usage_errors(typed, run, arguments, message):
    Path("folder.pt2").mkdir()
    code, out, line = typed(*arguments.format(run=run("cartpole")).split())
    assert (code, out) == (2, "")
    assert message in line


def test_export_names_the_extra_of_a_missing_onnx_package(typed, run, monkeypatch):
    real = sfactory.play.export.find_spec
    monkeypatch.setattr(sfactory.play.export, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    code, _, line = typed("export", run("cartpole"), "-o", "p.onnx")
    assert code == 2
    assert "an .onnx file needs onnxscript, not installed: pip install 'sfactory[onnx]'" in line
