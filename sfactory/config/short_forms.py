"""Short forms of the settings used most: `--lr 1e-3` is `--optim.lr 1e-3` wherever settings are typed.

Standard library only.
"""

from __future__ import annotations

from sfactory.errors import SettingError

SHORT_FORMS = {
    "name": "run.dir",
    "steps": "stop.env_steps",
    "seconds": "stop.seconds",
    "lr": "optim.lr",
    "seed": "run.seed",
    "device": "run.device",
    "envs": "sampling.envs_per_group",
    "samplers": "sampling.num_samplers",
}
"""Short form -> dotted name of the setting. An option of a command with the same name comes first."""

RUNS = "runs"
"""Folder of the runs that have a name only."""


def long_name(typed: str) -> str:
    """The setting that a short form stands for; every other name unchanged."""
    return SHORT_FORMS.get(typed, typed)


def folder_of(name: str) -> str:
    """The folder that `--name NAME` stands for: runs/NAME. SettingError unless NAME is the name of one folder."""
    if not name or "/" in name or name.startswith(("~", ".")):
        raise SettingError(f"name: {name!r} is not the name of a folder in {RUNS}/; any other folder is written out")
    return f"{RUNS}/{name}"
