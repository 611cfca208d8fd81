"""Policies of opponents, by number, as an inference worker uses them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from sfactory.config.toml_file import from_toml
from sfactory.model.actor_critic import ActorCritic
from sfactory.run import checkpoint
from sfactory.run.folder import run_of
from sfactory.run.opponent_rules import opponent_code, opponent_contents
from sfactory.run.pool_files import member_path
from sfactory.run.recorded_spec import recorded_spec
from sfactory.workers.opponent_pool import outside
from sfactory.workers.shared import RunSpec


class Opponents:
    """Loads a policy when it is first needed and keeps the newest used ones."""

    def __init__(self, run_spec: RunSpec, device: torch.device) -> None:
        self.run_spec, self.device = run_spec, device
        paths = run_spec.config.selfplay.opponent_paths
        self.paths = {outside(i): Path(path) for i, path in enumerate(paths)}
        self.num_params = run_spec.schema.num_params
        self.most = 2 * run_spec.config.selfplay.pool + len(paths)
        self._loaded: OrderedDict[int, ActorCritic] = OrderedDict()

    def outputs(self, number: int, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Act for rows [n, ...] on the device: leaves of the observation, `first`, `noise` and a recurrent `state`.

        Returns actions, log_prob, value, state and, if they are of the run's own kind, params, in host memory.
        """
        model = self._opponent(number)
        out = model(inputs, inputs.get("state") if model.state_size else None, inputs["first"])
        actions, log_prob = model.distribution.sample_and_log_prob(out.params, inputs["noise"])
        found = {**actions, "log_prob": log_prob, "value": out.value}
        if out.params.shape[-1] == self.num_params:  # another algorithm has others; nothing is learned from them
            found["params"] = out.params
        if model.state_size:
            found["state"] = out.state
        return {name: rows.cpu() for name, rows in found.items()}

    def _opponent(self, number: int) -> ActorCritic:
        if number not in self._loaded:
            self._loaded[number] = self._load(number).to(self.device)
            if len(self._loaded) > self.most:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(number)
        return self._loaded[number]

    def _load(self, number: int) -> ActorCritic:
        """Read a policy from its folder, with the settings of its run. CheckpointError if that is not possible."""
        spec, config = self.run_spec.spec, self.run_spec.config
        path = self.paths.get(number)
        if path is None:
            contents = checkpoint.read(member_path(Path(self.run_spec.run_dir), number), ("model",))
            return checkpoint.policy_of(contents, config, spec)
        contents = opponent_contents(path, ("model",))
        run = run_of(contents.path)
        own = from_toml(run / "config.toml")
        trained = recorded_spec(contents.state) or spec  # bounds and order of its observations are its own
        with opponent_code(run, own):
            return checkpoint.policy_of(contents, own, trained)
