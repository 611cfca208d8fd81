"""Read presets, files and flags into layers of settings.

    preset TOML  <  --config FILE  <  TARGET's env.name  <  --section.field value        the right one wins

`sfactory.config.parsing.build` merges the layers into a `Config`.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfactory.config import Config, to_dict
from sfactory.config.known_envs import instead_of, of_family
from sfactory.config.parsing import ConfigLayer, RawValue, build, flag_name, table_layer, without_section
from sfactory.config.renamed import current_name
from sfactory.config.tables import PLACEHOLDERS
from sfactory.config.values import as_text
from sfactory.errors import FileRefused, SettingError, did_you_mean
from sfactory.families import families
from sfactory.files import MiB, read_bytes

CONFIG_FILE = "config.toml"
LONGEST_FILE = 1 * MiB
FALLBACK = "gymnasium"
"""Family whose default.toml has the settings of environments without presets of their own."""
OF_AGENTS = "pettingzoo"
"""Family whose default.toml has the settings of environments with several agents."""


# -- presets and files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """A TOML file that is installed with the package."""

    name: str
    env: str
    description: str
    path: Path

    @property
    def is_variant(self) -> bool:
        """Whether it is named after an algorithm or a network and then its environment, as pqn/minatar/breakout."""
        return self.name.partition("/")[2] == self.env


def presets_dir() -> Path:
    """Folder of the presets: the installed package `sfactory_configs`, which contains only TOML."""
    spec = importlib.util.find_spec("sfactory_configs")
    if spec is None or not spec.submodule_search_locations:
        raise SettingError("the package sfactory_configs is not installed; reinstall sfactory")
    return Path(next(iter(spec.submodule_search_locations)))


def presets() -> list[Preset]:
    """All presets by name, without the default.toml of each family."""
    return [_preset(path) for path in sorted(presets_dir().glob("*/**/*.toml")) if path.stem != "default"]


def family_defaults() -> list[Preset]:
    """Presets for all other environments of a family, named `atari/*` and so on."""
    return [_preset(path) for path in sorted(presets_dir().glob("*/default.toml"))]


def _preset(path: Path) -> Preset:
    text = path.read_text()
    env = tomllib.loads(text).get("env", {}).get("name", "")
    folder = path.parent.relative_to(presets_dir()).as_posix()
    name = f"{folder}/{'*' if path.stem == 'default' else path.stem}"
    return Preset(name, env, text.partition("\n")[0].lstrip("# ").strip(), path)


def read_toml(path: Path) -> ConfigLayer:
    """Read a file as a layer. SettingError names the file, and the line where TOML reports one.

    Old names in a `config.toml` are translated here and thus not reported: sfactory wrote that file, not a person.
    """
    table = _table(path)
    layer: ConfigLayer = {}
    for section, values in table.items():
        if not isinstance(values, dict):
            raise SettingError(f"{path}: {without_section(section, values)}")
        for key, value in values.items():
            name = f"{section}.{key}".replace("-", "_")
            name = current_name(name) if path.name == CONFIG_FILE else name
            if name in PLACEHOLDERS and isinstance(value, dict):
                layer.update(table_layer(name, value, str(path)))
            else:
                layer[name] = RawValue(value, str(path))
    return layer


def preset_layer(path: Path) -> ConfigLayer:
    """Read the file of a preset; see `RawValue.preset`."""
    return {name: replace(raw, preset=True) for name, raw in read_toml(path).items()}


def recorded_layer(path: Path) -> ConfigLayer:
    """Read the settings of a run that was started; see `RawValue.recorded`."""
    return {name: replace(raw, recorded=True) for name, raw in read_toml(path).items()}


def _table(path: Path) -> dict[str, Any]:
    """The contents of a TOML file. A config.toml may be a stranger's; others are named by the user, as `/dev/stdin`."""
    try:
        data = read_bytes(path, LONGEST_FILE) if path.name == CONFIG_FILE else path.read_bytes()
        return tomllib.loads(data.decode())
    except FileRefused:
        raise
    except RecursionError:
        raise SettingError(f"{path}: lists or tables contain each other too deeply") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise SettingError(f"{path}: cannot be read ({reason})") from error
    except ValueError as error:  # also a number of thousands of digits
        raise SettingError(f"{path}: not valid TOML: {error}") from error


