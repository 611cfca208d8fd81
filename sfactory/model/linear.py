"""`nn.Linear` whose products take the faster of torch's two libraries.

Torch multiplies fp32 matrices with MKL, whose fastest kernels are for Intel's processors alone: on an AMD core with
AVX-512 it reaches 95 GFLOP/s where oneDNN, the library of torch's convolutions, reaches 215 (benchmarks/LOG.md). So
large layers go to oneDNN there, forward and backward. Which library it is depends on the machine and the shape alone:
the same seed is the same run. The numbers differ in the last bits, as those of two machines do.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 15  # weights of a layer: below, oneDNN's longer call costs what its product saves
FEW_ROWS = 32  # of the input: below, too


@functools.cache
def onednn_is_faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """AVX-512 on a processor that is not Intel's, and a torch that has both libraries."""
    try:
        vendor = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("vendor_id"))
    except (OSError, StopIteration):  # no Linux, no x86
        return False
    return (
        "GenuineIntel" not in vendor
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Linear(nn.Linear):
    """x [..., in_features] -> [..., out_features]. Parameters, their names and their beginning are `nn.Linear`'s."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            not torch.compiler.is_exporting()  # first: what is asked of the rows becomes a condition
            and self.weight.numel() >= LARGE
            and x.dim() > 1
            and x.shape[-1] == self.in_features  # torch says best what is wrong
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
    """x [n, k], weight [m, k], bias [m] -> [n, m]; transposed views are read as they lie."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, ends = x.flatten(0, -2), grad.flatten(0, -2)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t(), None) if wants_x else None,
            _product(ends.t(), rows.t(), None) if wants_weight else None,
            ends.sum(0) if wants_bias and ctx.has_bias else None,
        )
