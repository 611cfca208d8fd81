"""The last line of a command on stderr, and the exit code that belongs to an exception."""

from __future__ import annotations

import contextlib
import errno
import sys
from pathlib import Path

from sfactory.cli.output import flush_stdout
from sfactory.errors import Exit, own_place, raised_by_sfactory

NO_THREAD = "can't start new thread"  # Python's message, of a RuntimeError
_SHORTAGE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def print_exit_line(
    code: Exit,
    outcome: str,
    sentence: str,
    checkpoint: str = "",
    env_steps: int = 0,
    resume: str = "",
) -> int:
    """Print `sfactory: OUTCOME (exit N): SENTENCE` on stderr, with checkpoint and `resume` command if there are any.

    Returns the exit code.
    """
    line = f"sfactory: {outcome} (exit {int(code)}): {' '.join(sentence.split())}"
    if checkpoint:
        path = Path(checkpoint)
        with contextlib.suppress(OSError, ValueError):  # below another folder, or the current one was removed
            path = path.relative_to(Path.cwd())
        at = int(path.name) if path.name.isdigit() else env_steps  # training may have continued since
        line += f"; last checkpoint {path} at {at:,} steps"
        if resume:
            line += f"; resume: {resume}"
    from sfactory.monitor.format import printable  # the sentence may quote a file or an environment

    flush_stdout()  # results come first
    print(printable(line), file=sys.stderr, flush=True)
    return int(code)


def exit_of(error: Exception) -> tuple[Exit, str]:
    """Exit code and sentence of an exception. Print the traceback first if it is a bug."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, Exit):
        return code, str(error) + (own_place(error.__cause__) if code is Exit.ENVIRONMENT else "")
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _SHORTAGE:
        return Exit.RESOURCES, str(error)
    if getattr(error, "errno", None) == errno.EAGAIN or str(error) == NO_THREAD:
        return Exit.RESOURCES, f"no process or thread can be started ({error}); {_process_limit()}"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return Exit.USAGE, f"{str(error.filename)[:60]}...: {error.strerror}"
    if isinstance(error, OSError):
        return Exit.STORAGE, str(error)
    if isinstance(error, ValueError) and raised_by_sfactory(error):
        return Exit.USAGE, str(error)
    import traceback  # only for a bug: it would slow every command

    traceback.print_exception(error)
    return Exit.BUG, f"{type(error).__name__}: {error}"


def _process_limit() -> str:
    """The limit of processes and how many there are, for a message."""
    from sfactory.shm.control_groups import free_processes

    return free_processes().text
