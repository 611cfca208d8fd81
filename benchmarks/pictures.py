"""Draw the live panel of a run as SVG, for the documentation.

    python benchmarks/pictures.py panel runs/NAME panel.svg [--width 100] [--height 40]

Shows the panel as a terminal does, from the files of the run folder.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from sfactory.monitor.panel import render
from sfactory.tools.watch import RunWatcher

NIGHT = TerminalTheme(
    (13, 17, 23), (201, 209, 217),
    [(13, 17, 23), (248, 81, 73), (63, 185, 80), (227, 179, 65), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (201, 209, 217)],
    [(98, 108, 120), (255, 123, 114), (86, 211, 100), (240, 200, 90), (121, 192, 255), (210, 168, 255),
     (86, 212, 221), (255, 255, 255)],
)  # fmt: skip


def panel(run_dir: Path, out: Path, width: int, height: int) -> None:
    """Write the newest panel of a run as SVG, as a terminal of this many columns and lines shows it."""
    snapshot = RunWatcher(run_dir).read(time.time())
    if not snapshot.row:
        sys.exit(f"{run_dir} has no rows of metrics yet")
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(render(snapshot, width, height))
    out.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(out), title=f"sfactory train {snapshot.env}", theme=NIGHT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("panel", help="the live panel of a run")
    one.add_argument("run_dir", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--width", type=int, default=100)
    one.add_argument("--height", type=int, default=1000)
    given = parser.parse_args()
    panel(given.run_dir, given.out, given.width, given.height)


if __name__ == "__main__":
    main()
