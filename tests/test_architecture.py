"""Who may import whom, read from the source; and that samplers stay light."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "pandas", "seaborn", "matplotlib"}

# Room -> what of sfactory it may import. A room is a file or a folder of sfactory/.
ALLOWED = {
    "_version": set(),
    "exits": set(),
    "config": {"config_checks"},
    "config_checks": {"config"},
    "help": set(),
    "settings": {"config"},
    "presets": {"settings"},
    "settings_file": {"config"},
    "machine": {"config"},
    "envs": set(),
    "snapshot": set(),
    "env_state": {"envs", "snapshot"},
    "env_group": {"envs", "env_state", "snapshot"},
    "vector_group": {"envs", "env_group"},
    "algo": set(),
    "model": set(),
    "memory": set(),
    "metrics": set(),
    "batch": {"config", "algo"},
    "dashboard": {"metrics"},
    "writers": {"config", "metrics", "dashboard", "_version"},
    "checkpoint": {"_version", "config", "settings_file", "envs", "model", "workers"},
    "workers": {
        "_version",
        "config",
        "envs",
        "memory",
        "model",
        "algo",
        "checkpoint",
        "exits",
        "metrics",
        "dashboard",
        "writers",
        "batch",
        "settings_file",
        "snapshot",
        "games",
        "statistics",
        "machine",
    },
    "run_folder": {"exits", "checkpoint"},
    "resuming": {"config", "exits", "settings"},
    "policy": {"checkpoint", "config", "env_group", "envs", "model", "settings_file"},
    "export": {"_version", "checkpoint", "envs", "policy"},
    "info": {"checkpoint", "settings_file"},
    "doctor": {"machine"},
    "completion": {"config_checks", "presets", "settings"},
    "api": {"config", "exits", "presets", "resuming", "run_folder", "settings", "tune", "workers"},
    "verbs": {
        "exits",
        "settings",
        "presets",
        "run_folder",
        "envs",
        "check_env",
        "bench",
        "evaluate",
        "timeline",
        "tune",
        "completion",
        "doctor",
        "export",
        "info",
        "verify_resume",
        "watch",
    },
    "verify_resume": {"checkpoint"},
    "roofline": {"config", "envs", "model", "workers"},
    "bench": {"config", "machine", "metrics", "settings_file", "envs", "roofline", "workers"},
    "tune": {"bench", "config", "machine"},
    "timeline": set(),
    "watch": {"checkpoint", "dashboard", "machine", "run_folder", "settings_file", "writers"},
    "env_trace": {"envs"},
    "check_env": {"env_trace", "envs", "presets"},
    "statistics": set(),
    "games": {"envs", "policy"},
    "video": {"games"},
    "evaluate": {"checkpoint", "config", "envs", "games", "metrics", "settings_file", "statistics", "video"},
    "run_files": {"config", "run_folder", "settings", "settings_file"},
    "svg": set(),
    "comparison": {"envs", "run_files", "statistics"},
    "compare_plot": {"comparison", "exits", "metrics"},
    "compare": {"compare_plot", "comparison", "exits", "metrics", "presets", "settings"},
    "report": {"config", "exits", "metrics", "page", "presets", "run_files", "settings", "svg"},
    "sweep": {
        "checkpoint",
        "compare",
        "comparison",
        "config",
        "envs",
        "exits",
        "metrics",
        "presets",
        "run_files",
        "settings",
        "settings_file",
        "writers",
    },
    "page": set(),
}
WORKERS = {  # file of workers/ -> rooms it may import
    "sampler": {"memory", "envs", "workers"},
    "inference": {"memory", "model", "workers"},
    "evaluator": {"checkpoint", "games", "statistics", "workers"},
    "learner": {"memory", "model", "algo", "checkpoint", "metrics", "workers"},
    "update": {"config", "model", "algo", "workers"},
}
TORCH_FREE = (
    "envs", "env_group", "vector_group", "check_env", "memory", "metrics", "dashboard", "writers", "config", "presets",
    "watch", "exits", "info", "doctor",
)  # fmt: skip


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("sfactory.")} - {"__version__"}


def files(room: str) -> list[Path]:
    folder = ROOT / "sfactory" / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below_it(room):
    for path in files(room):
        if path.exists():
            extra = rooms(imports(path)) - ALLOWED[room] - {room}
            assert not extra, f"{path.name} imports {extra}"


def test_every_room_is_in_the_table():
    here = {p.stem for p in (ROOT / "sfactory").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert here - {"__init__", "__main__", "cli"} <= set(ALLOWED)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_imports_only_its_rooms(worker):
    extra = rooms(imports(ROOT / "sfactory" / "workers" / f"{worker}.py")) - WORKERS[worker]
    assert not extra


@pytest.mark.parametrize("room", TORCH_FREE)
def test_rooms_that_samplers_and_the_supervisor_load_do_not_import_torch(room):
    for path in files(room):
        if path.exists():
            assert "torch" not in {name.split(".")[0] for name in imports(path)}


def test_the_command_imports_nothing_heavy_before_it_knows_what_to_do():
    heavy = {"torch", "numpy", "gymnasium", "tyro", "rich", "tensorboard"}
    top = {name.split(".")[0] for name in imports(ROOT / "sfactory" / "cli.py", top_level_only=True)}
    assert not top & heavy


def test_environment_families_know_only_the_door():
    for path in sorted((ROOT / "envs").glob("*.py")):
        assert rooms(imports(path)) <= {"envs", "env_group", "vector_group", "snapshot"}, path.name


def test_nobody_imports_a_family_by_name():
    for path in sorted((ROOT / "sfactory").rglob("*.py")):
        assert not {name for name in imports(path) if name.startswith(("sfactory_envs", "sfactory_configs."))}


def test_files_stay_small():
    long = {p.name: n for p in (ROOT / "sfactory").rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long
