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
