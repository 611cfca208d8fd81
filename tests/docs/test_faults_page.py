"""Every promise of the fault table names tests, and all of them exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "faults.md").read_text().partition("## What happens when")[2].partition("\n## ")[0]


def test_every_row_of_the_fault_table_names_tests_that_exist():
    lines = [line for line in TABLE.splitlines() if line.startswith("|") and not line.startswith(("| event |", "|---"))]
    rows = [line.strip("|").split("|") for line in lines]
    assert len(rows) > 50
    files = [file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for text in files for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    for event, *_, tests in rows:
        names = re.findall(r"`(test_\w+)`", tests)
        assert names, f"no test holds the promise about: {event.strip()}"
        assert not set(names) - defined, event
