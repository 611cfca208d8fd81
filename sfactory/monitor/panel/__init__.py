"""Live panel of a run. `render(snapshot, width)` is pure: equal snapshots give equal pictures.

`run/recorder.py` makes the snapshots of the own run, `tools/watch.py` those of another run from its files;
`terminal.py` keeps the newest on the screen. Only functions that draw import rich: it is not loaded without a terminal.
"""

from sfactory.monitor.panel.picture import render
from sfactory.monitor.panel.snapshot import ReturnHistory, Snapshot, keep_stage_times

__all__ = ["ReturnHistory", "Snapshot", "keep_stage_times", "render"]
