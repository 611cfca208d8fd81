"""Old module paths and where their contents are now.

`import sfactory.env_group` raises an ImportError that names `sfactory.envs.gymnasium_adapter`. Standard library only:
every import of the package loads this module.
"""

from __future__ import annotations

import sys

MOVED = {
    "batch": "learning.batch_scaling",
    "bench": "tools.bench",
    "check_env": "tools.check_env",
    "checkpoint": "run.checkpoint",
    "compare": "tools.compare",
    "compare_plot": "tools.compare_plot",
    "comparison": "tools.comparison",
    "completion": "cli.completion",
    "config_checks": "config.bounds",
    "dashboard": "monitor.panel",
    "doctor": "tools.doctor",
    "env_group": "envs.gymnasium_adapter",
    "env_state": "envs.gymnasium_state",
    "env_trace": "tools.random_rollout",
    "evaluate": "play.evaluate",
    "exits": "errors",
    "export": "play.export",
    "games": "play.episodes",
    "help": "cli",
    "info": "tools.info",
    "machine": "device.machine",
    "memory": "shm",
    "metrics": "monitor.table",
    "page": "tools.report",
    "policy": "play.policy",
    "presets": "config.presets",
    "report": "tools.report",
    "resuming": "config.resume_rules",
    "roofline": "tools.roofline",
    "run_files": "run.reader",
    "run_folder": "run.folder",
    "settings": "config.parsing",
    "settings_file": "config.toml_file",
    "snapshot": "envs.saved_state",
    "statistics": "monitor.statistics",
    "svg": "tools.svg",
    "sweep": "population.runner",
    "timeline": "tools.timeline",
    "tune": "tools.tune",
    "vector_group": "envs.vector_adapter",
    "verbs": "cli",
    "verify_resume": "tools.verify_resume",
    "video": "play.video",
    "watch": "tools.watch",
    "workers.accelerator": "device.accelerator",
    "workers.answers": "workers.inference_batch",
    "workers.asked": "supervisor.preflight",
    "workers.autopsy": "learning.nonfinite_dump",
    "workers.birth": "supervisor.spawn",
    "workers.crew": "learning.parallel_network",
    "workers.exact": "supervisor.lockstep_state",
    "workers.lockstep": "supervisor.lockstep",
    "workers.network": "learning.network",
    "workers.record": "run.recorder",
    "workers.roles": "supervisor.run_worker",
    "workers.saver": "run.checkpoint_writer",
    "workers.signals": "supervisor.signals",
    "workers.staging": "learning.staging",
    "workers.supervisor": "supervisor.supervisor",
    "workers.telemetry": "supervisor.telemetry",
    "workers.training_batch": "learning.batch",
    "workers.update": "learning.update",
    "workers.wiring": "workers.shared",
    "writers": "monitor.writers",
}
"""Old path -> new path, both inside `sfactory`. The names of packages cover the modules inside them."""


class MovedModules:
    """Finder for the old module paths: raises ImportError with the new path.

    Not a subclass of `importlib.abc.MetaPathFinder`: importing that takes longer than the rest of the package.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        package, _, name = fullname.partition(".")
        if package == "sfactory" and name in MOVED:
            raise ImportError(f"{fullname} has moved to sfactory.{MOVED[name]}", name=fullname)


def install() -> None:
    """Add the finder behind all others, so that it sees only modules that do not exist."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
