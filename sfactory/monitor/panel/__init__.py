"""The live panel: a run at one glance. `render(snapshot, width)` is pure: the same snapshot is the same picture.

`workers/record.py` makes the snapshots (`watch.py`: from a run's files), `terminal.py` keeps the newest on the screen.
rich is imported by the functions that draw: who has no terminal never loads it.
"""

from sfactory.monitor.panel.picture import render
from sfactory.monitor.panel.snapshot import History, Snapshot, carried

__all__ = ["History", "Snapshot", "carried", "render"]
