"""How each leaf of an observation is read, as the line that says it."""

import math
import subprocess
import sys

import pytest

from sfactory.config import Config, Model, Normalize
from sfactory.envs import EnvSpec, Leaf
from sfactory.model.treatment import MOST_LINES, cost_lines, obs_lines, treat

BYTES, ONE, HALF = ((0,), (255,)), ((0,), (1,)), ((-1,), (1,))
SCALED = "scaled by 1/255"
INFINITE = ((), ())

PICTURES = {
    ((4, 84, 84), "uint8", BYTES): f"picture 4x84x84 uint8, channels first -> nature CNN, {SCALED}",
    ((96, 96, 3), "uint8", BYTES): f"picture 96x96x3 uint8, channels last -> nature CNN, {SCALED}",
    ((3, 96, 96), "uint8", BYTES): f"picture 3x96x96 uint8, channels first -> nature CNN, {SCALED}",
    ((84, 84), "uint8", BYTES): f"picture 84x84 uint8, grey -> nature CNN, {SCALED}",
    ((84, 84, 1), "uint8", BYTES): f"picture 84x84x1 uint8, channels last -> nature CNN, {SCALED}",
    ((1, 28, 28), "uint8", BYTES): f"picture 1x28x28 uint8, channels first -> small CNN (cnn), {SCALED}",
    ((2, 30, 30), "uint8", BYTES): f"picture 2x30x30 uint8, channels first -> small CNN (cnn), {SCALED}",
    ((32, 32, 3), "uint8", BYTES): f"picture 32x32x3 uint8, channels last -> small CNN (cnn), {SCALED}",
    ((3, 32, 32), "uint8", BYTES): f"picture 3x32x32 uint8, channels first -> small CNN (cnn), {SCALED}",
    ((12, 12, 3), "uint8", BYTES): f"picture 12x12x3 uint8, channels last -> small CNN (cnn), {SCALED}",
    ((20, 20), "uint8", BYTES): f"picture 20x20 uint8, grey -> small CNN (cnn), {SCALED}",
    ((4, 36, 36, 3), "uint8", BYTES): f"picture 4x36x36x3 uint8, 36x36 with 4x3 channels -> nature CNN, {SCALED}",
    ((4, 3, 36, 36), "uint8", BYTES): f"picture 4x3x36x36 uint8, 36x36 with 4x3 channels -> nature CNN, {SCALED}",
    ((36, 36, 3, 4), "uint8", BYTES): f"picture 36x36x3x4 uint8, 36x36 with 3x4 channels -> nature CNN, {SCALED}",
    ((4, 84, 84, 1), "uint8", BYTES): f"picture 4x84x84x1 uint8, 84x84 with 4x1 channels -> nature CNN, {SCALED}",
    ((100, 40, 16), "uint8", BYTES): f"picture 100x40x16 uint8, channels last -> nature CNN, {SCALED}",
    ((3, 35, 200), "uint8", BYTES): (
        f"picture 3x35x200 uint8, channels first -> small CNN (cnn), 1x2 pixels averaged, {SCALED}"
    ),
    ((210, 160, 3), "uint8", BYTES): (
        f"picture 210x160x3 uint8, channels last -> nature CNN, 2x2 pixels averaged, {SCALED}"
    ),
    ((400, 600, 3), "uint8", BYTES): (
        f"picture 400x600x3 uint8, channels last -> nature CNN, 4x4 pixels averaged, {SCALED}"
    ),
    ((32, 32, 3), "float32", ONE): "picture 32x32x3 float32, channels last -> small CNN (cnn), as it is, 0 to 1",
    ((64, 64, 3), "float32", BYTES): (
        "picture 64x64x3 float32, channels last -> nature CNN, scaled to [0, 1] from 0 to 255"
    ),
    (
        (64, 64, 3),
        "float32",
        HALF,
    ): "picture 64x64x3 float32, channels last -> nature CNN, scaled to [0, 1] from -1 to 1",
    ((64, 64, 3), "int64", BYTES): "picture 64x64x3 int64, channels last -> nature CNN, scaled to [0, 1] from 0 to 255",
    ((64, 64), "float32", ONE): "picture 64x64 float32, grey -> nature CNN, as it is, 0 to 1",
    ((64, 64, 3), "uint8", ONE): "picture 64x64x3 uint8, channels last -> nature CNN, as it is, 0 to 1",
    ((64, 64, 3), "bool", INFINITE): "picture 64x64x3 bool, channels last -> nature CNN",
    ((10, 10, 4), "bool", INFINITE): "grid 10x10x4 bool, channels last -> minatar CNN",
    ((10, 10, 10), "bool", INFINITE): "grid 10x10x10 bool, channels last -> minatar CNN",
    ((4, 10, 10), "bool", INFINITE): "grid 4x10x10 bool, channels first -> minatar CNN",
    ((19, 19, 17), "bool", INFINITE): "grid 19x19x17 bool, channels last -> minatar CNN",
    ((8, 8, 111), "bool", INFINITE): "grid 8x8x111 bool, channels last -> minatar CNN",
    ((10, 10), "bool", INFINITE): "vector of 100 (10x10) bool -> mlp",
}
"""The same with and without `normalize.obs`."""


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("leaf", PICTURES, ids=lambda leaf: f"{leaf[0]} {leaf[1]}")
def test_treatment_of_pictures_does_not_depend_on_normalize_obs(leaf, normalize):
    shape, dtype, bounds = leaf
    assert treat("obs", shape, dtype, *bounds, normalize=normalize).line == f"obs: {PICTURES[leaf]}"


