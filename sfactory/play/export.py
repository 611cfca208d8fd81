"""`sfactory export`: the newest policy of a run as one file that needs no sfactory, checked against the policy it was.

    obs leaves [N, ...], for recurrent policies state [N, H] and first [N] bool
        -> action leaves [N, ...] (the likeliest, as the environment takes them), params [N, K], value [N]
           (of rewards as they were learnt from), next_state [N, H]

N is free. The observation normaliser, the bounds of the action and the scale of the value are inside. Every file is
read back and compared with the policy on random observations before it is believed.
"""

from __future__ import annotations

import contextlib
import json
import logging
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
from sfactory.play.policy import Policy, load_policy
from sfactory.run import checkpoint

TOLERANCE = 1e-4  # of parameters, values, states and continuous actions; beyond 1 relative to what they are
ROWS = (1, 64, 7)  # sizes of the batches that are compared, in this order
METADATA = "sfactory.json"
SUFFIXES = (".onnx", ".pt2")


Outputs = dict[str, Tensor]
"""Action leaves by name, params, value and, for recurrent policies, next_state."""

Inputs = tuple[dict[str, Tensor], Tensor | None, Tensor | None]
"""obs, state, first; the last two are None without memory."""


class NotEqual(RuntimeError):
    """What was written does not do what the policy does. The file is gone."""

    exit_code = Exit.BUG


@dataclass(frozen=True)
class Export:
    """One file, and how far it is from the policy."""

    path: Path
    metadata: dict[str, Any]
    difference: float
    """The largest, over all outputs and observations that were compared."""
    rows: int

    @property
    def sentence(self) -> str:
        """The last word."""
        return f"{self.path}: the same actions on {self.rows} random observations, at most {self.difference:.1e} apart"

    def report(self) -> str:
        """For people."""
        inputs = ", ".join(self.metadata["inputs"])
        lines = [
            f"{self.path}  {self.path.stat().st_size:,} bytes",
            f"policy    of {self.metadata['env']} after {self.metadata['env_steps']:,} steps of training",
            f"inputs    {inputs}: any number of rows",
            f"outputs   {', '.join(self.metadata['outputs'])}; the action is the likeliest",
            f"checked   {self.rows} random observations, actions equal, difference at most {self.difference:.1e}",
        ]
        return "\n".join(lines)


class Exported(nn.Module):
    """The policy as it is exported: a pure function of tensors."""

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
                self.register_buffer(_buffer("start", name), torch.as_tensor(policy.starts.get(name, 0)))

    def forward(self, obs: dict[str, Tensor], state: Tensor | None = None, first: Tensor | None = None) -> Outputs:
        out = self.model(obs, state, first)
        action = {n: self._given(n, a) for n, a in self.model.distribution.mode(out.params).items()}
        memory = {"next_state": out.state} if self.recurrent else {}
        return {**action, "params": out.params, "value": out.value, **memory}

    def _given(self, name: str, action: Tensor) -> Tensor:
        """As the environment takes it."""
        if self.spec.actions[name].kind == "discrete":
            return action + self.get_buffer(_buffer("start", name))
        low, high = self.get_buffer(_buffer("low", name)), self.get_buffer(_buffer("high", name))
        if self.squash:
            action = 0.5 * (high + low) + 0.5 * (high - low) * torch.tanh(action)
        return action.clamp(low, high)


def export(run: Path, out: Path) -> Export:
    """Write the newest policy of `run` (a run or a checkpoint) to `out`, .onnx or .pt2, and check what was written.

    Raises ValueError for what was asked wrongly, NotEqual if the file does not play as the policy does.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out}: the name says the format; let it end in {' or '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    policy = load_policy(run)
    _unscale_value(policy)
    module = Exported(policy).eval()
    metadata = _metadata(policy)
    temporary = out.with_name(f".{out.stem}.part{out.suffix}")
    try:
        with torch.no_grad(), _quiet():
            _WRITE[out.suffix](module, temporary, metadata)
            difference = compare(policy, _READ[out.suffix](temporary))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return Export(out, metadata, difference, sum(ROWS))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporters speak of packages nobody asked for, and of their own deprecations."""
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


def _program(module: Exported) -> torch.export.ExportedProgram:
    """The traced policy, any N."""
    inputs = _inputs(module.policy, 2, np.random.default_rng(0))
    rows = torch.export.Dim("N", min=1)
    shapes = {
        "obs": {name: {0: rows} for name in module.spec.obs},
        "state": {0: rows} if module.recurrent else None,
        "first": {0: rows} if module.recurrent else None,
    }
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def _write_pt2(module: Exported, path: Path, metadata: dict[str, Any]) -> None:
    torch.export.save(_program(module), path, extra_files={METADATA: json.dumps(metadata)})


def _read_pt2(path: Path) -> Call:
    return torch.export.load(path).module()


