"""From a leaf of the environment to what its encoder reads: layout, scale and type. See `treatment`.

Legend: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfactory.model.treatment import Treatment

CLIP = 10.0
"""Largest size of a number that is normalized or scaled by its bounds; the environment may break its bounds."""
AVERAGED = 1 << 24
"""Numbers of pictures that are averaged at a time."""
IMAGE_ENCODERS = ("cnn", "nature", "impala")
"""Encoders that divide bytes by 255 themselves, fast."""


class Input(nn.Module):
    """Brings one leaf [N, *shape] into the layout and scale of its encoder. Has no parameters."""

    def __init__(self, treatment: Treatment) -> None:
        super().__init__()
        self.treatment = treatment
        self.image = treatment.encoder in IMAGE_ENCODERS
        self.bytes = self.image and treatment.bytes_to_unit
        self.whole = treatment.dtype == "int64"  # its last digits are lost in float32 before the difference is taken
        shift, factor = treatment.affine
        self.scaled = bool(factor) and not self.bytes
        self.uniform = (shift[0], factor[0]) if self.scaled and len(factor) == 1 else None
        if self.scaled and self.uniform is None:
            for name, values in (("shift", shift), ("factor", factor)):
                buffer = torch.tensor(values, dtype=torch.float64).view(treatment.shape)
                self.register_buffer(name, buffer if self.whole else buffer.float(), persistent=False)

    @property
    def identity(self) -> bool:
        """Whether the encoder reads the leaf unchanged."""
        layout = self.treatment.layout
        dims = len(self.treatment.shape)
        kept = layout is None or (
            dims == 3 and layout.axes == ((2, 0, 1) if self.treatment.encoder == "minatar" else (0, 1, 2))
        )
        return kept and not self.scaled and self.treatment.pool == (1, 1)

    def constants(self) -> tuple[Tensor, Tensor]:
        """(shift, factor), contiguous float32 [*shape], of a scaled leaf: the result is (x - shift) * factor."""
        shape = self.treatment.shape
        shift, factor = self.uniform or (self.get_buffer("shift"), self.get_buffer("factor"))
        as_float = (torch.as_tensor(x, dtype=torch.float32).cpu().expand(shape).contiguous() for x in (shift, factor))
        return next(as_float), next(as_float)

    def forward(self, obs: Tensor) -> Tensor:
        """obs [N, *shape], the environment's or normalized -> the encoder's input."""
        if self.scaled:
            obs = self._scale(obs)
        layout = self.treatment.layout
        if layout is None or self.identity:
            return obs
        x = obs.permute(0, *(axis + 1 for axis in layout.axes))
        x = x.flatten(1, -3) if x.dim() > 3 else x.unsqueeze(1)  # [N, C, H, W]
        if self.treatment.pool != (1, 1):
            x = self._average(x)
        return x if self.image else x.permute(0, 2, 3, 1)

    def _scale(self, obs: Tensor) -> Tensor:
        """[N, *shape] -> float32 by the bounds."""
        numbers = obs.double() if self.whole else obs.float()
        if self.uniform is not None:
            shift, factor = self.uniform
            numbers = (numbers - shift) * factor
        else:
            numbers = (numbers - self.get_buffer("shift")) * self.get_buffer("factor")
        return numbers.float().clamp(-CLIP, CLIP)

    def _average(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H', W'] float32. A few rows at a time: a whole batch of floats may need gigabytes."""
        if torch.compiler.is_exporting():  # an exported program must not depend on the number of rows
            return self._average_rows(x)
        return torch.cat([self._average_rows(part) for part in x.split(max(1, AVERAGED // x[0].numel()))])

    def _average_rows(self, x: Tensor) -> Tensor:
        numbers = x.float() / 255.0 if self.bytes else x.float()
        return torch.nn.functional.avg_pool2d(numbers, self.treatment.pool, ceil_mode=True)
