"""Tell once which ranks the first update waits for, if that is long: until then a run shows no numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sfactory.device.ranks import Ranks

REPORT_S = 10.0


class FirstWait:
    """Measures how long the learner of one rank waits for others before its first update."""

    def __init__(self, ranks: Ranks, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """folder: of this rank."""
        self.run_dir = folder if ranks.is_leader else folder.parent
        self.world_size, self._clock = ranks.world_size, clock
        self.done = False
        """Whether there was an update, or a line."""
        self._since: float | None = None

    def line(self, ranks: Sequence[int]) -> str:
        """The line to report, once; otherwise an empty string. Called while the learner waits. ranks: for whom."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if self.done or now - self._since < REPORT_S:
            return ""
        self.done = True
        names = ", ".join(map(str, ranks))
        log = Ranks(ranks[0], self.world_size, ranks[0], self.world_size).folder(self.run_dir) / "log.txt"
        return f"the first update waits for rank {names}, which starts or fills its first batch; see {log}"
