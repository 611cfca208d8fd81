"""`sfactory bench` and `sfactory profile`: how fast, which share of what is possible, and where the time goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sfactory.cli.args import one_word
from sfactory.errors import CommandError, Exit, print_exit_line


def bench(args: list[str]) -> int:
    """Measure one workload."""
    from sfactory.config import parsing, presets
    from sfactory.config.toml_file import settings_to_toml
    from sfactory.tools.bench import BenchFailed
    from sfactory.tools.bench import bench as measure
    from sfactory.tools.tune import search

    own_flags = {"--config": True, "--seconds": True, "--search": True, "--write": True, "--json": False}
    flags, own, positionals = presets.split_flags(args, own_flags)
    seconds, budget = (
        float(parsing.number(own[name][-1])) if name in own else default
        for name, default in (("--seconds", 20.0), ("--search", 0.0))
    )
    if seconds < 2 or budget < 0:
        raise CommandError(Exit.USAGE, f"--seconds is {seconds:g} and --search {budget:g}; at least 2 and 0 it must be")
    if "--write" in own and not budget:
        budget = 60.0
    target = one_word(positionals, "TARGET")
    files = [Path(name) for name in own.get("--config", [])]
    config = parsing.build(*presets.target_layers(target, files), flags)

    def say(line: str) -> None:
        if "--json" not in own:
            print(line, file=sys.stderr, flush=True)

    try:
        report = measure(target, config, seconds, say)
        if "--json" not in own:
            print(report.text())
        found = None
        if budget:
            say(f"\nlooking for faster settings, about {budget:g} s ...")
            found = search(config, budget, learning=True, say=say)
    except BenchFailed as error:
        raise CommandError(Exit.USAGE, str(error)) from error
    if "--json" in own:
        better = {"search": found._asdict()} if found else {}
        print(json.dumps({**report.as_dict(), **better}))
    elif found:
        print(found.text())
    if found and "--write" in own:
        path = Path(own["--write"][-1])
        path.write_text(f"# Found by: sfactory bench {target} --search {budget:g}\n{settings_to_toml(found.settings)}")
        say(f"sfactory train {target} --config {path}")
    said = f"{report.whole.steps_per_second:,.0f} steps/s, {100 * report.share:.0f}% of the roofline"
    return print_exit_line(Exit.FINISHED, "measured", said)


def profile(args: list[str]) -> int:
    """A timeline of all workers."""
    from sfactory.config import parsing, presets, with_settings
    from sfactory.tools import timeline
    from sfactory.tools.bench import BenchFailed, trial

    flags, own, positionals = presets.split_flags(args, {"--config": True, "--seconds": True, "-o": True})
    seconds = float(parsing.number(own["--seconds"][-1])) if "--seconds" in own else 2.0
    if not 0 < seconds <= 600:
        raise CommandError(Exit.USAGE, f"--seconds is {seconds:g}; more than 0 and at most 600 it must be")
    target = one_word(positionals, "TARGET")
    path = Path(own["-o"][-1] if "-o" in own else "trace.json")
    files = [Path(name) for name in own.get("--config", [])]
    config = parsing.build(*presets.target_layers(target, files), flags)
    spans: list[timeline.Span] = []
    try:
        whole = trial(
            with_settings(config, {"run.profile": True}),
            seconds,
            lambda run: spans.extend(timeline.last(timeline.read(run / "debug"), seconds)),
        )
    except BenchFailed as error:
        raise CommandError(Exit.USAGE, str(error)) from error
    path.write_text(json.dumps(timeline.trace_events(spans)))
    print(timeline.table(spans))
    print(f"\nopen {path} at https://ui.perfetto.dev (nothing is uploaded) or in chrome://tracing")
    said = f"{len(spans):,} stages of the last {seconds:g} s at {whole.steps_per_second:,.0f} steps/s in {path}"
    return print_exit_line(Exit.FINISHED, "profiled", said)