def target_layers(target: str, files: Sequence[Path] = ()) -> list[ConfigLayer]:
    """The layers of `TARGET --config FILE ...`, weakest first."""
    from_files = [read_toml(path) for path in files]
    if not target:
        names = [str(layer["env.name"].value) for layer in from_files if "env.name" in layer]
        if not names:
            raise SettingError(
                "no TARGET; name a preset (see `sfactory presets`), FAMILY/ID (see `sfactory envs`) or my_file:MyEnv"
            )
        return [preset_layer(default_file(names[-1])), *from_files]
    if target.endswith(".toml"):
        raise SettingError(f"{target}: a file is given as --config {target}")
    family, slash, name = target.partition("/")
    if "," in target:  # several tasks: defaults of the first one's family
        tasks = [task.strip() for task in target.split(",")]
        bare = next((task for task in tasks if "/" not in task and not is_python_target(task)), None)
        if bare is not None:
            hint = f"; {instead}" if (instead := instead_of(bare, presets())) else ""
            raise SettingError(f"{target}: {bare or 'an empty name'} is not FAMILY/ID{hint}{_lists()}")
        target, name = ",".join(tasks), "default"
    if is_python_target(target.partition(",")[0]):
        _refuse_registered_id(target)
        return [preset_layer(default_file(target)), *from_files, {"env.name": RawValue(target)}]
    if target.endswith(".py"):
        raise SettingError(f"{target}: name the class or function in it too, as {target}:MyEnv")
    if not slash and Path(f"{target}.py").is_file():
        raise SettingError(f"{target}: name the class or function in {target}.py too, as {target}:MyEnv")
    if not slash or not family or not name or ".." in target:
        raise SettingError(f"{target}: no such preset{suggestion(target)}{_lists()}")
    folder = presets_dir() / family
    if name != "default" and (folder / f"{name}.toml").is_file():
        return [preset_layer(folder / f"{name}.toml"), *from_files]
    if family not in families():
        if folder.is_dir() or instead_of(target, presets()):
            raise SettingError(f"{target}: no such preset{suggestion(target)}{_lists()}")
        known = sorted({*families(), *(p.name.partition("/")[0] for p in presets())})
        file, colon, code = target.partition(":")
        near = did_you_mean(family, known, 0.8) or _registered_elsewhere(target)
        hint = f"; a file in a folder is written {file}.py:{code}" if colon else near
        raise SettingError(f"{target}: no environment family {family}{hint}{_lists()}")
    return [preset_layer(default_file(target)), *from_files, {"env.name": RawValue(target)}]


TAKE_MODULES = ("gymnasium", "pettingzoo")


def is_python_target(name: str) -> bool:
    """Whether a name stands for a class or function of the user's own; as in `envs.python_target`.

    Repeated here, because commands that only read settings do not load the environments.
    """
    family, _, rest = name.partition("/")
    return ":" in family or (rest.rpartition(":")[0].endswith(".py") and family not in TAKE_MODULES)


def default_file(target: str) -> Path:
    """Settings of an environment without a preset: those of its family, or else those of gymnasium.

    Of several tasks the first counts.
    """
    task = target.partition(",")[0]
    own = presets_dir() / task.partition("/")[0] / "default.toml"
    return own if not is_python_target(task) and own.is_file() else presets_dir() / FALLBACK / "default.toml"


def fallback_note(target: str) -> str:
    """One line about the origin of the settings, for a target whose family has no presets; empty for others."""
    task = target.partition(",")[0].strip()
    if not task or default_file(task).parent.name != FALLBACK or task.startswith(f"{FALLBACK}/"):
        return ""
    if not is_python_target(task) and task.partition("/")[0] not in families():  # a preset
        return ""
    shown = f"sfactory train {target} --print-config"
    return f"settings: those of {FALLBACK}/*, because there is no preset for {task}; {shown} lists them"