def _write_onnx(module: Exported, path: Path, metadata: dict[str, Any]) -> None:
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
    given = {node.name for node in session.get_inputs()}  # what the policy does not read is no input of the graph
    names = [node.name for node in session.get_outputs()]

    def call(obs: dict[str, Tensor], state: Tensor | None, first: Tensor | None) -> Outputs:
        inputs = {**obs, "state": state, "first": first}
        feeds = {name: x.numpy() for name, x in inputs.items() if x is not None and name in given}
        return dict(zip(names, map(torch.from_numpy, session.run(None, feeds)), strict=True))

    return call


_WRITE = {".onnx": _write_onnx, ".pt2": _write_pt2}
_READ = {".onnx": _read_onnx, ".pt2": _read_pt2}


# -- comparing -----------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(policy: Policy, call: Call) -> float:
    """The largest difference between what was read back and the policy. NotEqual if it is too large."""
    draws, largest = np.random.default_rng(1), 0.0
    for rows in ROWS:
        inputs = _inputs(policy, rows, draws)
        expected, got = _reference(policy, inputs), call(*inputs)
        if list(got) != list(expected):
            raise NotEqual(f"its outputs are {', '.join(got)}, not {', '.join(expected)}")
        for name, one in expected.items():
            other = got[name]
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                raise NotEqual(f"{name} is {tuple(other.shape)} {other.dtype}, not {tuple(one.shape)} {one.dtype}")
            if not one.is_floating_point():
                if count := int((_lost(policy, expected["params"], name, other) > TOLERANCE).sum()):
                    raise NotEqual(f"{name} is another one for {count} of {rows} random observations")
                continue
            apart = float(((one - other).abs() / one.abs().clamp(min=1.0)).max())
            if not apart <= TOLERANCE:  # NaN neither
                raise NotEqual(f"{name} is {apart:.1e} away from the policy's, more than {TOLERANCE:g}")
            largest = max(largest, apart)
    return largest


def _lost(policy: Policy, params: Tensor, name: str, action: Tensor) -> Tensor:
    """[N] by how much an action leaf is less likely than the likeliest, in nats: of two that are equally likely to the
    last bit or two, either is right."""
    likeliest = policy.model.distribution.mode(params)
    theirs = {**likeliest, name: action - torch.as_tensor(policy.starts.get(name, 0))}
    log_prob = policy.model.distribution.log_prob
    return log_prob(params, likeliest) - log_prob(params, theirs)


def _reference(policy: Policy, inputs: Inputs) -> Outputs:
    """What the policy itself says, its actions by the path of `Policy.act`."""
    out = policy.model(*inputs)
    action = policy.given({name: a.numpy() for name, a in policy.model.distribution.mode(out.params).items()})
    discrete = {name for name, leaf in policy.spec.actions.items() if leaf.kind == "discrete"}
    leaves = {n: torch.from_numpy(x).to(torch.int64 if n in discrete else torch.float32) for n, x in action.items()}
    memory = {"next_state": out.state} if policy.model.state_size else {}
    return {**leaves, "params": out.params, "value": out.value, **memory}


def _inputs(policy: Policy, rows: int, draws: np.random.Generator) -> Inputs:
    """Random observations, and for recurrent policies random states and beginnings."""
    spec = policy.spec
    obs = {name: torch.from_numpy(_random(leaf, rows, draws)) for name, leaf in spec.obs.items()}
    if spec.mask:
        obs[spec.mask][:, 0] = 1  # something is always allowed
    if not policy.model.state_size:
        return obs, None, None
    state = torch.from_numpy(draws.normal(size=(rows, policy.model.state_size)).astype(np.float32))
    return obs, state, torch.from_numpy(draws.random(rows) < 0.3)


def _random(leaf: Leaf, rows: int, draws: np.random.Generator) -> np.ndarray:
    """[rows, *shape]: bits, bytes, small integers, or normal numbers around what a normaliser leaves alone."""
    shape, dtype = (rows, *leaf.shape), np.dtype(leaf.dtype)
    if dtype.kind == "f":
        return draws.normal(size=shape).astype(dtype)
    return draws.integers(0, {"bool": 2, "uint8": 256}.get(dtype.name, 10), shape).astype(dtype)


# -- what is written besides ---------------------------------------------------------------------------------


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


def _unscale_value(policy: Policy) -> None:
    """The head of a run with normalize.value-targets speaks of targets of variance 1; the file speaks of returns."""
    target = checkpoint.load(policy.path, ("normalizers",)).parts["normalizers"]
    if "target.std" in target:
        policy.model.rescale_value(target["target.std"], target["target.mean"])


def _buffer(kind: str, name: str) -> str:
    """Buffer names may hold no dot, and a leaf's name may."""
    return f"{kind}_{name.replace('.', '__')}"
