"""The folders import in one direction, without cycles; samplers and the console script stay light."""

from pathlib import Path

import pytest
from import_graph import (
    ORDER,
    cycles,
    imported_names,
    module_arrows,
    modules,
    room,
    room_arrows,
    rooms,
    upward,
)

ROOT = Path(__file__).parent.parent
TORCH_FREE = (
    "sfactory.api",
    "sfactory.cli",
    "sfactory.config",
    "sfactory.device.machine",
    "sfactory.envs",
    "sfactory.errors",
    "sfactory.families",
    "sfactory.monitor",
    "sfactory.pickled",
    "sfactory.population",
    "sfactory.run.folder",
    "sfactory.run.reader",
    "sfactory.run.recorder",
    "sfactory.shm",
    "sfactory.supervisor.affinity",
    "sfactory.supervisor.child_main",
    "sfactory.supervisor.cores",
    "sfactory.supervisor.exit_rules",
    "sfactory.supervisor.lockstep_process",
    "sfactory.supervisor.preflight",
    "sfactory.supervisor.shutdown",
    "sfactory.supervisor.signals",
    "sfactory.supervisor.spawn",
    "sfactory.supervisor.supervisor",
    "sfactory.supervisor.telemetry",
    "sfactory.supervisor.train",
    "sfactory.tools.check_env",
    "sfactory.tools.doctor",
    "sfactory.tools.info",
    "sfactory.tools.watch",
    "sfactory.workers.names",
    "sfactory.workers.sampler",
    "sfactory.workers.shared",
    "sfactory.workers.worker",
)
"""Modules that samplers, the supervisor and light commands load: no import of torch when they are imported."""


def test_every_folder_and_file_has_a_place_in_the_import_order():
    assert rooms(ROOT) == {name for names in ORDER for name in names}


def test_folders_import_only_folders_further_down():
    assert not upward(room_arrows(ROOT))


def test_no_import_cycle_between_folders():
    assert not cycles(room_arrows(ROOT))


def test_no_import_cycle_between_modules():
    assert not cycles(module_arrows(ROOT))


@pytest.mark.parametrize("name", TORCH_FREE)
def test_light_modules_never_reach_torch_through_their_top_level_imports(name):
    """Followed through every module they load: an import of torch three files away costs a sampler 1.5 s too."""
    known = modules(ROOT)
    todo = [module for module in known if module == name or module.startswith(f"{name}.")]
    assert todo, f"{name} is gone: name its successor here"
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        seen.add(module)
        names = imported_names(known[module], top_level_only=True)
        assert "torch" not in {imported.split(".")[0] for imported in names}, module
        packages = {".".join(imported.split(".")[:n]) for imported in names for n in range(1, imported.count(".") + 2)}
        todo += [imported for imported in packages if imported in known and imported not in seen]


def test_console_script_imports_nothing_heavy_before_it_knows_the_command():
    known, todo, seen = modules(ROOT), ["sfactory.cli.main"], set()
    while todo:
        module = todo.pop()
        seen.add(module)
        names = imported_names(known[module], top_level_only=True)
        heavy = {"torch", "numpy", "gymnasium", "rich", "tensorboard", "jinja2"}
        assert not heavy & {imported.split(".")[0] for imported in names}, module
        packages = {".".join(imported.split(".")[:n]) for imported in names for n in range(1, imported.count(".") + 2)}
        todo += [imported for imported in packages if imported in known and imported not in seen]


@pytest.mark.parametrize("bottom", ["algo", "model", "shm", "envs"])
def test_bottom_folders_know_nothing_of_each_other(bottom):
    assert {b for a, b in room_arrows(ROOT) if a == bottom} <= {"errors", "families", "pickled", "_version"}


def test_environment_families_import_only_sfactory_envs_and_errors():
    for path in sorted((ROOT / "envs").rglob("*.py")):
        used = {room(name) for name in imported_names(path) if name.startswith("sfactory.")}
        assert used <= {"envs", "errors"}, path.name


def test_no_module_imports_an_environment_family_by_name():
    for path in modules(ROOT).values():
        assert not {name for name in imported_names(path) if name.startswith(("sfactory_envs", "sfactory_configs."))}


def test_the_checker_sees_a_cycle_and_an_upward_arrow(tmp_path):
    for name, text in {
        "algo/trace": "def f():\n    from sfactory.cli import main\n",
        "cli/main": "import sfactory.algo.trace\n",
    }.items():
        path = tmp_path / "sfactory" / f"{name}.py"
        path.parent.mkdir(parents=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    (tmp_path / "sfactory" / "__init__.py").touch()
    assert upward(room_arrows(tmp_path)) == {("algo", "cli")}
    assert cycles(room_arrows(tmp_path)) == [{"algo", "cli"}]
    assert cycles(module_arrows(tmp_path)) == [{"sfactory.algo.trace", "sfactory.cli.main"}]


def test_files_of_tests_have_names_of_their_own():
    """Pytest imports them by their names: two alike cannot be collected by one command, as `make slow` does."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert names == sorted(set(names))
