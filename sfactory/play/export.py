"""Export a policy to one .onnx or .pt2 file, and check the file against the policy.

    obs leaves [N, ...], for recurrent policies state [N, H] and first [N] bool
        -> action leaves [N, ...] (the most likely, as the environment takes them), params [N, K], value [N]
           (in units of the rewards that were learned from), next_state [N, H]

N is dynamic. The observation normalizer, the bounds of the action and the scale of the value are part of the graph.
Every file is read back and compared with the policy on random observations before it gets its name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfactory._version import __version__
from sfactory.envs import Leaf
from sfactory.errors import Exit
from sfactory.files import require_writable
from sfactory.play.policy import Policy

TOLERANCE = 1e-4  # of params, values, states and continuous actions: absolute up to 1, relative beyond
BATCH_SIZES = (1, 64, 7)  # that are compared, in this order
METADATA = "sfactory.json"
SUFFIXES = (".onnx", ".pt2")
SMALL = 1e6  # random integers without nearer bounds


Outputs = dict[str, Tensor]
"""Action leaves by name, params, value and, for recurrent policies, next_state."""

Inputs = tuple[dict[str, Tensor], Tensor | None, Tensor | None]
"""obs, state, first; the last two are None without memory."""


class ExportMismatch(RuntimeError):
    """The exported file computes something else than the policy. It is not kept."""

    exit_code = Exit.BUG


@dataclass(frozen=True)
class Export:
    """An exported file, and its largest difference from the policy."""

    path: Path
    metadata: dict[str, Any]
    difference: float
    """Over all outputs and observations that were compared."""
    rows: int

    @property
    def sentence(self) -> str:
        """The result in one sentence, for the last line on stderr."""
        return f"{self.path}: same actions on {self.rows} random observations, largest difference {self.difference:.1e}"

    def report(self) -> str:
        """Return the result as text."""
        inputs = ", ".join(self.metadata["inputs"])
        lines = [
            f"{self.path}  {self.path.stat().st_size:,} bytes",
            f"policy    of {self.metadata['env']} after {self.metadata['env_steps']:,} steps of training",
            f"inputs    {inputs}; any batch size",
            f"outputs   {', '.join(self.metadata['outputs'])}; the action is the most likely one",
            f"checked   {self.rows} random observations: actions equal, largest difference {self.difference:.1e}",
        ]
        return "\n".join(lines)


class ExportedPolicy(nn.Module):
    """The policy as a pure function of tensors, without state."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.model, self.spec, self.squash = policy.model, policy.spec, policy.config.model.squash
        self.recurrent = bool(policy.model.state_size)
        for name, leaf in self.spec.actions.items():
            for kind in ("low", "high"):
                if leaf.kind == "box":
                    bound = torch.tensor(getattr(leaf, kind), dtype=torch.float32).view(leaf.shape)
                    self.register_buffer(_buffer(kind, name), bound)
            if leaf.kind == "discrete":
                self.register_buffer(_buffer("start", name), torch.as_tensor(policy.category_starts.get(name, 0)))

    def forward(self, obs: dict[str, Tensor], state: Tensor | None = None, first: Tensor | None = None) -> Outputs:
        out = self.model(obs, state, first)
        action = {n: self._env_action(n, a) for n, a in self.model.distribution.mode(out.params).items()}
        memory = {"next_state": out.state} if self.recurrent else {}
        return {**action, "params": out.params, "value": out.value, **memory}

    def _env_action(self, name: str, action: Tensor) -> Tensor:
        """Convert an action leaf [N, ...] to what the environment takes."""
        leaf = self.spec.actions[name]
        if leaf.kind == "discrete":
            action = action + self.get_buffer(_buffer("start", name))
            shape = self.policy.action_shapes.get(name, leaf.shape)
            return action if shape == leaf.shape else action.view(-1, *shape)
        low, high = self.get_buffer(_buffer("low", name)), self.get_buffer(_buffer("high", name))
        if self.squash:
            action = 0.5 * (high + low) + 0.5 * (high - low) * torch.tanh(action)
        return action.clamp(low, high)


