"""Notice that the folder of a run was removed or moved while the run writes into it."""

from __future__ import annotations

import os
from pathlib import Path

DELETED = " (deleted)"  # what Linux adds to the name of a folder that was removed


class FolderPresence:
    """Remembers one folder by a descriptor, and compares what its path leads to later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def loss(self) -> str:
        """What happened to the folder (`was moved to X`); an empty string while it is in its place."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                return ""
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # the file system does not answer at the moment
            return ""
        try:
            now = os.readlink(f"/proc/self/fd/{self._fd}")
        except OSError:  # no /proc
            return "was removed or moved"
        return "was removed" if now.endswith(DELETED) else f"was moved to {now}"

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
