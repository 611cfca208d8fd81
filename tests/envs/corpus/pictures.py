"""Pictures and grids in every layout."""

import numpy as np
from base import Task, case
from gymnasium import spaces


def pixels(*shape, low=0, high=255, dtype=np.uint8):
    return spaces.Box(low, high, shape, dtype)


@case("obs: picture 32x32x3 uint8, channels last -> small CNN (cnn), scaled by 1/255")
class HWC32(Task):
    obs = pixels(32, 32, 3)


@case("obs: picture 3x32x32 uint8, channels first -> small CNN (cnn), scaled by 1/255")
class CHW32(Task):
    obs = pixels(3, 32, 32)


@case("obs: picture 36x36x3 uint8, channels last -> nature CNN, scaled by 1/255")
class HWC36(Task):
    obs = pixels(36, 36, 3)


@case("obs: picture 3x36x36 uint8, channels first -> nature CNN, scaled by 1/255")
class CHW36(Task):
    obs = pixels(3, 36, 36)


@case("obs: picture 36x36 uint8, grey -> nature CNN, scaled by 1/255")
class HW36(Task):
    obs = pixels(36, 36)


@case("obs: picture 24x28 uint8, grey -> small CNN (cnn), scaled by 1/255")
class Grey24(Task):
    obs = pixels(24, 28)


@case("obs: picture 4x36x36x3 uint8, 36x36 with 4x3 channels -> nature CNN, scaled by 1/255")
class FourFrames(Task):
    obs = pixels(4, 36, 36, 3)


@case("obs: picture 4x3x36x36 uint8, 36x36 with 4x3 channels -> nature CNN, scaled by 1/255")
class FourFramesFirst(Task):
    obs = pixels(4, 3, 36, 36)


@case("obs: picture 36x36x3x2 uint8, 36x36 with 3x2 channels -> nature CNN, scaled by 1/255")
class FramesLast(Task):
    obs = pixels(36, 36, 3, 2)


@case("obs: picture 96x96x3 uint8, channels last -> nature CNN, scaled by 1/255")
class HWC96(Task):
    obs = pixels(96, 96, 3)


@case("obs: picture 84x84x1 uint8, channels last -> nature CNN, scaled by 1/255")
class OneChannelLast(Task):
    obs = pixels(84, 84, 1)


@case("obs: picture 1x28x28 uint8, channels first -> small CNN (cnn), scaled by 1/255")
class Digit(Task):
    obs = pixels(1, 28, 28)


@case("obs: picture 64x48x3 uint8, channels last -> nature CNN, scaled by 1/255")
class NotSquare(Task):
    obs = pixels(64, 48, 3)


@case("obs: picture 3x35x200 uint8, channels first -> small CNN (cnn), 1x2 pixels averaged, scaled by 1/255")
class Panorama(Task):
    obs = pixels(3, 35, 200)


@case("obs: picture 200x300x3 uint8, channels last -> nature CNN, 2x2 pixels averaged, scaled by 1/255")
class Large(Task):
    obs = pixels(200, 300, 3)


@case("obs: picture 32x32x3 float32, channels last -> small CNN (cnn), as it is, 0 to 1")
class UnitFloat(Task):
    obs = pixels(32, 32, 3, high=1, dtype=np.float32)


@case("obs: picture 32x32x3 float32, channels last -> small CNN (cnn), scaled to [0, 1] from 0 to 255")
class ByteFloat(Task):
    obs = pixels(32, 32, 3, dtype=np.float32)


@case("obs: picture 32x32x3 float32, channels last -> small CNN (cnn), scaled to [0, 1] from -1 to 1")
class SignedFloat(Task):
    obs = pixels(32, 32, 3, low=-1, high=1, dtype=np.float64)


@case("obs: picture 32x32x3 float32, channels last -> small CNN (cnn), normalized")
@case(
    "obs: picture 32x32x3 float32, channels last -> small CNN (cnn), as it is: no bounds; --normalize.obs true "
    "scales it",
    flags=("--normalize.obs", "false"),
)
class UnboundedFloat(Task):
    obs = pixels(32, 32, 3, low=-np.inf, high=np.inf, dtype=np.float32)


@case("obs: picture 40x40x3 int64, channels last -> nature CNN, scaled to [0, 1] from 0 to 4095")
class TwelveBits(Task):
    obs = pixels(40, 40, 3, high=4095, dtype=np.int16)


@case("obs: grid 7x7x3 uint8, channels last -> minatar CNN, normalized")
@case(
    "obs: grid 7x7x3 uint8, channels last -> minatar CNN, scaled by 1/255; if its numbers are small, set "
    "--normalize.obs true",
    flags=("--normalize.obs", "false"),
)
class MiniGridView(Task):
    obs = pixels(7, 7, 3)


@case("obs: grid 10x10x4 bool, channels last -> minatar CNN")
class Grid(Task):
    obs = spaces.Box(0, 1, (10, 10, 4), bool)


@case("obs: grid 10x10x10 bool, channels last -> minatar CNN")
class CubeOfBits(Task):
    obs = spaces.Box(0, 1, (10, 10, 10), bool)


@case("obs: grid 4x11x11 float32, channels first -> minatar CNN, normalized")
class Occupancy(Task):
    obs = pixels(4, 11, 11, low=-1, high=1, dtype=np.float32)


@case("obs: vector of 25 (5x5) float32 -> mlp, normalized")
class Kinematics(Task):
    obs = pixels(5, 5, low=-np.inf, high=np.inf, dtype=np.float32)


@case(code=2, says="set --model.encoder", check=6)
@case("obs: picture 36x36x36 uint8, channels first -> nature CNN, scaled by 1/255", flags=("--model.encoder", "nature"))
class Cube(Task):
    obs = pixels(36, 36, 36)


@case(code=2, says="set --model.encoder", check=6)
@case("obs: vector of 65536 (32x32x64) float32 -> mlp, normalized", flags=("--model.encoder", "mlp"))
class Features(Task):
    obs = pixels(32, 32, 64, low=-1, high=1, dtype=np.float32)


@case(
    "obs/image: picture 48x48x3 uint8, channels last -> nature CNN, scaled by 1/255",
    "obs/speed: vector of 2 float32 -> mlp, normalized",
)
class PictureAndNumbers(Task):
    obs = spaces.Dict(image=pixels(48, 48, 3), speed=spaces.Box(-10, 10, (2,), np.float32))


@case(
    "obs/0: picture 3x36x36 uint8, channels first -> nature CNN, scaled by 1/255",
    "obs/1: picture 20x20 uint8, grey -> small CNN (cnn), scaled by 1/255",
)
class TwoPictures(Task):
    obs = spaces.Tuple((pixels(3, 36, 36), pixels(20, 20)))
