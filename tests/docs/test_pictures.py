"""`make docs` fails where a picture cannot be made: an old one would be taken for the new one."""

import shutil
import subprocess
import sys
from pathlib import Path

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
