"""The README's encoder of one's own: ten lines, an import path, no change in sfactory."""

import json
import re
import subprocess
import sys
from pathlib import Path

from running import SMALL

README = (Path(__file__).parents[2] / "README.md").read_text()
SFACTORY = str(Path(sys.executable).parent / "sfactory")  # the console script: unlike -m, it has no folder on its path


def test_the_encoder_of_the_readme_trains_and_plays(tmp_path):
    (code,) = re.findall(r"```python\n(# my_net.py.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 13
    (tmp_path / "my_net.py").write_text(code)
    words = [SFACTORY, "train", "gymnasium/CartPole-v1", "--run.dir", "run", "--model.encoder", "my_net:Wide"]
    words += [*SMALL, "--stop.env-steps", "2000", "--quiet"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    words = [SFACTORY, "eval", "run", "--episodes", "2", "--json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["episodes"] == 2


def test_an_encoder_that_is_not_there_is_refused_before_anything_begins(tmp_path):
    words = [SFACTORY, "train", "gymnasium/CartPole-v1", "--run.dir", "run", "--model.encoder", "my_nets:Wide"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "model.encoder my_nets:Wide: no module my_nets here" in done.stderr
    assert not (tmp_path / "run").exists()
