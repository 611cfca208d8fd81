"""Open files of a folder that somebody else may have written.

A run folder may be downloaded, so its files are not trusted: a link may lead to the user's own files, a pipe or device
may block for ever, a file may be larger than the memory. Here only regular files are opened, never through a link, and
no more than a given number of bytes is read. What is something else is refused by its name (`FileRefused`).
The folder itself may be a link: the user has named it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from sfactory.errors import CommandError, Exit, FileRefused

MiB = 2**20
MOST_IN_HOLES = 2**30
"""Bytes without data that a file may have: reading them costs time, and sending them costs nothing."""
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


# -- what a name stands for ----------------------------------------------------------------------------------


def kind(path: Path) -> str:
    """What is there, in words ("a file", "a folder", "a link", ...); empty if there is nothing. Follows no link."""
    try:
        return _KINDS.get(stat.S_IFMT(os.lstat(path).st_mode), "something unknown")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def is_file(path: Path) -> bool:
    """Whether there is a regular file, and not a link to one."""
    return kind(path) == "a file"


def is_folder(path: Path) -> bool:
    """Whether there is a folder, and not a link to one."""
    return kind(path) == "a folder"


def require(path: Path, expected: str) -> None:
    """FileRefused if there is something else than `expected` ("a file" or "a folder"); nothing is accepted."""
    found = kind(path)
    if found not in ("", expected):
        raise FileRefused(f"{path} is {found}, expected {expected}; a run folder holds files and folders only")


def folder_entries(folder: Path) -> list[Path]:
    """Entries of a folder by name; none if it does not exist. FileRefused if it is a link or no folder."""
    require(folder, "a folder")
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


# -- reading -------------------------------------------------------------------------------------------------


def open_to_read(path: Path, most: int | None = None) -> BinaryIO:
    """Open a regular file, of at most `most` bytes. OSError if it cannot be opened, FileRefused if it is not that."""
    return cast(BinaryIO, _checked(path, os.O_RDONLY, "rb", most))


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file of at most `most` bytes; errors as in `open_to_read`."""
    with open_to_read(path, most) as file:
        return file.read(most)


def read_text(path: Path, most: int) -> str:
    """Read a whole text; bytes that are not UTF-8 are replaced."""
    return read_bytes(path, most).decode("utf-8", "replace")


def read_end(path: Path, most: int) -> tuple[str, bool]:
    """The newest `most` bytes of a text of any size, from the start of a line, and whether that is all of it."""
    with open_to_read(path) as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - most))
        text = file.read(most)
    return (text.partition(b"\n")[2] if start else text).decode("utf-8", "replace"), not start


# -- writing -------------------------------------------------------------------------------------------------


def open_to_append(path: Path) -> TextIO:
    """Open a text file of a run for appending; it is created if it is missing."""
    return cast(TextIO, _checked(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "a", None))


def open_lock(path: Path) -> int:
    """Descriptor of a file that is locked; it is created if it is missing."""
    return _descriptor(path, os.O_RDWR | os.O_CREAT)


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader gets the old or the new text, never a part."""
    require(path, "a file")
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # needs no permission to list it
    try:
        replace_text_in(folder, path.name, text)
    finally:
        os.close(folder)


def replace_text_in(folder: int, name: str, text: str) -> None:
    """Replace a file of an open folder in one step, also if the folder was moved and another one is in its place."""
    temporary = f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)  # of a process that was killed

    def opener(file: str, flags: int) -> int:
        return os.open(file, flags, 0o666, dir_fd=folder)

    with open(temporary, "x", encoding="utf-8", errors="backslashreplace", opener=opener) as file:
        file.write(text)
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


# -- opening -------------------------------------------------------------------------------------------------


def require_writable(file: Path) -> None:
    """CommandError (exit 2) if a file of the user's own for a result cannot be made; asked before the work."""
    if not file.parent.is_dir():
        raise CommandError(Exit.USAGE, f"{file}: the folder {file.parent} does not exist")
    if file.is_dir():
        raise CommandError(Exit.USAGE, f"{file} is a folder; name a file")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise CommandError(Exit.USAGE, f"{file} cannot be written: no permission")


def _checked(path: Path, flags: int, mode: str, most: int | None) -> Any:
    descriptor = _descriptor(path, flags)
    try:
        _check_size(descriptor, path, most)
        if "b" in mode:
            return open(descriptor, mode)
        return open(descriptor, mode, encoding="utf-8", errors="backslashreplace")
    except BaseException:
        os.close(descriptor)
        raise


def _descriptor(path: Path, flags: int) -> int:
    """Open a regular file. What it is, is known before (opening a device acts) and checked after (it may change)."""
    require(path, "a file")
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileRefused(f"{path} is no regular file any more")
    return descriptor


def _check_size(descriptor: int, path: Path, most: int | None) -> None:
    size = os.fstat(descriptor).st_size
    if most is not None and size > most:
        raise FileRefused(f"{path} has {size:,} bytes; at most {most:,} are read")
    if size > MOST_IN_HOLES and _bytes_in_holes(descriptor, size) > MOST_IN_HOLES:
        raise FileRefused(f"{path} has {size:,} bytes, most of them without data")


def _bytes_in_holes(descriptor: int, size: int) -> int:
    """Bytes that a file has without data, counted until they are too many; reading begins at the start afterwards."""
    total = at = 0
    while at < size and total <= MOST_IN_HOLES:
        try:
            hole = os.lseek(descriptor, at, os.SEEK_HOLE)  # the end of the file if there is none
        except OSError:  # the file system does not know
            break
        try:
            at = os.lseek(descriptor, hole, os.SEEK_DATA)
        except OSError:  # no data behind the hole
            at = size
        total += at - hole
    os.lseek(descriptor, 0, os.SEEK_SET)
    return total
