"""An encoder of one's own that is not there; one that is: tests/docs/test_extending.py."""

import subprocess
import sys
from pathlib import Path

SFACTORY = str(Path(sys.executable).parent / "sfactory")  # the console script: unlike -m, it has no folder on its path


def test_an_encoder_that_is_not_there_is_refused_before_anything_begins(tmp_path):
    words = [SFACTORY, "train", "gymnasium/CartPole-v1", "--run.dir", "run", "--model.encoder", "my_nets:Wide"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "model.encoder my_nets:Wide: no module my_nets here" in done.stderr
    assert not (tmp_path / "run").exists()
