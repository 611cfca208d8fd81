"""The passes of a small network by the kernels of `kernels.c`, in place of torch's operators.

Which networks: fully connected layers on one leaf of float32 or bytes, normalized, scaled by its bounds or as it is; or
3x3 convolutions of 16 filters on one small picture of unscaled bytes (the encoder `minatar`), followed by fully
connected layers; with or without a separate critic; categorical actions, with or without an action mask, or one
Gaussian. `unsupported` says why another network is not among them.

Rows are divided into chunks of `CHUNK`, and chunks into at most `SHARES` shares, each on one thread of the pool. The
division depends on the number of rows only, and gradients are added in the order of chunks and shares: threads do not
change a bit of the result.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from sfactory.device.thread_pool import ThreadPool
from sfactory.model.actor_critic import ActorCritic, Trunk
from sfactory.model.distributions import MASKED_LOGIT
from sfactory.model.encoders import MinAtar, Mlp
from sfactory.model.inputs import Input
from sfactory.model.treatment import Scaling
from sfactory.native.library import load

CHUNK = 128
"""Rows of a chunk: their activations stay in the second-level cache."""
SHARES = 8
"""Largest number of threads that a pass can use. Each share but the first has a gradient of all weights of its own."""
SHARED_FLOPS = 1 << 24
"""Of a chunk's forward pass: with less, handing a chunk to another thread takes about as long as computing it."""
ALIGN = 16  # floats of a cache line
FILTERS, MAX_LAYERS, MAX_PARTS, MAX_CHANNELS = 16, 8, 16, 64  # as in kernels.c
MAX_LINE, MAX_PADDED = 2048, 1024
ACTIVATIONS: dict[type, int] = {nn.ReLU: 1, nn.Tanh: 2}
BYTES = ("bool", "uint8")
I64 = ctypes.c_int64


class _Layer(ctypes.Structure):
    _fields_ = [
        ("inputs", I64), ("outputs", I64 * 2), ("weight", I64 * 2), ("bias", I64 * 2), ("activation", I64),
        ("forward", I64), ("bias_row", I64), ("backward", I64),
        ("input", I64), ("output", I64), ("ld_input", I64), ("ld_output", I64),
        ("input_activation", I64), ("propagate", I64),
    ]  # fmt: skip


class _Trunk(ctypes.Structure):
    _fields_ = [
        ("convolution", I64), ("height", I64), ("width", I64), ("channels", I64), ("weight", I64), ("bias", I64),
        ("packed", I64), ("output", I64), ("ld_output", I64), ("layers", I64), ("layer", _Layer * MAX_LAYERS),
    ]  # fmt: skip


class _Network(ctypes.Structure):
    _fields_ = [
        ("size", I64), ("bytes", I64), ("normalized", I64), ("rows", I64), ("input", I64), ("ld_input", I64),
        ("policy_output", I64), ("ld_policy", I64), ("value_output", I64), ("ld_value", I64), ("value_column", I64),
        ("logits", I64), ("deviations", I64), ("log_std", I64), ("packed_log_std", I64),
        ("trunks", I64), ("trunk", _Trunk * 2),
    ]  # fmt: skip


def unsupported(model: ActorCritic) -> str:
    """Why the kernels cannot compute this network, in a few words; empty if they can."""
    parts = model.distribution.parts
    if type(model) is not ActorCritic:
        return f"the network {type(model).__name__}"
    if model.state_size:
        return "a recurrent core"
    if model.median_head is not None:
        return "a median head"
    if model.value_bins is not None:
        return "a value head with bins"
    if len(parts) > MAX_PARTS or (len(parts) > 1 and not all(part.discrete for part in parts)):
        return "continuous actions of several leaves"
    if parts[0].log_span is not None:
        return "squashed actions"
    for part in parts:
        dtype = model.action_dtypes[part.name]
        if dtype != ("int64" if part.discrete else "float32"):
            return f"actions of type {dtype}"
    trunks = [model.trunk] if model.critic is None else [model.trunk, model.critic]
    for trunk in trunks:
        if len(trunk.names) != 1:
            return "observations of several leaves"
        encoder, leaf = trunk.encoders[0], model.treatments[trunk.names[0]]
        if leaf.dtype not in (*BYTES, "float32") or (isinstance(encoder, MinAtar) and leaf.dtype not in BYTES):
            return f"observations of type {leaf.dtype}"
        if not isinstance(encoder, Mlp | MinAtar) or type(encoder) not in (Mlp, MinAtar):  # not a class of the user's
            return f"the encoder {type(encoder).__name__}"
        if isinstance(encoder, MinAtar) and not (leaf.scaling is Scaling.NONE and _input(model).identity):
            return f"a grid that is {'normalized' if leaf.scaling is Scaling.NORMALIZED else 'scaled or transposed'}"
        if any(isinstance(layer, nn.LayerNorm) for layer in encoder.modules()):
            return "layer normalization"
        if len(list(encoder.layers)) // 2 + 1 > MAX_LAYERS:
            return f"more than {MAX_LAYERS - 1} fully connected layers"
        if isinstance(encoder, MinAtar) and (unfit := _unsupported_picture(*encoder.shape)):
            return unfit
    return ""


