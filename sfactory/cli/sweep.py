"""`sfactory sweep`: one run per seed and cell of a grid, and a table at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sfactory.errors import CommandError, Exit, print_exit_line
from sfactory.population.sweep import Job, Sweep, alone, planned, seeds
from sfactory.tools import compare
from sfactory.tools.comparison import compare as compared


def main(args: list[str]) -> int:
    """Run the command; returns its exit code."""
    from sfactory.config import parsing, presets
    from sfactory.envs import make_specs

    takes = dict.fromkeys(("--seeds", "--grid", "--jobs", "--dir", "--config"), True)
    flags, own, names = presets.split_flags(args, {**takes, "--retry": False, "--json": False})
    if len(names) != 1:
        raise CommandError(Exit.USAGE, f"expected one TARGET, got {' '.join(names) or 'none'}")
    base = [*presets.target_layers(names[0], [Path(file) for file in own.get("--config", [])]), flags]
    jobs = parsing.whole(own["--jobs"][-1], "jobs") if "--jobs" in own else 1
    if jobs < 1:
        raise CommandError(Exit.USAGE, f"jobs is {jobs}; at least one run at a time")
    folder = Path(own["--dir"][-1]) if "--dir" in own else None
    folder, plan = planned(names[0], base, own.get("--grid", []), seeds(own.get("--seeds", ["0..2"])[-1]), folder)
    for env in {repr(job.config.env): job.config.env for job in plan}.values():
        make_specs(env.tasks, env.arguments)  # an environment that cannot be built: said once, and here
    with alone(folder):
        sweep = Sweep(folder, plan, jobs, retry="--retry" in own)
        code, sentence = sweep.run()
        table(plan, as_json="--json" in own)
    return print_exit_line(code, code.outcome, sentence)


def table(plan: Sequence[Job], as_json: bool) -> None:
    """What compare says of all runs that have a curve."""
    there = [job.run_dir for job in plan if (job.run_dir / "config.toml").is_file()]
    try:
        found = compared(there)
    except ValueError as error:
        print(json.dumps({"panels": [], "notes": [str(error)]}) if as_json else f"no table: {error}")
        return
    print(json.dumps(found.as_dict()) if as_json else f"\n{compare.text(found)}")
    if not as_json:
        print(f"\nA picture: sfactory compare {there[0].parent} -o plot.png")
    sys.stdout.flush()
