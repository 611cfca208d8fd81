"""Run folders without training, for tests of matches."""

import torch

import sfactory
from sfactory.config.toml_file import to_toml
from sfactory.envs import make_spec
from sfactory.learning.network import build_model
from sfactory.run.checkpoint import Contents
from sfactory.run.checkpoint_writer import save
from sfactory.run.obs_reading import reading
from sfactory.run.recorded_spec import spec_entry

NETS = """
import torch
from torch import nn


class Wide(nn.Module):
    def __init__(self, shape, *, hidden, activation):
        super().__init__()
        self.out_size = 24
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), self.out_size), nn.Tanh())

    def forward(self, obs):
        return self.net(obs.float())
"""
"""A file with an encoder of one's own, `Wide`."""


def write_run(folder, target, *env_steps, **sections):
    """A run folder with checkpoints of random weights, as if it had been trained; the newest is the last."""
    config = sfactory.make_config(target, **sections)
    spec = make_spec(config.env.tasks[0], config.env.options)
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(config))
    generator = torch.Generator().manual_seed(len(folder.name))
    for steps in env_steps:
        model = build_model(config, spec)
        for parameter in model.parameters():
            parameter.data.normal_(generator=generator)
        for name, shape in model.normalized_shapes().items():
            model.set_normalizer(name, torch.rand(shape, generator=generator), torch.rand(shape, generator=generator))
        state = {"env_steps": steps, **spec_entry(spec), **reading(spec, config)}
        save(folder, Contents(state, {"model": model.state_dict()}), keep=9)
    return folder