def check_file(out: Path) -> None:
    """Raise ValueError for a file that cannot be written."""
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out}: the suffix selects the format; use {' or '.join(SUFFIXES)}")
    require_writable(out)


def export(policy: Policy, out: Path) -> Export:
    """Write a policy to `out`, .onnx or .pt2, and check it. Its value head has the scale of rewards afterwards.

    Raises ValueError for an invalid path or a missing package, ExportMismatch if the file differs from the policy.
    """
    check_file(out)
    policy.rescale_value_head()
    module = ExportedPolicy(policy).eval()
    metadata = _metadata(policy)
    temporary = out.with_name(f".{out.stem}.part{out.suffix}")
    try:
        with torch.no_grad(), _silence_exporters():
            _WRITE[out.suffix](module, temporary, metadata)
            difference = compare(policy, _READ[out.suffix](temporary))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return Export(out, metadata, difference, sum(BATCH_SIZES))


@contextlib.contextmanager
def _silence_exporters() -> Iterator[None]:
    """Suppress messages of torch's exporters about optional packages and their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


# -- writing and reading back --------------------------------------------------------------------------------

Call = Callable[[dict[str, Tensor], Any, Any], Outputs]
"""(obs, state, first) -> outputs."""


def _program(module: ExportedPolicy) -> torch.export.ExportedProgram:
    """Trace the policy with a dynamic batch size."""
    inputs = _inputs(module.policy, 2, np.random.default_rng(0))
    rows = torch.export.Dim("N", min=1)
    shapes = {
        "obs": {name: {0: rows} for name in module.spec.obs},
        "state": {0: rows} if module.recurrent else None,
        "first": {0: rows} if module.recurrent else None,
    }
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def _write_pt2(module: ExportedPolicy, path: Path, metadata: dict[str, Any]) -> None:
    torch.export.save(_program(module), path, extra_files={METADATA: json.dumps(metadata)})


def _read_pt2(path: Path) -> Call:
    return torch.export.load(path).module()


def _write_onnx(module: ExportedPolicy, path: Path, metadata: dict[str, Any]) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(f"an .onnx file needs {', '.join(missing)}, not installed: pip install 'sfactory[onnx]'")
    program = torch.onnx.export(
        _program(module), input_names=metadata["inputs"], output_names=metadata["outputs"], dynamo=True, verbose=False
    )
    assert program is not None
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    program.model.metadata_props.update(texts)
    program.save(str(path), external_data=False)


def _read_onnx(path: Path) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    graph_inputs = {node.name for node in session.get_inputs()}  # an input the policy does not read is left out
    names = [node.name for node in session.get_outputs()]

    def call(obs: dict[str, Tensor], state: Tensor | None, first: Tensor | None) -> Outputs:
        inputs = {**obs, "state": state, "first": first}
        feeds = {name: x.numpy() for name, x in inputs.items() if x is not None and name in graph_inputs}
        return dict(zip(names, map(torch.from_numpy, session.run(None, feeds)), strict=True))

    return call


_WRITE = {".onnx": _write_onnx, ".pt2": _write_pt2}
_READ = {".onnx": _read_onnx, ".pt2": _read_pt2}


# -- comparing -----------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(policy: Policy, call: Call) -> float:
    """Return the largest difference between a file and the policy. Raises ExportMismatch if it is too large."""
    draws, largest = np.random.default_rng(1), 0.0
    for rows in BATCH_SIZES:
        inputs = _inputs(policy, rows, draws)
        expected, actual = _reference(policy, inputs), call(*inputs)
        if list(actual) != list(expected):
            raise ExportMismatch(f"the outputs are {', '.join(actual)}, expected {', '.join(expected)}")
        for name, one in expected.items():
            other = actual[name]
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                raise ExportMismatch(
                    f"{name} is {tuple(other.shape)} {other.dtype}, expected {tuple(one.shape)} {one.dtype}"
                )
            if not one.is_floating_point():
                if count := int((_shortfall(policy, expected["params"], name, other) > TOLERANCE).sum()):
                    raise ExportMismatch(f"{name} differs for {count} of {rows} random observations")
                continue
            difference = float(((one - other).abs() / one.abs().clamp(min=1.0)).max())
            if not difference <= TOLERANCE:  # also true for NaN
                raise ExportMismatch(f"{name} differs from the policy's by {difference:.1e}, more than {TOLERANCE:g}")
            largest = max(largest, difference)
    return largest


def _shortfall(policy: Policy, params: Tensor, name: str, action: Tensor) -> Tensor:
    """[N]: how much worse than the most likely action `action` is, by its log-probability in nats, or by its value.

    Two actions that differ only by rounding are both correct.
    """
    distribution = policy.model.distribution
    start = torch.as_tensor(policy.category_starts.get(name, 0))
    changed = {**distribution.mode(params), name: action.view(-1, *policy.spec.actions[name].shape) - start}
    return distribution.shortfall(params, changed)


def _reference(policy: Policy, inputs: Inputs) -> Outputs:
    """Return the policy's own outputs, its actions computed as in `Policy.act`."""
    out = policy.model(*inputs)
    action = policy.env_actions({name: a.numpy() for name, a in policy.model.distribution.mode(out.params).items()})
    dtypes = {n: torch.int64 if leaf.kind == "discrete" else torch.float32 for n, leaf in policy.spec.actions.items()}
    leaves = {name: torch.from_numpy(action[name]).to(dtype) for name, dtype in dtypes.items()}
    memory = {"next_state": out.state} if policy.model.state_size else {}
    return {**leaves, "params": out.params, "value": out.value, **memory}


