"""Draw what a terminal shows as SVG, for the documentation.

    python docs/terminal.py panel runs/NAME panel.svg [--width 100] [--height 40]
    python docs/terminal.py compare runs/SWEEP compare.svg [--width 100]

panel: the live panel of a run, from the files of its folder. compare: the table that `sfactory compare` prints.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from sfactory.monitor.panel import render
from sfactory.tools.compare import text
from sfactory.tools.comparison import compare
from sfactory.tools.watch import RunWatcher

NIGHT = TerminalTheme(
    (13, 17, 23), (201, 209, 217),
    [(13, 17, 23), (248, 81, 73), (63, 185, 80), (227, 179, 65), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (201, 209, 217)],
    [(98, 108, 120), (255, 123, 114), (86, 211, 100), (240, 200, 90), (121, 192, 255), (210, 168, 255),
     (86, 212, 221), (255, 255, 255)],
)  # fmt: skip


def panel(run: Path, width: int, height: int) -> tuple[str, Text]:
    """The title and the newest panel of a run, in a terminal of this many columns and rows."""
    snapshot = RunWatcher(run).read(time.time())
    if not snapshot.row:
        sys.exit(f"{run} has no rows of metrics yet")
    return f"sfactory train {snapshot.env}", render(snapshot, width, height)


def comparison(folder: Path, width: int) -> tuple[str, Text]:
    """The title and what `sfactory compare` prints, in a terminal of this many columns."""
    return f"sfactory compare {folder}", Text(text(compare([folder]), width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("panel", "compare"))
    parser.add_argument("folder", type=Path, help="of the run, or of the sweep")
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=100, help="columns")
    parser.add_argument("--height", type=int, default=1000, help="rows of the panel")
    given = parser.parse_args()
    if given.kind == "panel":
        title, content = panel(given.folder, given.width, given.height)
    else:
        title, content = comparison(given.folder, given.width)
    console = Console(record=True, width=given.width, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(content)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(given.out), title=title, theme=NIGHT)


if __name__ == "__main__":
    main()
