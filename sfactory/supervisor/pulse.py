"""The pulse of the supervisor: a time in shared memory that shows the workers that it runs.

If the supervisor alone is stopped (Ctrl-Z in a terminal, SIGSTOP), the pulse stops with it, and the workers wait: what
the user stopped uses no processor, and nothing happens that is not watched and recorded. A thread writes it, so a
supervisor that waits for a slow disk or terminal still has a pulse.
"""

from __future__ import annotations

import threading

from sfactory.workers.shared import SupervisorWords

EVERY_S = 0.25


class Pulse:
    """Writes the pulse until it is closed, which must be before the shared memory is."""

    def __init__(self, words: SupervisorWords) -> None:
        self._words, self._closed = words, threading.Event()
        self._words.beat()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(EVERY_S):
            self._words.beat()

    def close(self) -> None:
        """Stop writing."""
        self._closed.set()
        self._thread.join()
