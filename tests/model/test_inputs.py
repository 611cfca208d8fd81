"""What the encoder gets: every layout of a picture becomes the same numbers, and numbers are scaled by their bounds."""

import math

import numpy as np
import pytest
import torch

from sfactory.envs import ActionLeaf, Leaf
from sfactory.model import inputs
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.inputs import Input
from sfactory.model.treatment import treat

DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
BYTES = ((0.0,), (255.0,))


def read(obs, low=(), high=(), **settings):
    """obs [N, *shape] -> what the encoder gets."""
    dtype = str(obs.dtype).removeprefix("torch.")
    return Input(treat("obs", obs.shape[1:], dtype, low, high, **settings))(obs)


def pixels(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


LAYOUTS = {  # from [N, 4, 3, 40, 48]: four frames of three colors
    "channels first": lambda x: x.flatten(1, 2),
    "channels last": lambda x: x.flatten(1, 2).permute(0, 2, 3, 1),
    "frames, then channels last": lambda x: x.permute(0, 1, 3, 4, 2),
    "frames, then channels first": lambda x: x,
    "frames last": lambda x: x.permute(0, 3, 4, 1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_brings_every_layout_to_channels_first(layout):
    frames = pixels(5, 4, 3, 40, 48)
    found = read(LAYOUTS[layout](frames).contiguous())
    assert torch.equal(found, frames.flatten(1, 2))
    assert found.dtype == torch.uint8  # the encoder divides by 255


def test_input_gives_grey_pictures_a_channel():
    assert read(pixels(5, 40, 48)).shape == (5, 1, 40, 48)
    assert read(pixels(5, 40, 48, 1)).shape == (5, 1, 40, 48)


def test_input_puts_the_channels_of_a_grid_last():
    grid = pixels(5, 3, 7, 8)
    expected = grid.permute(0, 2, 3, 1) / 255
    torch.testing.assert_close(read(grid), expected)
    torch.testing.assert_close(read(grid.permute(0, 2, 3, 1).contiguous()), expected)


@pytest.mark.parametrize(("dtype", "low", "high"), [
    (torch.float32, 0.0, 1.0), (torch.float32, 0.0, 255.0), (torch.float32, -1.0, 1.0), (torch.int64, -50.0, 200.0),
    (torch.uint8, 0.0, 255.0), (torch.uint8, 0.0, 7.0),
])  # fmt: skip
def test_picture_is_scaled_from_its_bounds_to_zero_and_one(dtype, low, high):
    obs = torch.empty(2, 3, 36, 36)
    obs[0], obs[1] = low, high
    model = ActorCritic({"obs": Leaf((3, 36, 36), str(dtype)[6:], (low,), (high,))}, DISCRETE, hidden=(8,))
    seen = []
    model.trunk.encoders[0].convs[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model({"obs": obs.to(dtype)})
    torch.testing.assert_close(seen[0][0], torch.zeros(3, 36, 36))
    torch.testing.assert_close(seen[0][1], torch.ones(3, 36, 36))


def test_bytes_in_any_layout_are_divided_by_255_to_the_bit():
    frames = pixels(3, 3, 36, 40)
    encoders = []
    for obs in (frames, frames.permute(0, 2, 3, 1).contiguous()):
        torch.manual_seed(0)
        model = ActorCritic({"obs": Leaf(obs.shape[1:], "uint8", *BYTES)}, DISCRETE, hidden=(8,))
        model.trunk.encoders[0].convs[0].register_forward_pre_hook(lambda _, args: encoders.append(args[0]))
        model({"obs": obs})
    for found in encoders:
        assert torch.equal(found, frames.float() / 255.0)


def test_large_picture_is_averaged_in_blocks_and_keeps_its_last_rows():
    obs = pixels(2, 3, 401, 600)
    found = read(obs)
    assert found.shape == (2, 3, 101, 150) == (2, *treat("obs", obs.shape[1:], "uint8").encoder_shape)
    torch.testing.assert_close(found[:, :, 3, 5], obs[:, :, 12:16, 20:24].float().mean((2, 3)) / 255)
    torch.testing.assert_close(found[:, :, 100, 5], obs[:, :, 400:, 20:24].float().mean((2, 3)) / 255)


def test_numbers_are_scaled_by_their_own_bounds_and_kept_without():
    obs = torch.tensor([[0, -5, 3, 7], [10, 5, 3, -7], [5, 0, 3, 0]])
    found = read(obs, low=(0, -5, 3, -math.inf), high=(10, 5, 3, math.inf))
    torch.testing.assert_close(found, torch.tensor([[-1.0, -1, 0, 7], [1, 1, 0, -7], [0, 0, 0, 0]]))


def test_scaling_keeps_the_last_digits_of_large_integers():
    """float32 has steps of 64 near a second of today."""
    now = 1_800_000_000
    obs = torch.tensor([[now], [now + 3]])
    found = read(obs, low=(now,), high=(now + 4,))
    torch.testing.assert_close(found, torch.tensor([[-1.0], [0.5]]))
    model = ActorCritic({"obs": Leaf((1,), "int64")}, DISCRETE, normalize_obs=True)
    model.set_normalizer("obs", torch.tensor([now]), torch.tensor([1.0]))
    normal = model._read({"obs": obs})["obs"]
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal[1] - normal[0], torch.tensor([3.0]))


@pytest.mark.parametrize("bounds", [(), ((0.0,) * 4, (10.0, 20.0, 30.0, 40.0))])
def test_constants_of_scaling_are_in_no_checkpoint_and_not_published(bounds):
    leaf, plain = Leaf((4,), "int64", *bounds), Leaf((4,), "float32")
    scaled, usual = (ActorCritic({"obs": one}, DISCRETE, hidden=(8,)) for one in (leaf, plain))
    assert list(scaled.state_dict()) == list(usual.state_dict())
    assert scaled.flat_size() == usual.flat_size()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
@pytest.mark.parametrize("shape", [(), (3,), (7, 7, 3)])
def test_numbers_of_every_type_are_normalized(dtype, shape):
    model = ActorCritic({"obs": Leaf(shape, dtype, (0.0,), (200.0,))}, DISCRETE, hidden=(8,), normalize_obs=True)
    assert model.normalized == ["obs"]
    model.set_normalizer("obs", torch.full(shape, 100.0), torch.full(shape, 400.0))
    obs = torch.full((2, *shape), 140).to(getattr(torch, dtype))
    torch.testing.assert_close(model._read({"obs": obs})["obs"], torch.full((2, *shape), 2.0))
    assert model({"obs": obs}).value.shape == (2,)


@pytest.mark.parametrize("leaf", [
    Leaf((4, 84, 84), "uint8", *BYTES), Leaf((10, 10, 4), "bool"), Leaf((10, 10, 10), "bool"), Leaf((17,), "float32"),
])  # fmt: skip
def test_observations_of_the_presets_reach_their_encoder_untouched(leaf):
    model = ActorCritic({"obs": leaf}, DISCRETE, hidden=(8,))
    obs = torch.from_numpy(np.ones((2, *leaf.shape), leaf.dtype))
    assert model._read({"obs": obs})["obs"] is obs


def test_state_dict_names_of_encoders_are_those_of_earlier_versions():
    def names(leaf):
        return [name for name in ActorCritic({"obs": leaf}, DISCRETE, hidden=(8,)).state_dict() if "encoders" in name]

    layers = ["trunk.encoders.0.layers.0.weight", "trunk.encoders.0.layers.0.bias"]
    convolutions = [f"trunk.encoders.0.convs.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    assert names(Leaf((4, 84, 84), "uint8", *BYTES)) == convolutions + layers
    assert names(Leaf((10, 10, 4), "bool")) == [f"trunk.encoders.0.conv.{kind}" for kind in ("weight", "bias")] + layers
    assert names(Leaf((3,), "float32")) == layers


def test_large_pictures_are_averaged_a_few_at_a_time(monkeypatch):
    obs = pixels(7, 200, 170, 3)
    whole = read(obs)
    monkeypatch.setattr(inputs, "AVERAGED", 2 * obs[0].numel())
    sizes, pool = [], torch.nn.functional.avg_pool2d
    counted = lambda x, *rest, **options: (sizes.append(len(x)), pool(x, *rest, **options))[1]  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "avg_pool2d", counted)
    assert torch.equal(read(obs), whole)
    assert sizes == [2, 2, 2, 1]
