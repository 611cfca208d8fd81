"""ActorCritic: shapes for every observation, recurrence, precision, flat weights, action masks."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sfactory.model.actor_critic import ActorCritic
from sfactory.model.cores import CORES
from sfactory.model.encoders import MinAtar, make_encoder

torch.set_num_threads(1)


class Leaf(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any = "float32"
    kind: str = ""
    sizes: tuple[int, ...] = ()


VECTOR = {"obs": Leaf((4,))}
MINATAR = {"obs": Leaf((10, 10, 4), "bool")}
ATARI = {"obs": Leaf((4, 84, 84), "uint8")}
DICT = {"image": Leaf((10, 10, 6), "bool"), "speed": Leaf((3,)), "map": Leaf((2, 5), "int64")}
DISCRETE = {"action": Leaf((), kind="discrete", sizes=(3,))}
MIXED = {
    "reach": Leaf((2,), kind="box", sizes=(2,)),
    "press": Leaf((), kind="discrete", sizes=(4,)),
    "turn": Leaf((1,), kind="box", sizes=(1,)),
}


def sample_obs(obs: dict[str, Leaf], *lead: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, leaf in obs.items():
        if leaf.dtype == "float32":
            out[name] = torch.randn(*lead, *leaf.shape, generator=g)
        else:
            x = torch.randint(2 if leaf.dtype == "bool" else 255, (*lead, *leaf.shape), generator=g)
            out[name] = x.to(getattr(torch, leaf.dtype))
    return out


@pytest.mark.parametrize("actions", [DISCRETE, MIXED], ids=["discrete", "mixed"])
@pytest.mark.parametrize("obs", [VECTOR, MINATAR, ATARI, DICT], ids=["vector", "minatar", "atari", "dict"])
@pytest.mark.parametrize("separate", [False, True])
def test_actor_critic_step_and_unroll_agree_without_a_core(obs, actions, separate) -> None:
    torch.manual_seed(0)
    model = ActorCritic(obs, actions, hidden=(16,), separate=separate)
    batch = sample_obs(obs, 3, 2)
    first = torch.zeros(3, 2, dtype=torch.bool)
    with torch.no_grad():
        whole = model.unroll(batch, first)
        assert whole.params.shape == (3, 2, model.distribution.num_params)
        assert whole.value.shape == (3, 2)
        assert whole.params.dtype == whole.value.dtype == torch.float32
        for t in range(3):
            row = model({name: x[t] for name, x in batch.items()}, None, first[t])
            torch.testing.assert_close(row.params, whole.params[t], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(row.value, whole.value[t], rtol=1e-4, atol=1e-6)


def test_initial_policy_is_nearly_uniform() -> None:
    for obs in (VECTOR, MINATAR, ATARI):
        torch.manual_seed(0)
        params = ActorCritic(obs, DISCRETE)(sample_obs(obs, 20)).params
        assert (params.softmax(-1) - 1 / 3).abs().max() < 0.05


def test_log_std_is_a_parameter_in_its_columns() -> None:
    model = ActorCritic(VECTOR, MIXED, hidden=(8,), log_std_init=-0.5)
    params = model(sample_obs(VECTOR, 5)).params
    assert params.shape == (5, 4 + 4 + 2)
    stds = [2, 3, 9]  # after the two means of reach and the mean of turn
    torch.testing.assert_close(params[:, stds], torch.full((5, 3), -0.5))
    params[:, stds].sum().backward()
    assert model.log_std is not None
    assert model.log_std.grad is not None
    torch.testing.assert_close(model.log_std.grad, torch.full((3,), 5.0))
    assert ActorCritic(VECTOR, DISCRETE).log_std is None


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_core_unroll_equals_single_steps_with_resets(core: str) -> None:
    torch.manual_seed(0)
    steps, lanes = 7, 3
    model = ActorCritic(VECTOR, DISCRETE, hidden=(8,), core=core, core_size=6)
    assert model.state_size == {"gru": 6, "lstm": 12}[core]
    obs = sample_obs(VECTOR, steps, lanes)["obs"]
    first = torch.rand(steps, lanes, generator=torch.Generator().manual_seed(1)) < 0.3
    start = torch.randn(lanes, model.state_size)
    whole = model.unroll({"obs": obs}, first, start)
    state = start
    for t in range(steps):
        out = model({"obs": obs[t]}, state, first[t])
        torch.testing.assert_close(out.params, whole.params[t])
        torch.testing.assert_close(out.value, whole.value[t])
        state = out.state
    torch.testing.assert_close(state, whole.state)


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_core_separates_episodes(core: str) -> None:
    """Values, gradients and unwritten (NaN) states do not pass from one episode to the next."""
    torch.manual_seed(0)
    model = ActorCritic(VECTOR, DISCRETE, hidden=(8,), core=core, core_size=6)
    obs = sample_obs(VECTOR, 6, 1)["obs"].requires_grad_()
    first = torch.tensor([True, False, False, True, False, False]).unsqueeze(1)
    whole = model.unroll({"obs": obs}, first, torch.full((1, model.state_size), float("nan")))
    alone = model.unroll({"obs": obs[3:]}, first[3:])
    torch.testing.assert_close(whole.params[3:], alone.params)
    whole.params[3:].sum().backward()
    assert obs.grad is not None
    assert not obs.grad[:3].any()
    assert obs.grad[3].any()


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("normalize_obs", [False, True])
def test_read_flat_restores_what_write_flat_wrote(core: str, normalize_obs: bool) -> None:
    def build(seed: int) -> ActorCritic:
        torch.manual_seed(seed)
        return ActorCritic(DICT, MIXED, hidden=(8,), core=core, core_size=5, normalize_obs=normalize_obs)

    model, other = build(0), build(1)
    if normalize_obs:
        model.set_normalizer("speed", torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    flat = torch.full((model.flat_size(),), float("nan"))
    model.write_flat(flat)
    assert flat.isfinite().all()
    other.read_flat(flat)
    assert model.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in model.state_dict().items())
    again = torch.empty_like(flat)
    other.write_flat(again)
    assert torch.equal(flat, again)
    assert flat.numel() == sum(x.numel() for x in model.state_dict().values())
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)  # the parameters are still the same tensors
    other(sample_obs(DICT, 2)).value.sum().backward()
    optimizer.step()
    other.write_flat(again)
    assert not torch.equal(flat, again)


def test_actor_critic_normalises_and_clips_observations() -> None:
    torch.manual_seed(0)
    model, plain = (ActorCritic(VECTOR, DISCRETE, hidden=(8,), normalize_obs=x) for x in (True, False))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("obs_")})
    mean, var = torch.arange(4.0), torch.tensor([4.0, 1.0, 1e-6, 9.0])
    model.set_normalizer("obs", mean, var)
    obs = sample_obs(VECTOR, 9)["obs"]
    expected = ((obs - mean) / (var + 1e-8).sqrt()).clamp(-10, 10)
    assert (expected.abs() == 10).any()
    torch.testing.assert_close(model({"obs": obs}).params, plain({"obs": expected}).params)
    images = ActorCritic(MINATAR, DISCRETE, normalize_obs=True)
    assert images.normalized_shapes() == {}
    assert model.normalized_shapes() == {"obs": (4,)}


def test_actor_critic_heads_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    for core in ("none", "gru"):
        model = ActorCritic(MINATAR, DISCRETE, hidden=(32,), core=core, core_size=8)
        obs = sample_obs(MINATAR, 4, 16)
        first = torch.zeros(4, 16, dtype=torch.bool)
        exact = model.unroll(obs, first)
        with torch.autocast("cpu", torch.bfloat16):
            out = model.unroll(obs, first)
        assert out.params.dtype == out.value.dtype == torch.float32
        torch.testing.assert_close(out.value, exact.value, rtol=0.1, atol=0.05)
        out.value.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_minatar_encoder_uses_the_layout_of_the_environment() -> None:
    """Channels-last bytes in, the same numbers as a plain convolution on channels-first."""
    encoder = MinAtar((10, 10, 4), hidden=(16,))
    obs = sample_obs(MINATAR, 5)["obs"]
    plain = torch.nn.functional.conv2d(
        obs.permute(0, 3, 1, 2).float().contiguous(), encoder.conv.weight, encoder.conv.bias
    )
    expected = encoder.layers(plain.relu().permute(0, 2, 3, 1).flatten(1))
    torch.testing.assert_close(encoder(obs), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(obs.to(torch.uint8)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nature", "impala", "cnn"])
def test_image_encoders_accept_bytes(name: str) -> None:
    encoder = make_encoder(name, (4, 84, 84), hidden=(32,), activation="relu")
    out = encoder(sample_obs(ATARI, 2)["obs"])
    assert out.shape == (2, encoder.out_size) == (2, 32)
    out.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 13, 35), (4, 36, 36)])
def test_small_cnn_reads_pictures_from_twelve_pixels_on(shape: tuple[int, ...]) -> None:
    encoder = make_encoder("cnn", shape, hidden=(32,), activation="relu")
    out = encoder(torch.randint(0, 256, (2, *shape), dtype=torch.uint8))
    assert out.shape == (2, encoder.out_size) == (2, 32)


def test_make_encoder_imports_a_class_by_name() -> None:
    encoder = make_encoder("sfactory.model.encoders:Mlp", (3,), hidden=(5,), activation="tanh")
    assert encoder(torch.zeros(2, 3)).shape == (2, 5)


def test_actor_critic_errors_list_the_choices() -> None:
    with pytest.raises(ValueError, match="expected one of auto, mlp, minatar"):
        ActorCritic(VECTOR, DISCRETE, encoder="resnet")
    with pytest.raises(ValueError, match="expected one of none, gru, lstm"):
        ActorCritic(VECTOR, DISCRETE, core="transformer")
    with pytest.raises(ValueError, match="exclude each other"):
        ActorCritic(VECTOR, DISCRETE, core="gru", core_size=4, separate=True)


def test_actor_critic_runs_with_other_weights_through_functional_call() -> None:
    """As the EWMA proximal policy does: other parameters, the live buffers."""
    model = ActorCritic(VECTOR, MIXED, hidden=(8,), normalize_obs=True)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    obs = sample_obs(VECTOR, 6)
    with torch.no_grad():
        out = torch.func.functional_call(model, weights, (obs,))
        torch.testing.assert_close(out.params, model(obs).params)


def test_action_mask_applies_to_step_and_unroll_and_is_no_encoder_input() -> None:
    torch.manual_seed(0)
    actions = {"a": Leaf((), kind="discrete", sizes=(3,)), "b": Leaf((), kind="discrete", sizes=(2,))}
    obs = {**VECTOR, "obs/action_mask": Leaf((5,), "int64")}
    model = ActorCritic(obs, actions, hidden=(8,), mask="obs/action_mask")
    assert model.flat_size() == ActorCritic(VECTOR, actions, hidden=(8,)).flat_size()
    batch = sample_obs(VECTOR, 4, 6) | {"obs/action_mask": torch.tensor([1, 0, 1, 0, 1]).expand(4, 6, 5)}
    out = model.unroll(batch, torch.zeros(4, 6, dtype=torch.bool))
    assert (out.params[..., [1, 3]] < -1e8).all()
    assert (out.params[..., [0, 2, 4]].abs() < 10).all()
    with torch.no_grad():
        step = model({name: leaf[0] for name, leaf in batch.items()})
    torch.testing.assert_close(step.params, out.params[0])
    log_prob, entropy = model.distribution.log_prob_entropy(
        out.params, {"a": torch.full((4, 6), 2), "b": torch.ones(4, 6, dtype=torch.int64)}
    )
    (log_prob.sum() + entropy.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert not model.policy_head.weight.grad[[1, 3]].any()