NO_BOUNDS = "as it is: no bounds; --normalize.obs true scales it"
NUMBERS = {  # leaf -> line without what is done to the numbers; that without normalize.obs
    ((3,), "float32", INFINITE): ("vector of 3 float32 -> mlp", ""),
    ((3,), "float32", BYTES): ("vector of 3 float32 -> mlp", ""),
    ((), "float32", ONE): ("vector of 1 float32 -> mlp", ""),
    ((4, 5), "float32", ONE): ("vector of 20 (4x5) float32 -> mlp", ""),
    ((64, 64), "float32", INFINITE): ("vector of 4096 (64x64) float32 -> mlp", ""),
    ((128,), "uint8", BYTES): ("vector of 128 uint8, 0 to 255 -> mlp", "scaled to [-1, 1]"),
    ((128,), "uint8", INFINITE): ("vector of 128 uint8, 0 to 255 -> mlp", "scaled to [-1, 1]"),
    ((), "int64", ((0,), (9,))): ("vector of 1 int64, 0 to 9 -> mlp", "scaled to [-1, 1]"),
    ((2,), "int64", ((0,), (10000,))): ("vector of 2 int64, 0 to 10000 -> mlp", "scaled to [-1, 1]"),
    ((2,), "int64", ((0, 0), (9, 7))): ("vector of 2 int64, bounds of their own -> mlp", "scaled to [-1, 1]"),
    ((2,), "int64", ((0,), (9, math.inf))): (
        "vector of 2 int64, some without bounds -> mlp",
        "scaled to [-1, 1] where there are bounds",
    ),
    ((2,), "int64", INFINITE): ("vector of 2 int64 without bounds -> mlp", NO_BOUNDS),
    ((2,), "int64", ((-(2**63),), (2**63 - 1,))): ("vector of 2 int64 without bounds -> mlp", NO_BOUNDS),
    ((2,), "int64", ((0,), (2**31 - 1,))): ("vector of 2 int64 without bounds -> mlp", NO_BOUNDS),
    ((2,), "int64", ((-math.inf,), (5,))): ("vector of 2 int64 without bounds -> mlp", NO_BOUNDS),
    ((2,), "int64", ((-1,), (1,))): ("vector of 2 int64, -1 to 1 -> mlp", "as it is, -1 to 1"),
    ((10, 10), "uint8", BYTES): ("vector of 100 (10x10) uint8, 0 to 255 -> mlp", "scaled to [-1, 1]"),
    ((8, 64, 3), "uint8", BYTES): ("vector of 1536 (8x64x3) uint8, 0 to 255 -> mlp", "scaled to [-1, 1]"),
    ((3, 3, 2), "int64", ONE): ("vector of 18 (3x3x2) int64, 0 to 1 -> mlp", "as it is, 0 to 1"),
    ((7, 7, 3), "uint8", BYTES): (
        "grid 7x7x3 uint8, channels last -> minatar CNN",
        f"{SCALED}; if its numbers are small, set --normalize.obs true",
    ),
    ((7, 7, 3), "uint8", ((0,), (10,))): (
        "grid 7x7x3 uint8, channels last -> minatar CNN",
        "scaled to [0, 1] from 0 to 10",
    ),
    ((3, 7, 7), "float32", HALF): ("grid 3x7x7 float32, channels first -> minatar CNN", "as it is, -1 to 1"),
    ((6, 7, 2), "int64", ONE): ("grid 6x7x2 int64, channels last -> minatar CNN", "as it is, 0 to 1"),
    ((64, 64, 3), "float32", INFINITE): ("picture 64x64x3 float32, channels last -> nature CNN", NO_BOUNDS),
}


