"""Encoders: one leaf of an observation -> a vector of features.

An encoder takes [N, *shape] and returns [N, out_size]. `ENCODERS` is a dict of classes ``Encoder(shape, *, hidden,
activation)``. `treatment` chooses one for each leaf, and `inputs` brings the numbers into its layout and scale:

    mlp                     any shape                 numbers
    minatar                 [N, H, W, C]              numbers, bytes or truth values
    cnn, nature, impala     [N, C, H, W]              numbers, or bytes, which are divided by 255
    module:Class            as the environment's      as the environment returns them; a class of your own

A new built-in name also goes into `ENCODER_NAMES` of config/bounds.py, because the command line must not load torch.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from sfactory.errors import SettingError
from sfactory.model import own_code
from sfactory.model.linear import Linear

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
FEW_CHANNELS = 4  # of images; up to this number copying plane by plane is faster
GAINS = {"relu": 2.0**0.5, "tanh": 5.0 / 3.0}  # as in torch.nn.init.calculate_gain


def orthogonal(layer: nn.Module, gain: float) -> nn.Module:
    """Initialise with orthogonal weights and zero bias (Saxe et al. 2014), as PPO's published settings assume."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def fully_connected(size: int, hidden: Sequence[int], activation: str, layer_norm: bool = False) -> nn.Sequential:
    """Layers [N, size] -> [N, hidden[-1]]."""
    layers: list[nn.Module] = []
    for width in hidden:
        norm = [nn.LayerNorm(width)] if layer_norm else []
        layers += [
            orthogonal(Linear(size, width), GAINS[activation]),
            *norm,
            ACTIVATIONS[activation](),
        ]
        size = width
    return nn.Sequential(*layers)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every place of a picture [N, C, H, W], as flax's LayerNorm on [N, H, W, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """Base class of the encoders."""

    out_size: int
    """Features per sample."""


class Mlp(Encoder):
    """Fully connected layers on the flattened observation."""

    def __init__(
        self, shape: Sequence[int], *, hidden: Sequence[int], activation: str, layer_norm: bool = False
    ) -> None:
        super().__init__()
        size = int(torch.Size(shape).numel())
        self.shape = tuple(shape)
        self.layers = fully_connected(size, hidden, activation, layer_norm)
        self.out_size = hidden[-1] if hidden else size

    def forward(self, obs: Tensor) -> Tensor:
        """obs [N, *shape] -> [N, out_size]."""
        x = obs.flatten(1) if self.shape else obs.unsqueeze(1)
        return self.layers(x.to(torch.float32))


class MinAtar(Encoder):
    """MinAtar's network (Young & Tian 2019, arXiv 1903.03176): 16 filters 3x3, fully connected layers, ReLU.

    Takes [N, H, W, C]. `conv2d` runs on channels-last memory, so the layout of the environment is kept
    and the features are flattened as H, W, C. Microseconds per sample, one thread of a shared Zen 5 core, C = 4, hidden
    128, best of 6: forward at N = 128 / forward and backward at N = 2112

        conv2d, channels-last   fp32 4.3 / 11.7   bf16 2.5 / 4.9    (other load adds up to a third)
        conv2d, channels-first  fp32 4.3 / 14.5   bf16 3.6 / 6.1
        unfold, one product     fp32 5.5 / 15.6   bf16 3.1 / 6.8

    Measured with MKL's matrix products, two thirds of the fp32 forward pass; see `linear` for the present ones.
    """

    filters = 16

    def __init__(
        self, shape: Sequence[int], *, hidden: Sequence[int], activation: str = "relu", layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.shape = height, width, channels = tuple(shape)
        self.conv = orthogonal(nn.Conv2d(channels, self.filters, 3), GAINS["relu"])
        self.norm = ChannelNorm(self.filters) if layer_norm else None
        size = self.filters * (height - 2) * (width - 2)
        self.layers = fully_connected(size, hidden, activation, layer_norm)
        self.out_size = hidden[-1] if hidden else size

    def forward(self, obs: Tensor) -> Tensor:
        """obs [N, H, W, C] -> [N, out_size]."""
        x = obs.to(torch.float32).permute(0, 3, 1, 2)  # a view: channels-last already
        x = self.conv(x)
        x = x.relu_() if self.norm is None else self.norm(x).relu()
        return self.layers(x.permute(0, 2, 3, 1).reshape(x.shape[0], -1))


def scaled(obs: Tensor) -> Tensor:
    """Scale [N, C, H, W] bytes to [0, 1], channels last in memory.

    Convolutions, forward and backward, are up to 1.6 times as fast in this layout on a CPU with AVX-512
    (benchmarks/LOG.md). Under autocast the result has the narrow type directly: a byte fits into bf16, so the result is
    the same and two passes over the images are saved.
    """
    device = obs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    ordered = obs.shape[1] > 1 and obs.stride(1) == 1  # the environment's channels are last
    if device != "cpu" or ordered or obs.shape[1] > FEW_CHANNELS or torch.compiler.is_exporting():
        return obs.to(dtype, memory_format=torch.channels_last).div_(255.0)
    x = torch.empty((len(obs), *obs.shape[2:], obs.shape[1]), dtype=dtype)
    for channel, plane in enumerate(obs.unbind(1)):  # half the time of `to`, which copies element by element
        x[..., channel] = plane
    return x.permute(0, 3, 1, 2).div_(255.0)


def picture(obs: Tensor) -> Tensor:
    """A picture [N, C, H, W] of bytes as numbers from 0 to 1, other numbers as they are; channels last in memory."""
    return scaled(obs) if obs.dtype == torch.uint8 else obs.float().contiguous(memory_format=torch.channels_last)


class Convolutions(Encoder):
    """Three convolutions on [N, C, H, W] with ReLU, then fully connected layers."""

    layout: tuple[tuple[int, int, int, int], ...]
    """Filters, kernel, stride and padding of every convolution."""

    def __init__(
        self, shape: Sequence[int], *, hidden: Sequence[int], activation: str = "relu", layer_norm: bool = False
    ) -> None:
        super().__init__()
        gain = GAINS["relu"]
        layers: list[nn.Module] = []
        channels = shape[0]
        for filters, kernel, stride, padding in self.layout:
            norm = [ChannelNorm(filters)] if layer_norm else []
            layers += [orthogonal(nn.Conv2d(channels, filters, kernel, stride, padding), gain), *norm, nn.ReLU()]
            channels = filters
        self.convs = nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            size = self.convs(torch.zeros(1, *shape)).shape[1]
        self.layers = fully_connected(size, hidden, activation, layer_norm)
        self.out_size = hidden[-1] if hidden else size

    def forward(self, obs: Tensor) -> Tensor:
        """obs [N, C, H, W] -> [N, out_size]."""
        return self.layers(self.convs(picture(obs)))


class Nature(Convolutions):
    """Network of DQN (Mnih et al. 2015), for pictures of 36 pixels a side or more."""

    layout = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))