def _inputs(policy: Policy, rows: int, draws: np.random.Generator) -> Inputs:
    """Return random observations, and for recurrent policies random states and episode starts."""
    spec = policy.spec
    obs = {name: torch.from_numpy(_random(leaf, rows, draws)) for name, leaf in spec.obs.items()}
    if spec.mask:
        obs[spec.mask][:, 0] = 1  # at least one action is allowed
    if not policy.model.state_size:
        return obs, None, None
    state = torch.from_numpy(draws.normal(size=(rows, policy.model.state_size)).astype(np.float32))
    return obs, state, torch.from_numpy(draws.random(rows) < 0.3)


def _random(leaf: Leaf, rows: int, draws: np.random.Generator) -> np.ndarray:
    """[rows, *shape]: bits, bytes, integers within their bounds or small ones, or standard normal numbers."""
    shape, dtype = (rows, *leaf.shape), np.dtype(leaf.dtype)
    if dtype.kind == "f":
        return draws.normal(size=shape).astype(dtype)
    if dtype.name in ("bool", "uint8"):
        return draws.integers(0, {"bool": 2, "uint8": 256}[dtype.name], shape).astype(dtype)
    low, high = (np.asarray(bound or default, float) for bound, default in ((leaf.low, (0.0,)), (leaf.high, (9.0,))))
    low, high = (np.clip(x, -SMALL, SMALL).reshape(-1 if x.size > 1 else ()) for x in (low, high))
    numbers = draws.uniform(size=(rows, math.prod(leaf.shape))) * (high - low + 1.0) + low
    return np.floor(numbers).astype(dtype).reshape(shape)


# -- metadata and scale ---------------------------------------------------------------------------------


def _metadata(policy: Policy) -> dict[str, Any]:
    spec, memory = policy.spec, bool(policy.model.state_size)
    return {
        "sfactory": __version__,
        "env": policy.config.env.name,
        "protocol": spec.protocol,
        "env_steps": policy.env_steps,
        "inputs": [*spec.obs, *(["state", "first"] if memory else [])],
        "outputs": [*spec.actions, "params", "value", *(["next_state"] if memory else [])],
        "obs": {name: [list(leaf.shape), leaf.dtype] for name, leaf in spec.obs.items()},
        "state_size": policy.model.state_size,
    }


def _buffer(kind: str, name: str) -> str:
    """Return the name of a buffer: a leaf's name may contain dots, a buffer's may not."""
    return f"{kind}_{name.replace('.', '__')}"