def target_of_agents(target: str) -> str:
    """The same environments of the user's own, named so that they have the settings for several agents."""
    tasks = [task.strip() for task in target.split(",")]
    return ",".join(f"{OF_AGENTS}/{task}" if is_python_target(task) else task for task in tasks)


def several_agents_note(config: Config) -> str:
    """One line for an environment of the user's own that has several agents, if its settings are those for one.

    How many agents it has is known only when it is built, after its settings were chosen. Empty if every setting that
    differs between one agent and several has another value than the default for one.
    """
    if not is_python_target(config.env.tasks[0]):
        return ""
    one, several = (to_dict(build(read_toml(presets_dir() / name / "default.toml"))) for name in (FALLBACK, OF_AGENTS))
    given = to_dict(config)
    parts = [
        f"{flag_name(f'{section}.{name}')} {_typed(value)} ({_typed(several[section][name])})"
        for section, values in one.items()
        for name, value in values.items()
        if value != several[section][name] and given[section][name] == value
    ]
    if not parts:
        return ""
    return (
        f"{config.env.name} has several agents, and these settings are made for one (in parentheses: for several): "
        f"{', '.join(parts)}; for several: sfactory train {target_of_agents(config.env.name)}"
    )


def _typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    return ",".join(map(as_text, value)) if isinstance(value, list | tuple) else as_text(value)


def near_target(target: str) -> str:
    """The preset nearest to `target` by its name, its environment or the last part of either; else empty."""
    family, slash, _ = target.lower().partition("/")
    named: dict[str, str] = {}
    for preset in sorted(presets(), key=lambda preset: preset.is_variant):
        for name in map(str.lower, [preset.name] if preset.is_variant else [preset.name, preset.env]):
            if not slash:
                named.setdefault(name.rpartition("/")[2], preset.name)
            elif family not in families() or name.startswith(f"{family}/"):  # of atari/breakout, no minatar/breakout
                named.setdefault(name, preset.name)
    words = len(re.split("[-_]", target))  # a further word is another task: hopper_hop is not hopper
    alike = [name for name in named if len(re.split("[-_]", name)) >= words]
    near = difflib.get_close_matches(target.lower(), alike, 1, 0.75)
    return named[near[0]] if near else ""


def suggestion(target: str) -> str:
    """The end of an error message about a target: what exists instead; empty if nothing is near."""
    if known := instead_of(target, presets()):
        return f"; {known}"
    if "/" not in target.rstrip("/") and (known := of_family(target, presets(), families())):
        return f"; {known}"
    if near := near_target(target):
        return f"; did you mean {near}?"
    return _registered_elsewhere(target)


def _registered_elsewhere(target: str) -> str:
    """How a name that looks like an id of a package that is unknown here is written, as MiniGrid-Empty-8x8-v0."""
    if not re.fullmatch(r"(\w+/)?\w[\w-]*-v\d+", target):
        return ""
    return f"; an id that a package registers with Gymnasium is gymnasium/PACKAGE:{target}"


REGISTRIES = ("gym", "gymnasium", "procgen")
"""Modules before a colon that name a registry of gym or gymnasium; of gym and procgen none can be used here."""


def _refuse_registered_id(target: str) -> None:
    """Raise SettingError for `my_file:Mine-v0`, an id that a module registers: its family is gymnasium."""
    module, _, env_id = target.partition(":")
    if not re.fullmatch(r"[\w.]+", module) or not re.fullmatch(r"(\w+/)?\w[\w-]*-v\d+", env_id):
        return
    known = instead_of(target, presets()) if module in REGISTRIES or env_id.startswith("ALE/") else ""
    if module in REGISTRIES:
        known = known or f"write gymnasium/{env_id}"
    else:
        known = f"{known or 'an id that a module registers'}{', or' if known else '; write'} gymnasium/{target}"
    raise SettingError(f"{target}: {known}{_lists()}")


def _lists() -> str:
    return "; see `sfactory presets` and `sfactory envs`"
