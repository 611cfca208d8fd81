"""Packaging: setup.cfg and the wheel match the folders."""

import configparser
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

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
    assert {"minatar", "atari", "mujoco", "envpool", "video", "plots", "slurm", "ray", "wandb", "dev", "all"} <= extras


def test_constraints_pin_every_requirement():
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    required = {
        line.split(">=")[0].split("[")[0].strip() for line in read_setup()["options"]["install_requires"].split()
    }
    assert {name.lower() for name in required} <= pinned


def test_wheel_contains_every_module_and_preset(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    moved = {"sfactory": "sfactory", "envs": "sfactory_envs", "configs": "sfactory_configs"}
    for folder, package in moved.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".toml", ".j2") or path.name == "py.typed":
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    assert not any(name.startswith(("envs/", "configs/", "tests/")) for name in names)


def test_every_preset_is_valid_toml():
    presets = sorted((ROOT / "configs").rglob("*.toml"))
    assert len(presets) >= 9
    for path in presets:
        assert tomllib.loads(path.read_text())["env"]