@pytest.mark.parametrize("leaf", NUMBERS, ids=lambda leaf: f"{leaf[0]} {leaf[1]} {leaf[2]}")
def test_numbers_are_normalized_by_normalize_obs_and_else_scaled_by_their_bounds(leaf):
    shape, dtype, bounds = leaf
    what, scale = NUMBERS[leaf]
    assert treat("obs/x", shape, dtype, *bounds, normalize=True).line == f"obs/x: {what}, normalized"
    assert treat("obs/x", shape, dtype, *bounds).line == f"obs/x: {what}{', ' if scale else ''}{scale}"


@pytest.mark.parametrize(
    "shape", [(36, 36, 36), (32, 32, 64), (64, 32, 32), (20, 24, 18), (64, 64, 64, 3), (30, 31, 32)]
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_shape_that_does_not_decide_asks_for_the_encoder(shape, dtype):
    with pytest.raises(ValueError, match=r"^obs/x: the shape .* set --model.encoder: nature, cnn .* vector$"):
        treat("obs/x", shape, dtype)


@pytest.mark.parametrize(
    ("encoder", "shape", "line"),
    [
        ("nature", (36, 36, 36), "channels first -> nature CNN"),
        ("impala", (36, 36, 36), "channels first -> impala CNN"),
        ("cnn", (36, 36, 36), "channels first -> small CNN (cnn)"),
        ("minatar", (36, 36, 36), "channels last -> minatar CNN"),
        ("mlp", (36, 36, 36), "vector of 46656 (36x36x36) uint8, 0 to 255 -> mlp"),
        ("nature", (96, 96, 3), "channels last -> nature CNN"),  # the shape decides
        ("impala", (96, 96, 3), "channels last -> impala CNN"),
        ("minatar", (3, 32, 32), "channels first -> minatar CNN"),
        ("cnn", (96, 96), "grey -> small CNN (cnn)"),
        ("nature", (3,), "vector of 3 uint8, 0 to 255 -> mlp"),
    ],
)
def test_named_encoder_reads_pictures_and_decides_where_the_shape_does_not(encoder, shape, line):
    assert line in treat("obs", shape, "uint8", encoder=encoder).line


@pytest.mark.parametrize(("encoder", "shape"), [("nature", (32, 32, 3)), ("nature", (10, 10, 4)), ("cnn", (10, 10, 4))])
@pytest.mark.parametrize("dtype", ["uint8", "bool"])
def test_picture_too_small_for_the_named_encoder_is_refused(encoder, shape, dtype):
    with pytest.raises(ValueError, match=rf"obs: .* is too small for model.encoder {encoder}.*--model.encoder auto"):
        treat("obs", shape, dtype, encoder=encoder)


def test_encoder_of_the_users_own_gets_what_the_environment_returns():
    line = treat("obs", (96, 96, 3), "uint8", encoder="my:Net", normalize=True).line
    assert line == "obs: 96x96x3 uint8 -> my:Net, as the environment returns it"
    assert (
        treat("obs", (), "float32", encoder="my:Net", normalize=True).line
        == "obs: one number float32 -> my:Net, normalized"
    )


def test_affine_maps_bounds_to_the_ends_of_the_interval():
    shift, factor = treat("x", (4,), "int64", (0, -5, 3, 0), (10, 5, 3, math.inf)).affine
    assert [(bound - s) * f for bound, s, f in zip((0, -5, 3, 7), shift, factor, strict=True)] == [-1, -1, 0, 7]
    assert [(bound - s) * f for bound, s, f in zip((10, 5, 3, 7), shift, factor, strict=True)] == [1, 1, 0, 7]
    (shift,), (factor,) = treat("x", (64, 64, 3), "float32", (-2,), (2,)).affine
    assert ((-2 - shift) * factor, (2 - shift) * factor) == (0, 1)


def config(encoder="auto", normalize=False, separate=False):
    return Config(model=Model(encoder=encoder, separate=separate), normalize=Normalize(obs=normalize))


def test_obs_lines_name_every_leaf_the_mask_and_what_is_left_out():
    obs = {
        "obs/x": Leaf((3,), "float32"),
        "obs/action_mask": Leaf((2,), "int64"),
        "obs/n": Leaf((5,), "bool", source="Discrete(5), one-hot"),
    }
    spec = EnvSpec("a/b", obs, {}, mask="obs/action_mask", omitted={"obs/text": "env.drop"})
    assert obs_lines(spec, config(normalize=True)) == [
        "obs/x: vector of 3 float32 -> mlp, normalized",
        "obs/n: Discrete(5), one-hot: vector of 5 bool -> mlp",
        "obs/action_mask: action mask",
        "obs/text: left out: env.drop",
    ]


def test_obs_lines_of_many_leaves_are_few_with_pictures_first():
    obs = {f"obs/{name}": Leaf((2,), "float32") for name in "abcde"}
    obs["obs/camera"] = Leaf((64, 64, 3), "uint8")
    obs["obs/f"] = Leaf((3,), "float32")
    assert obs_lines(EnvSpec("a/b", obs, {}), config()) == [
        "obs/camera: picture 64x64x3 uint8, channels last -> nature CNN, scaled by 1/255",
        "obs/a, obs/b, obs/c and 2 more: vector of 2 float32 -> mlp",
        "obs/f: vector of 3 float32 -> mlp",
    ]
    obs |= {f"obs/{size}": Leaf((size,), "float32") for size in range(10, 20)}
    lines = obs_lines(EnvSpec("a/b", obs, {}), config())
    assert len(lines) == MOST_LINES
    assert lines[-1] == "and 8 more observations"


@pytest.mark.parametrize(("leaf", "separate", "count"), [
    (Leaf((64, 64, 3), "uint8"), True, 1), (Leaf((64, 64, 3), "uint8"), False, 0), (Leaf((7, 7, 3), "uint8"), True, 0),
    (Leaf((10, 10, 4), "bool"), True, 0), (Leaf((3,), "float32"), True, 0),
])  # fmt: skip
def test_cost_lines_say_that_separate_networks_read_a_picture_twice(leaf, separate, count):
    lines = cost_lines(EnvSpec("a/b", {"obs": leaf}, {}), config(separate=separate))
    assert len(lines) == count
    assert all("--model.separate false" in line for line in lines)


def test_treatment_is_decided_without_torch():
    script = "import sys, sfactory.model.treatment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
