"""Packaging: setup.cfg and the wheel match the folders."""

import ast
import configparser
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def read_setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_setup_cfg_lists_every_package():
    listed = set(read_setup()["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "sfactory").rglob("__init__.py")}
    families = {p.parent.relative_to(ROOT / "envs").parts for p in (ROOT / "envs").rglob("__init__.py")}
    assert listed == found | {"sfactory_configs"} | {".".join(("sfactory_envs", *parts)) for parts in families}


def test_setup_cfg_has_every_extra():
    extras = set(read_setup()["options.extras_require"])
    assert {"minatar", "atari", "mujoco", "envpool", "video", "plots", "slurm", "ray", "wandb", "docs", "dev"} <= extras
    assert "all" in extras


def test_constraints_pin_every_requirement():
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    required = {
        line.split(">=")[0].split("[")[0].strip() for line in read_setup()["options"]["install_requires"].split()
    }
    assert {name.lower() for name in required} <= pinned


IMPORTED_AS = {"faster_fifo": "faster-fifo", "ale_py": "ale-py", "tomli_w": "tomli-w", "onnx_ir": "onnxscript"}
"""Packages whose module has another name."""


def imports_of(path):
    """First parts of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_every_package_that_the_code_imports_is_a_requirement_or_in_an_extra():
    """The wheel is tried with packages that are there already: a missing requirement would not be seen."""
    setup = read_setup()
    listed = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    names = {re.split(r"[\[<>=\s]", line.strip())[0] for text in listed for line in text.split("\n")}
    used = {
        name
        for folder in ("sfactory", "envs", "configs")
        for p in (ROOT / folder).rglob("*.py")
        for name in imports_of(p)
    }
    ours = {"sfactory", "sfactory_envs", "sfactory_configs", *sys.stdlib_module_names}
    unknown = {IMPORTED_AS.get(name, name) for name in used - ours} - names
    assert unknown == {"cloudpickle"}, "which gymnasium requires"


def test_source_archive_holds_what_the_readme_and_the_help_name(tmp_path):
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    # Without the egg-info, which lists what an earlier build had.
    fresh = shutil.copytree(ROOT, tmp_path / "fresh", ignore=left_out)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(fresh)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "constraints.txt", "docs/README.md"}
    assert wanted <= names
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= names
    assert "tests/test_packaging.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "runs", "docs/_build"))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def test_wheel_contains_every_module_and_preset(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    moved = {"sfactory": "sfactory", "envs": "sfactory_envs", "configs": "sfactory_configs"}
    for folder, package in moved.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".toml", ".j2", ".c") or path.name == "py.typed":
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    assert not any(name.startswith(("envs/", "configs/", "tests/")) for name in names)


def test_wheel_has_a_description_that_an_index_can_show(wheel):
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_metadata_of_the_wheel_is_complete_and_names_no_address_that_does_not_exist(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    (version,) = re.findall(r'"(.+)"', (ROOT / "sfactory/_version.py").read_text())
    assert metadata["Version"] == version
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Author"] == "sfactory developers"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Operating System :: POSIX :: Linux" in metadata.get_all("Classifier")
    assert metadata.get_all("Project-URL") is None
    assert metadata["Summary"].startswith("Asynchronous PPO and its off-policy-corrected relatives")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wheel_in_an_environment_of_its_own_trains_cartpole(wheel, tmp_path):
    home, away = tmp_path / "clean", tmp_path / "away"
    venv.create(home)
    away.mkdir()
    python = home / "bin/python"
    (packages,) = (home / "lib").glob("python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]  # torch and the other dependencies
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(away)}
    imported = [python, "-c", "import sfactory; print(sfactory.__file__)"]
    where = subprocess.run(imported, cwd=away, env=environment, capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()).is_relative_to(packages)
    words = [
        home / "bin/sfactory",
        "train",
        "classic/cartpole",
        "--stop.env-steps",
        "4k",
        "--run.dir",
        "run",
        "--quiet",
    ]
    done = subprocess.run(words, cwd=away, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((away / "run/status.json").read_text())["env_steps"] >= 4000


def test_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading), heading
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds
    assert "https://keepachangelog.com/en/1.1.0/" in text


def test_every_preset_is_valid_toml():
    presets = sorted((ROOT / "configs").glob("*/**/*.toml"))  # beside them: scores.toml
    assert len(presets) >= 9
    for path in presets:
        assert tomllib.loads(path.read_text())["env"]
