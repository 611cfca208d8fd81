"""Notice that the folder of a run was removed or moved while the run writes into it.

`FolderPresence` is for the process that holds the lock of the folder, `LockHolder` for the others of the same run.
"""

from __future__ import annotations

import os
from pathlib import Path

from sfactory.run.folder import locking_process

DELETED = " (deleted)"  # what Linux adds to the name of a folder that was removed


class FolderPresence:
    """Remembers one folder by a descriptor (`folder`), and compares what its path leads to later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def loss(self) -> str:
        """What happened to the folder (`was moved to X`); an empty string while it is in its place."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self.folder)):
                return ""
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # the file system does not answer at the moment
            return ""
        try:
            now = os.readlink(f"/proc/self/fd/{self.folder}")
        except OSError:  # no /proc
            return "was removed or moved"
        return "was removed" if now.endswith(DELETED) else f"was moved to {now}"

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.folder)


class LockHolder:
    """Remembers which process has locked the folder of a run.

    If the folder is removed or moved, that process makes a new one and locks it. A folder that another process has
    locked is that of another run, which somebody has put in the place of the first: nothing may be written there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._pid = locking_process(run_dir)

    def require(self) -> None:
        """OSError if another run is in the place of the folder."""
        if self._pid and locking_process(self.run_dir) not in (0, self._pid):
            raise FileExistsError(f"another run is in the place of {self.run_dir}")
