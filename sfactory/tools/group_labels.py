"""Name the groups of a comparison: by the settings that differ, by their folders, or as the user says."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfactory.config.parsing import flag_name
from sfactory.run.reader import RunFolder, format_setting

MOST_SETTINGS = 3
"""Settings in a label. Where groups differ in more, a label would be longer than the curve that it names."""


def labels_of(groups: Sequence[Sequence[RunFolder]]) -> tuple[list[str], list[str]]:
    """Return a label for every group, and the settings that differ if there are too many of them for labels.

    The label of a single group is empty.
    """
    if len(groups) == 1:
        return [""], []
    settings: list[dict[str, Any]] = [members[0].settings() for members in groups]
    names = dict.fromkeys(name for each in settings for name in each)
    differ = [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]
    if len(differ) > MOST_SETTINGS:
        return folder_labels([[run.path for run in members] for members in groups]), differ
    for write in (format_setting, _exactly):  # the short form has six digits
        labels = [
            " ".join(write(name, each[name]) for name in differ if name in each) or "default" for each in settings
        ]
        if len(set(labels)) == len(labels):
            return labels, []
    return folder_labels([[run.path for run in members] for members in groups]), []


def _exactly(name: str, value: Any) -> str:
    """A setting with all digits of its value."""
    return f"{flag_name(name)}={value!r}"


def folder_labels(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Name every group by what the names of its folders have in common; by more of the path where that is not unique.

    ppo_s1, ppo_s2 -> ppo; sweep/7/1, sweep/7/2 -> sweep/7.
    """
    for make in (_common_name, _common_path, lambda folders: str(folders[0])):
        labels = [make(folders) for folders in groups]
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    return [f"{number}: {folders[0]}" for number, folders in enumerate(groups, start=1)]


def _common_name(folders: Sequence[Path]) -> str:
    """What the names have in common, without the beginning of a seed; empty if that is nothing but a number."""
    names = [folder.resolve().name for folder in folders]
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    common = names[0] if len(names) == 1 else re.sub(r"[-_. ]+(seed|s)?[-_. =]*\d*$", "", first[:length])
    return "" if common.isdecimal() else common


def _common_path(folders: Sequence[Path]) -> str:
    """The folder that all are in and its parent, with the name of a single one."""
    paths = [folder.resolve() for folder in folders]
    place = paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))
    return "/".join(place.parts[-2:])


def given_labels(known: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Return label -> label of the user. Raises ValueError if the number or the names do not fit."""
    if len(labels) != len(known):
        groups = ", ".join(label or "all runs" for label in known)
        raise ValueError(
            f"labels: expected {len(known)}, one for each group in this order: {groups}; got {len(labels)}"
        )
    if len(set(labels)) < len(labels) or not all(labels):
        raise ValueError(f"labels {','.join(labels)}: every group needs a name of its own")
    return dict(zip(known, labels, strict=True))
