"""A custom encoder that cannot be imported (a working one: tests/docs/test_extending.py)."""

import subprocess
import sys
from pathlib import Path

SFACTORY = str(Path(sys.executable).parent / "sfactory")  # the console script: unlike -m, it has no folder on its path


def test_missing_custom_encoder_is_refused_before_training_starts(tmp_path):
    words = [SFACTORY, "train", "gymnasium/CartPole-v1", "--run.dir", "run", "--model.encoder", "my_nets:Wide"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "model.encoder my_nets:Wide: no module my_nets here" in done.stderr
    assert not (tmp_path / "run").exists()
