"""`nn.Linear` that multiplies with the faster of torch's two libraries.

Torch multiplies fp32 matrices with MKL, whose fastest kernels are for Intel processors only: on an AMD core with
AVX-512 it reaches 95 GFLOP/s, and oneDNN, the library of torch's convolutions, 215 (benchmarks/LOG.md). On such
machines large layers use oneDNN, forward and backward. The choice depends only on the machine and the shape, so the
same seed gives the same run. The numbers differ in the last bits, as between two machines.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 15  # weights of a layer; below this the overhead of oneDNN exceeds the gain
FEW_ROWS = 32  # rows of the input; the same


@functools.cache
def onednn_is_faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is a processor with AVX-512 not made by Intel, and torch has both libraries."""
    try:
        vendor = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("vendor_id"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return False
    return (
        "GenuineIntel" not in vendor
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Linear(nn.Linear):
    """x [..., in_features] -> [..., out_features]. Parameters, names and initialisation are those of `nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            not torch.compiler.is_exporting()  # first: an exported program must not depend on the number of rows
            and self.weight.numel() >= LARGE
            and x.dim() > 1
            and x.shape[-1] == self.in_features  # else torch raises its own error
            and x.numel() >= FEW_ROWS * self.in_features
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and onednn_is_faster()
        ):
            product = _Product.apply if torch.is_grad_enabled() else _product
            return product(x, self.weight, self.bias)
        return super().forward(x)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, k], weight [m, k], bias [m] -> [n, m]; transposed views are read without a copy."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """Autograd of `_product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        inputs, grads = x.flatten(0, -2), grad.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t(), None) if needs_x else None,
            _product(grads.t(), inputs.t(), None) if needs_weight else None,
            grads.sum(0) if needs_bias and ctx.has_bias else None,
        )
