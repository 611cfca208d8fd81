"""Keep all parameters in one buffer, and their gradients in a second one of the same layout.

What used to be one call per parameter (scaling the gradient, Adam, an average over learners) becomes one call per
buffer or per stretch. Parameters stay the same objects with the same shapes and strides: only their memory moves.

Every parameter starts at a multiple of `ALIGNMENT` numbers, as it would in memory of its own, because libraries of
matrix products may round differently at other addresses. Nothing writes to the gaps in between: they hold zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGNMENT = 16  # float32 numbers: 64 bytes, torch's own alignment, and the widest vector of its CPU kernels


class FlatParameters:
    """Parameters as views of one buffer, and the views of every other buffer with this layout.

    float32; float64 for comparisons with a reference.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Move the parameters. Raises ValueError if they are not all float32, or all float64, on one device."""
        self.parameters = list(parameters)
        kinds = {(parameter.dtype, parameter.device) for parameter in self.parameters}
        if len(kinds) != 1 or self.parameters[0].dtype not in (torch.float32, torch.float64):
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"the network has parameters of {found}, expected float32 on one device")
        self.offsets, self._size = _layout(self.parameters)
        # Not the strides of a parameter itself: one that overlaps or has gaps becomes contiguous.
        self._strides = [torch.empty_like(parameter, device="meta").stride() for parameter in self.parameters]
        self.stretches = self._stretches()
        """Slices of a buffer without gaps. Fused Adam gives them the bits that it gives the parameters one by one: the
        numbers that its CPU kernel treats as the rest of a vector, with other rounding, end a stretch."""
        self.values = self.zeros()
        self.gradient = self.zeros()
        self.gradients = self.views(self.gradient)
        with torch.no_grad():
            for parameter, view in zip(self.parameters, self.views(self.values), strict=True):
                parameter.data = view.copy_(parameter)

    def zeros(self) -> Tensor:
        """A new buffer [size] of this layout."""
        return torch.zeros(self._size, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """One view of a buffer [size] per parameter, with its shape and its order in memory."""
        return [
            buffer.as_strided(parameter.shape, stride, offset)
            for parameter, stride, offset in zip(self.parameters, self._strides, self.offsets, strict=True)
        ]

    def cut(self, buffer: Tensor) -> list[Tensor]:
        """The stretches of a buffer [size]. Views."""
        return [buffer[stretch] for stretch in self.stretches]

    def set_gradients(self, parts: Sequence[Sequence[Tensor | None]]) -> None:
        """Set every `.grad` to the sum over parts, in their order; None where no part has a gradient.

        parts: gradients of the parameters from each part of a minibatch.
        """
        of_parameters = [[grad for grad in grads if grad is not None] for grads in zip(*parts, strict=True)]
        for parameter, view, grads in zip(self.parameters, self.gradients, of_parameters, strict=True):
            parameter.grad = view if grads else None
            if not grads:  # the buffer is the gradient as a whole
                view.zero_()
        for number in range(len(parts)):
            pairs = [
                (v, grads[number]) for v, grads in zip(self.gradients, of_parameters, strict=True) if grads[number:]
            ]
            targets, sources = [view for view, _ in pairs], [grad for _, grad in pairs]
            if targets:
                (torch._foreach_add_ if number else torch._foreach_copy_)(targets, sources)

    @torch.no_grad()
    def clip_gradient(self, limit: float, *, by_parameter: bool) -> Tensor:
        """Scale the gradient down to a norm of at most `limit`; 0: no limit. Returns the norm [] before.

        by_parameter: compute the norm from those of the parameters, as `torch.nn.utils.clip_grad_norm_` does; norm and
        factor are the same to the bit then. Otherwise the buffer has one norm: fewer calls, other rounding.
        """
        if by_parameter:
            present = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present, 2.0)))
        else:
            norm = torch.linalg.vector_norm(self.gradient)
        if limit:
            torch._foreach_mul_(self.cut(self.gradient), torch.clamp(limit / (norm + 1e-6), max=1.0))
        return norm

    def _stretches(self) -> list[slice]:
        found, start = [], 0
        for number, (parameter, offset) in enumerate(zip(self.parameters, self.offsets, strict=True), 1):
            end = offset + parameter.numel()
            if end % ALIGNMENT or number == len(self.parameters):
                found.append(slice(start, end))
                start = _aligned(end)
        return found


def _layout(parameters: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where every parameter starts, and the size of a buffer, in numbers."""
    offsets, size = [], 0
    for parameter in parameters:
        offsets.append(size)
        size += _aligned(parameter.numel())
    return offsets, size


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