class SmallCnn(Convolutions):
    """Small filters for small pictures, of 12 pixels a side or more: 32 x 32 pixels become 6 x 6 places."""

    layout = ((16, 4, 2, 1), (32, 3, 2, 1), (32, 3, 1, 0))


class _Average(nn.Module):
    """Mean of every channel over all places, [N, C, H, W] -> [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class _Residual(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(self.conv0(x.relu()).relu())


class Impala(Encoder):
    """Deep network of IMPALA (Espeholt et al. 2018, arXiv 1802.01561, fig. 3) without its LSTM.

    Takes [N, C, H, W]. Stages of 16, 32, 32 filters: convolution, max pooling, two residual blocks. Torch's
    default initialisation, as in torchbeast. pooling average: the fully connected layers read the mean of each channel
    in place of all its places (Impoola, Trumpp et al. 2025, arXiv 2503.05546).
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        hidden: Sequence[int],
        activation: str = "relu",
        layer_norm: bool = False,
        pooling: str = "none",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = shape[0]
        for filters in (16, 32, 32):
            pool = nn.MaxPool2d(3, stride=2, padding=1)
            layers += [
                nn.Conv2d(channels, filters, 3, padding=1),
                pool,
                _Residual(filters),
                _Residual(filters),
            ]
            channels = filters
        end = _Average() if pooling == "average" else nn.Flatten()
        self.convs = nn.Sequential(*layers, nn.ReLU(), end).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            size = self.convs(torch.zeros(1, *shape)).shape[1]
        self.layers = fully_connected(size, hidden, activation, layer_norm)
        self.out_size = hidden[-1] if hidden else size

    def forward(self, obs: Tensor) -> Tensor:
        """obs [N, C, H, W] -> [N, out_size]."""
        return self.layers(self.convs(picture(obs)))


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "mlp": Mlp,
    "minatar": MinAtar,
    "nature": Nature,
    "impala": Impala,
    "cnn": SmallCnn,
}


def check_encoders(name: str, encoders: nn.Module, setting: str = "model.encoder") -> None:
    """SettingError if a module inside computes something else in training than in acting.

    The learner runs the network in training mode, inference in evaluation mode and on other batches. A difference would
    be taken for a change of the policy: the ratio of both would not be 1 on fresh data. name: value of the setting.
    """
    for path, module in encoders.named_modules():
        reason = _differs_in_training(module)
        if reason:
            raise SettingError(
                f"{setting} {name} contains {type(module).__name__} ({path}), which {reason}: the policy that is "
                "trained would not be the one that acts; remove it, or use LayerNorm or GroupNorm"
            )


def _differs_in_training(module: nn.Module) -> str:
    """What a module does in training mode only, or with other rows of a batch; empty if nothing."""
    if isinstance(module, _BatchNorm):
        return "normalizes by the other rows of a batch"
    if isinstance(module, _NormBase) and module.track_running_stats:  # InstanceNorm
        return "normalizes by other statistics in training"
    dropout = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)  # of attention, LSTM, GRU
    if isinstance(dropout, float | int) and dropout > 0.0:
        return "drops values at random in training"
    if isinstance(module, nn.RReLU) and module.lower != module.upper:
        return "draws random slopes in training"
    hooks = module._forward_pre_hooks.values()
    if isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
        return "changes its own state in training"
    return ""


def make_encoder(
    name: str,
    shape: Sequence[int],
    *,
    hidden: Sequence[int],
    activation: str,
    layer_norm: bool = False,
    pooling: str = "none",
) -> Encoder:
    """Create the encoder of a `Treatment` for what it reads, ``shape``: see `Treatment.encoder_shape`.

    layer_norm: of the encoders here; those of the user's own place their layers themselves. pooling: of impala; another
    encoder, as that of a vector beside the picture, has none.
    """
    if ":" in name:
        encoder = own_code.make("model.encoder", name, (shape,), {"hidden": hidden, "activation": activation})
        own_code.out_size("model.encoder", name, encoder)
        return cast("Encoder", encoder)
    own = {"pooling": pooling} if name == "impala" else {}
    return ENCODERS[name](shape, hidden=hidden, activation=activation, layer_norm=layer_norm, **own)
