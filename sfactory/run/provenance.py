"""Record where a run comes from: provenance.json, an entry for every launch. Never environment variables.

Free of torch: versions are those of the installed packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sfactory.device.machine import cores, processor
from sfactory.errors import FileRefused
from sfactory.files import MiB, read_text, replace_text

FILE = "provenance.json"
FORMAT = 1
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder sfactory/ with the code that runs."""
PACKAGES = ("sfactory", "torch", "numpy", "gymnasium")
MOST_LAUNCHES = 1000
"""Entries that are kept: the first and the newest ones."""
GIT_S = 5.0
LONGEST_TEXT = 4000
SECRET = re.compile(r"(token|secret|password|passwd|api[-_]?key|credential)", re.IGNORECASE)
"""Options whose value is not recorded."""
HIDDEN = "..."


def record(run_dir: Path, launch: int, resume_from: str) -> None:
    """Add an entry for a launch that starts now. Whatever cannot be found out or written does not stop the run."""
    with contextlib.suppress(OSError, ValueError):
        entries = [*read(run_dir), found(launch, resume_from)]
        kept = entries[:1] + entries[1:][-(MOST_LAUNCHES - 1) :]
        replace_text(run_dir / FILE, json.dumps({"format": FORMAT, "launches": kept}, indent=1) + "\n")


def found(launch: int, resume_from: str) -> dict[str, Any]:
    """Describe this process, its machine, the code of the current folder and, in a checkout, that of sfactory."""
    entry: dict[str, Any] = {
        "launch": launch,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": command(sys.argv),
        "host": socket.gethostname(),
        "cpu": f"{processor()}, {cores()} cores",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
    }
    with contextlib.suppress(OSError):  # the current folder was removed
        entry["folder"] = os.getcwd()
        entry |= {"git": code} if (code := git_state(Path.cwd())) else {}
    entry |= {"sfactory_git": code} if (code := checkout_state()) else {}
    if resume_from:
        entry["resumed_from"] = Path(resume_from).name
    return entry


def command(arguments: Sequence[str]) -> str:
    """The command line as it can be typed again, without the values of options that look secret."""
    words, hide = list[str](), False
    for number, word in enumerate(arguments):
        if number == 0:
            name = Path(word).name
            word = "sfactory" if name == "__main__.py" and Path(word).parent.name == "sfactory" else name or "python"
        elif hide and not word.startswith("--"):
            word = HIDDEN
        option, equals, _ = word.partition("=")
        hide = word.startswith("--") and bool(SECRET.search(option))
        words.append(f"{option}={HIDDEN}" if hide and equals else word)
        hide = hide and not equals
    return shlex.join(words)[:LONGEST_TEXT]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    known = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    return known


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the repository that a folder is in, and whether tracked files differ; empty without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "changed": None if changed is None else bool(changed.strip())}


def checkout_state(package: Path = PACKAGE) -> dict[str, Any]:
    """`git_state` of sfactory's own checkout; empty if it was installed: another repository may be around it."""
    return git_state(package.parent) if (package.parent / ".git").exists() else {}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if there is no git, no repository or no answer in time."""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        git = ["git", "-c", "core.fsmonitor=false", *arguments]  # the monitor would start another process
        done = subprocess.run(
            git, cwd=folder, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GIT_S
        )
        return done.stdout if done.returncode == 0 else None
    return None


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Entries of the launches, oldest first; none if the file is missing or is not what `record` wrote."""
    try:
        content = json.loads(read_text(run_dir / FILE, 16 * MiB))
        launches = content["launches"]
        return [entry for entry in launches if isinstance(entry, dict)] if isinstance(launches, list) else []
    except (OSError, ValueError, RecursionError, KeyError, TypeError, FileRefused):
        return []


def rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """An entry as (name, text), for people. Values of other types than expected are left out."""
    known: dict[str, str] = {}
    for name in ("started", "command", "folder"):
        known[name] = _text(entry.get(name))
    known["code"] = code(entry)
    known["sfactory"] = code(entry, "sfactory_git")
    if known["sfactory"] == known["code"]:  # started in the checkout
        del known["sfactory"]
    known |= {"host": _text(entry.get("host")), "CPU": _text(entry.get("cpu")), "system": _text(entry.get("system"))}
    packages = entry.get("versions")
    if isinstance(packages, dict):
        known["versions"] = ", ".join(f"{_text(name)} {_text(version)}" for name, version in packages.items())
    return [(name, text[:LONGEST_TEXT]) for name, text in known.items() if text]


def code(entry: dict[str, Any], of: str = "git") -> str:
    """The commit in words; empty without one. of: `git`, the current folder, or `sfactory_git`."""
    git = entry.get(of)
    if not isinstance(git, dict) or not _text(git.get("commit")):
        return ""
    changed = {"True": "with changes", "False": "unchanged"}.get(str(git.get("changed")), "changes unknown")
    return f"commit {_text(git['commit'])}, {changed}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
