"""Save a figure of matplotlib as SVG and PNG in benchmarks/results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def save(figure: Any, name: str, folder: Path = RESULTS) -> None:
    """Write NAME.svg and NAME.png, the same bytes for the same figure, and close it."""
    import matplotlib.pyplot as plt

    figure.tight_layout()
    with plt.rc_context({"svg.hashsalt": name}):  # otherwise names inside an SVG are new every time
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=110)
    plt.close(figure)
