"""A custom encoder that cannot be imported (a working one: test_extending.py)."""

import sys
from pathlib import Path

import pytest
from forked_processes import run_forked

SFACTORY = str(Path(sys.executable).parent / "sfactory")  # the console script: unlike -m, it has no folder on its path


def test_missing_custom_encoder_is_refused_before_training_starts(tmp_path):
    words = [SFACTORY, "train", "gymnasium/CartPole-v1", "--run.dir", "run", "--model.encoder", "my_nets:Wide"]
    done = run_forked(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "model.encoder my_nets:Wide: no module my_nets here" in done.stderr
    assert not (tmp_path / "run").exists()


NOISY = """
import torch
from torch import nn


class Noisy(nn.Module):
    def __init__(self, shape, *, hidden, activation):
        super().__init__()
        self.out_size = 8
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 8), nn.Dropout(0.5))

    def forward(self, obs):
        return self.net(obs.float())
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_encoder_with_dropout_ends_the_run_as_a_mistake_in_one_line(tmp_path, mode):
    (tmp_path / "my_nets.py").write_text(NOISY)
    words = [SFACTORY, "train", "gymnasium/CartPole-v1", "--model.encoder", "my_nets:Noisy", "--run.mode", mode]
    done = run_forked(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("sfactory: usage (exit 2): model.encoder my_nets:Noisy contains Dropout (")
    assert "Traceback" not in done.stderr


BROKEN = NOISY.replace("return self.net(obs.float())", "raise RuntimeError('mine')")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_encoder_that_raises_is_refused_before_anything_is_written(tmp_path, mode):
    (tmp_path / "my_nets.py").write_text(BROKEN.replace(", nn.Dropout(0.5)", ""))
    words = [SFACTORY, "train", "gymnasium/CartPole-v1", "--model.encoder", "my_nets:Noisy", "--run.mode", mode]
    done = run_forked(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"sfactory: usage (exit 2): model.encoder my_nets:Noisy: RuntimeError: mine ({tmp_path}/my_nets.py, line "
    )
    assert not (tmp_path / "runs").exists()
