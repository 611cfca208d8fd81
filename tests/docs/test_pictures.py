"""`make docs` fails where a picture cannot be made: an old one would be taken for the new one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfactory.config import Config, Env
from sfactory.config.toml_file import to_toml

ROOT = Path(__file__).parents[2]


def test_pictures_of_a_site_that_was_not_built_are_an_error(tmp_path):
    (tmp_path / "docs").mkdir()
    script = shutil.copy(ROOT / "docs/pictures.py", tmp_path / "docs")
    done = subprocess.run([sys.executable, script, "site"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("build/site/index.html is not there, so site.png cannot be made: run make site")


def test_pictures_without_a_browser_are_an_error(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "build/site").mkdir(parents=True)
    (tmp_path / "build/site/index.html").write_text("<p>A page.</p>")
    script = shutil.copy(ROOT / "docs/pictures.py", tmp_path / "docs")
    words = [sys.executable, script, "site"]
    done = subprocess.run(words, env={"PATH": ""}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Chromium is not installed, so site.png cannot be made" in done.stderr


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a run of two rows."""
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(to_toml(Config(env=Env(name="minatar/breakout"))))
    row = {"seconds": 2.0, "charts/SPS": 10.0, "charts/FPS": 10.0, "charts/episodic_return": 3.5}
    lines = [json.dumps({"env_steps": steps, **row}) for steps in (500, 1000)]
    (run / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    (run / "status.json").write_text(json.dumps({"state": "finished"}))
    return run


@pytest.mark.parametrize(
    ("kind", "words"),
    [("panel", ("minatar/breakout", "3.5", "finished")), ("compare", ("minatar/breakout", "all runs", "IQM", "3.5"))],
)
def test_terminal_is_drawn_as_svg(kind, words, folder, tmp_path):
    out = tmp_path / "pictures" / "one.svg"
    command = [sys.executable, ROOT / "docs/terminal.py", kind, folder, out, "--width", "90"]
    subprocess.run(command, check=True)
    text = re.sub("<[^>]*>|&#160;", " ", out.read_text())
    assert all(word.replace(" ", "") in text.replace(" ", "") for word in words), text
