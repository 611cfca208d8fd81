"""`sfactory export`: the file plays as the policy does, or it is not kept."""

import json

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import train_nested, trained

import sfactory
from sfactory.play import export as export_module
from sfactory.play.export import Exported, NotEqual, export
from sfactory.run import checkpoint

TARGETS = {
    "minatar": ("minatar/breakout", {}),
    "cartpole": ("classic/cartpole", {"normalize": {"obs": True, "value_targets": True}}),
    "squash": ("classic/pendulum", {"model": {"squash": True}}),
    "atari": ("atari/pong", {"stop": {"env_steps": 128}}),
    "gru": ("memory/tmaze", {"model": {"core": "gru", "core_size": 8}}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains what is asked for, once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def get(name):
        target, sections = TARGETS[name]
        if name not in made:
            made[name] = trained(folder / name, target, **sections)
        return made[name]

    return get


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_every_kind_of_policy_comes_back_equal(run, tmp_path, name, suffix):
    done = export(run(name), tmp_path / f"policy{suffix}")
    assert done.rows >= 64
    assert done.difference <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [f"policy{suffix}"]


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_dict_observations_and_actions_keep_their_names(tmp_path, monkeypatch, suffix):
    run = train_nested(tmp_path / "run", monkeypatch)
    done = export(run, tmp_path / f"policy{suffix}")
    assert done.metadata["inputs"] == ["obs/image", "obs/vector", "obs/which"]
    assert done.metadata["outputs"] == ["action/go", "action/push", "params", "value"]
    if suffix == ".onnx":
        assert [x.name for x in session(done.path).get_inputs()] == done.metadata["inputs"]


def test_a_game_is_played_by_the_file_alone_as_by_the_policy(run, tmp_path):
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


def test_memory_is_an_input_and_an_output(run, tmp_path):
    policy = sfactory.load_policy(run("gru"))
    alone = session(export(run("gru"), tmp_path / "policy.onnx").path)
    state = np.full((1, 8), np.nan, np.float32)  # first: whatever was there is forgotten
    for step, obs in enumerate(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)):
        feeds = {"obs": obs[None], "state": state, "first": np.array([step == 0])}
        action, state = alone.run(["action", "next_state"], feeds)
        assert action[0] == policy.act(obs, first=step == 0)
        np.testing.assert_allclose(state, policy._actor.state.numpy(), atol=1e-5)


def test_the_value_is_in_units_of_reward_whatever_the_head_says(run, tmp_path):
    folder = run("cartpole")
    program = torch.export.load(export(folder, tmp_path / "policy.pt2").path).module()
    scale = checkpoint.load(checkpoint.newest(folder), ("normalizers",)).parts["normalizers"]
    mean, std = float(scale["target.mean"]), float(scale["target.std"])
    assert abs(std - 1.0) > 0.2  # else nothing would be told apart
    obs = {"obs": torch.randn(5, 4)}
    said = sfactory.load_policy(folder).model(obs).value
    torch.testing.assert_close(program(obs, None, None)["value"], mean + std * said, rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_is(run, tmp_path):
    folder = run("minatar")
    steps = sfactory.load_policy(folder).env_steps
    export(folder, tmp_path / "policy.onnx")
    said = {p.key: p.value for p in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert (said["env"], said["env_steps"]) == ("minatar/breakout", str(steps))
    assert said["sfactory"] == sfactory.__version__
    export(folder, tmp_path / "policy.pt2")
    extra = {"sfactory.json": ""}
    torch.export.load(tmp_path / "policy.pt2", extra_files=extra)
    assert json.loads(extra["sfactory.json"])["env_steps"] == steps


def _off_by_a_little(answer):
    return {**answer, "value": answer["value"] + 2e-4 * answer["value"].abs().clamp(min=1.0)}


def _nan(answer):
    return {**answer, "value": answer["value"] * float("nan")}


def _other_action(answer):
    return {**answer, "action": 1 - answer["action"]}


def _renamed(answer):
    return {**answer, "next_state": answer["value"]}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_off_by_a_little, "value is 2.0e-04 away"),
        (_nan, "value is nan away"),
        (_other_action, "action is another one for 1 of 1 random observations"),
        (_renamed, "its outputs are action, params, value, next_state, not action, params, value"),
    ],
)
def test_a_file_that_differs_is_not_kept(run, tmp_path, monkeypatch, spoil, said):
    right = Exported.forward
    monkeypatch.setattr(Exported, "forward", lambda self, obs, state=None, first=None: spoil(right(self, obs)))
    with pytest.raises(NotEqual, match=said):
        export(run("cartpole"), tmp_path / "policy.pt2")
    assert list(tmp_path.iterdir()) == []


def test_of_two_actions_that_are_equally_likely_either_is_right(run):
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
        with pytest.raises(NotEqual, match="another one for 1 of 1"):
            export_module.compare(policy, other)


def test_the_command_prints_what_was_written_and_exits_1_if_it_differs(typed, run, tmp_path, monkeypatch):
    code, out, line = typed("export", run("cartpole"), "-o", "p.pt2")
    assert code == 0
    assert "inputs    obs: any number of rows" in out
    assert line.startswith("sfactory: exported (exit 0): p.pt2: the same actions on 72 random observations")
    code, out, _ = typed("export", run("cartpole"), "--out=q.pt2", "--json")
    assert json.loads(out)["outputs"] == ["action", "params", "value"]
    right = Exported.forward
    monkeypatch.setattr(Exported, "forward", lambda self, obs, state=None, first=None: _nan(right(self, obs)))
    code, _, line = typed("export", run("cartpole"), "-o", "r.pt2")
    assert (code, "not equal (exit 1): r.pt2 was deleted" in line) == (1, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.pt2", "q.pt2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export {run}", "export needs a file: sfactory export"),
        ("export {run} -o policy.pth", "policy.pth: the name says the format; let it end in .onnx or .pt2"),
        ("export {run} -o absent/policy.pt2", "there is no folder absent"),
        ("export absent -o policy.pt2", "absent does not exist"),
        ("export {run} -o policy.pt2 --optim.lr 1", "optim.lr: export takes no settings"),
    ],
)
def test_mistakes(typed, run, words, said):
    code, out, line = typed(*words.format(run=run("cartpole")).split())
    assert (code, out) == (2, "")
    assert said in line


def test_onnx_that_is_missing_is_named_with_its_extra(typed, run, monkeypatch):
    real = sfactory.play.export.find_spec
    monkeypatch.setattr(sfactory.play.export, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    code, _, line = typed("export", run("cartpole"), "-o", "p.onnx")
    assert code == 2
    assert "an .onnx file needs onnxscript, not installed: pip install 'sfactory[onnx]'" in line
