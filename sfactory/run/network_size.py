"""Check that a checkpoint can hold the network of a configuration, before the network is built.

A configuration may ask for layers of any width. Those of a network that was saved are sizes of its tensors, so nothing
larger than the checkpoint is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping

from sfactory.config import Config
from sfactory.errors import CheckpointError
from sfactory.run.tensor_file import TensorEntry


def check_network_size(config: Config, tensors: Mapping[str, TensorEntry]) -> None:
    """CheckpointError if no tensor of the model has a width that the configuration names, or it has too few tensors."""
    model = config.model
    widths: dict[str, tuple[int, ...]] = {"model.core_size": (model.core_size,) if model.core != "none" else ()}
    if ":" not in model.reader:  # one of the user's own may use the widths in any way
        widths["model.hidden"] = model.hidden
    sizes = {size for entry in tensors.values() if 0 not in entry.shape for size in entry.shape}
    for name, values in widths.items():
        if len(values) > len(tensors) or any(width not in sizes for width in values):
            setting = f"{name.replace('_', '-')} {','.join(map(str, values[:8]))}"
            raise CheckpointError(f"another network: {setting} is not in model.safetensors")