def _input(model: ActorCritic) -> Input:
    """How the only leaf is read."""
    (reader,) = model.inputs
    assert isinstance(reader, Input)
    return reader


def _unsupported_picture(height: int, width: int, channels: int) -> str:
    if channels > MAX_CHANNELS or width * channels > MAX_LINE or (height + 2) * (width + 2) > MAX_PADDED:
        return f"pictures of {height} x {width} x {channels}"
    return ""


class Plan(NamedTuple):
    """A network as the kernels see it."""

    network: _Network
    leaf: str
    """Name of the leaf that is observed."""
    packed_size: int
    """Floats of the packed weights."""
    area_size: int
    """Floats of a work area."""
    width: int
    """Parameters of the distribution (K)."""


class _Planner:
    """Assigns places in packed weights and work area."""

    def __init__(self, offsets: Mapping[int, int]) -> None:
        """offsets: id of a parameter -> its place in the flat weights."""
        self.panel = int(load().sf_panel())
        self.packed = self.columns = 0
        self.offsets = offsets

    def panels(self, columns: int) -> int:
        """Columns filled up to whole panels."""
        return -(-columns // self.panel) * self.panel

    def pack(self, floats: int) -> int:
        """Place of so many floats in the packed weights."""
        place, self.packed = self.packed, self.packed + -(-floats // ALIGN) * ALIGN
        return place

    def area(self, columns: int) -> tuple[int, int]:
        """(place, distance of rows) in the work area; the distance is never a large power of two, for the caches."""
        distance = self.panels(columns) + ALIGN
        place, self.columns = self.columns, self.columns + distance
        return place, distance

    def layer(
        self, source: tuple[int, int], before: int, linears: list[nn.Linear], activation: int, propagate: bool
    ) -> _Layer:
        """One layer, its matrices side by side. source: place of its input; before: activation that made the input."""
        inputs, outputs = linears[0].in_features, [linear.out_features for linear in linears]
        total, layer = sum(outputs), _Layer()
        layer.inputs, layer.activation = inputs, activation
        for number, linear in enumerate(linears):
            layer.outputs[number] = linear.out_features
            layer.weight[number] = self.offsets[id(linear.weight)]
            layer.bias[number] = self.offsets[id(linear.bias)]
        layer.forward, layer.bias_row = self.pack(inputs * self.panels(total)), self.pack(self.panels(total))
        layer.backward = self.pack(total * self.panels(inputs)) if propagate else 0
        (layer.input, layer.ld_input), (layer.output, layer.ld_output) = source, self.area(total)
        layer.input_activation, layer.propagate = before, propagate
        return layer

    def trunk(self, module: Trunk, source: tuple[int, int], heads: list[nn.Linear]) -> _Trunk:
        """The encoder of one trunk, and the heads on it as one more layer."""
        encoder, trunk, before = _encoder(module), _Trunk(), 0
        if isinstance(encoder, MinAtar):
            conv = cast(nn.Conv2d, encoder.conv)
            trunk.convolution, trunk.channels = 1, conv.in_channels
            trunk.weight, trunk.bias = self.offsets[id(conv.weight)], self.offsets[id(conv.bias)]
            trunk.packed = self.pack((conv.in_channels * 9 + 1) * FILTERS)
            trunk.height, trunk.width = encoder.shape[:2]
            source = self.area(FILTERS * (trunk.height - 2) * (trunk.width - 2))
            trunk.output, trunk.ld_output = source
            before = ACTIVATIONS[nn.ReLU]
        hidden = list(encoder.layers)
        for linear, activation in zip(hidden[::2], hidden[1::2], strict=True):
            kind = ACTIVATIONS[type(activation)]
            layer = self.layer(source, before, [cast(nn.Linear, linear)], kind, bool(trunk.convolution or trunk.layers))
            trunk.layer[trunk.layers] = layer
            trunk.layers += 1
            source, before = (layer.output, layer.ld_output), kind
        trunk.layer[trunk.layers] = self.layer(source, before, heads, 0, bool(trunk.convolution or trunk.layers))
        trunk.layers += 1
        return trunk


def _encoder(trunk: Trunk) -> Mlp | MinAtar:
    encoder = trunk.encoders[0]
    assert isinstance(encoder, Mlp | MinAtar)
    return encoder


def plan(model: ActorCritic, rows: int, offsets: Sequence[int] | None) -> Plan:
    """The plan of a network for work areas of so many rows. The network must be supported.

    offsets: where every parameter starts in the flat weights; None: one after the other.
    """
    parameters = list(model.parameters())
    if offsets is None:
        offsets = list(itertools.accumulate((x.numel() for x in parameters[:-1]), initial=0))
    places = {id(parameter): offset for parameter, offset in zip(parameters, offsets, strict=True)}
    planner, net, leaf = _Planner(places), _Network(), model.trunk.names[0]
    assert ctypes.sizeof(_Network) == load().sf_network_size()
    encoder = _encoder(model.trunk)
    heads = [cast(nn.Linear, model.policy_head), cast(nn.Linear, model.value_head)]
    net.size, net.rows = int(np.prod(encoder.shape)), rows
    net.normalized = int(leaf in model.normalized or _input(model).scaled)
    net.bytes = int(model.treatments[leaf].dtype in BYTES)
    net.input, net.ld_input = planner.area(net.size)
    source = (net.input, net.ld_input)
    if model.critic is None:
        trunks = [planner.trunk(model.trunk, source, heads)]
    else:
        trunks = [
            planner.trunk(model.trunk, source, heads[:1]),
            planner.trunk(model.critic, source, heads[1:]),
        ]
    net.trunks = len(trunks)
    for number, trunk in enumerate(trunks):
        net.trunk[number] = trunk
    policy, value = trunks[0].layer[trunks[0].layers - 1], trunks[-1].layer[trunks[-1].layers - 1]
    net.logits = heads[0].out_features
    net.policy_output, net.ld_policy = policy.output, policy.ld_output
    net.value_output, net.ld_value = value.output, value.ld_output
    net.value_column = net.logits if len(trunks) == 1 else 0
    if model.log_std is not None:
        net.deviations, net.log_std = model.log_std.numel(), planner.offsets[id(model.log_std)]
        net.packed_log_std = planner.pack(net.deviations)
    return Plan(net, leaf, planner.packed, planner.columns * rows, net.logits + net.deviations)


class NativeNetwork:
    """Passes of a network over many rows, in chunks on the threads of a pool."""

    def __init__(self, model: ActorCritic, pool: ThreadPool, offsets: Sequence[int] | None = None) -> None:
        """The network must be supported; see `unsupported`. offsets: see `plan`."""
        self.model, self.pool, self.library = model, pool, load()
        self.plan = plan(model, CHUNK, offsets)
        weights = sum(parameter.numel() for parameter in model.parameters())
        self.threads = pool.size if 2 * CHUNK * weights >= SHARED_FLOPS else 1
        self.address = ctypes.addressof(self.plan.network)
        reader = _input(model)
        self.heads = _heads(model) if model.mask else []
        self.scale = reader.constants() if reader.scaled else None
        self.packed = torch.zeros(self.plan.packed_size)
        self.areas = torch.zeros(1, self.plan.area_size)  # [chunks, area]: activations of the last forward pass
        self.gradients = torch.zeros(1, self.plan.area_size)
        self.flat_gradients = torch.zeros(0)  # [shares - 1, P], of the shares after the first

    def pack(self, flat: Tensor, backward: bool = False) -> None:
        """Copy the weights, flat [P]; call it after they have changed. backward: the backward pass will follow."""
        self.library.sf_pack(self.address, pointer(flat), pointer(self.packed), int(backward))

    def forward(
        self,
        leaf: Tensor,
        index: Tensor | None,
        rows: int,
        keep: bool,
        out: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs of `rows` rows: params [rows, K], value [rows].

        leaf: the observations, contiguous [N, *shape]; index: [rows] int64, or None for the first rows.
        keep: keep the activations for `backward`. out: memory for the outputs, of as many rows or more.
        mask: the action mask [N, K], 0 for what is not allowed, if the network has one.
        """
        params, value = out or (torch.empty(rows, self.plan.width), torch.empty(rows))
        chunks = -(-rows // CHUNK)
        shares = min(chunks, SHARES) if self.threads > 1 else 1
        areas = chunks if keep else shares
        if areas > len(self.areas):
            self.areas = torch.zeros(areas, self.plan.area_size)
        mean, inv_std = self._statistics()
        distance = self.plan.area_size if keep else 0

        def compute(share: int, begin: int, end: int) -> None:
            area = 0 if keep else share * self.plan.area_size
            self.library.sf_forward(
                self.address, pointer(self.packed), pointer(self.areas, area), distance, pointer(leaf),
                None if index is None else pointer(index), mean, inv_std, begin, end, rows, pointer(params),
                pointer(value),
            )  # fmt: skip

        self._share(compute, chunks, shares)
        blocked = None
        if mask is not None:
            blocked = (mask[:rows] if index is None else mask[index]) == 0
            self._block(params[:rows], blocked)
        self.kept = (leaf, index, rows, blocked)
        return params, value

    def backward(self, params_grad: Tensor, value_grad: Tensor, flat: Tensor) -> None:
        """Write the gradient of all parameters to flat [P], from those of the outputs of the last `forward`.

        params_grad [rows, K], value_grad [rows], contiguous float32. The gradient of a masked parameter is not used.
        """
        leaf, index, rows, blocked = self.kept
        if blocked is not None:
            params_grad = params_grad.masked_fill(blocked, 0.0)
        chunks = -(-rows // CHUNK)
        # One chunk per share, in order, gives the same sum as all of them in one call.
        shares = 1 if self.threads == 1 and chunks <= SHARES else min(chunks, SHARES)
        if len(self.flat_gradients) < shares - 1:
            self.flat_gradients = torch.zeros(shares - 1, flat.numel())
        if len(self.gradients) < shares:
            self.gradients = torch.zeros(shares, self.plan.area_size)

        def compute(share: int, begin: int, end: int) -> None:
            target = pointer(self.flat_gradients, (share - 1) * flat.numel()) if share else pointer(flat)
            self.library.sf_backward(
                self.address, pointer(self.packed), pointer(self.areas), self.plan.area_size,
                pointer(self.gradients, share * self.plan.area_size), pointer(leaf),
                None if index is None else pointer(index), begin, end, rows, pointer(params_grad), pointer(value_grad),
                target,
            )  # fmt: skip

        self._share(compute, chunks, shares)
        for gradient in self.flat_gradients[: shares - 1]:
            flat.add_(gradient)

    def _share(self, compute: Callable[[int, int, int], None], chunks: int, shares: int) -> None:
        """Call compute(share, begin, end) for every share of the chunks, on the threads of the pool."""

        def one(share: int) -> None:
            compute(share, chunks * share // shares, chunks * (share + 1) // shares)

        if self.threads > 1 and shares > 1:
            self.pool.map(one, shares)
        else:
            for share in range(shares):
                one(share)

    def _block(self, params: Tensor, blocked: Tensor) -> None:
        """Replace the logits of blocked actions, as `ActorCritic` does. Both [n, K].

        Where a head allows nothing, as in a last observation, its logits are equal: with 0 they keep all their digits.
        """
        params.masked_fill_(blocked, MASKED_LOGIT)
        for head in self.heads:
            params[:, head].masked_fill_(blocked[:, head].all(-1, keepdim=True), 0.0)

    def _statistics(self) -> tuple[int | None, int | None]:
        if not self.plan.network.normalized:
            return None, None
        mean, inv_std = self.scale or self.model.normalizer(self.plan.leaf)
        return pointer(mean), pointer(inv_std)


def _heads(model: ActorCritic) -> list[slice]:
    """The columns of the logits of every choice."""
    found = []
    for part in model.distribution.parts:
        ends = itertools.accumulate(part.sizes, initial=part.params.start)
        found += [slice(begin, end) for begin, end in itertools.pairwise(ends)]
    return found


def pointer(tensor: Tensor, offset: int = 0) -> int:
    """Address of an element of a contiguous tensor."""
    return tensor.data_ptr() + offset * tensor.element_size()
