"""Weights & Biases: one run there for each run folder, whose charts are over env_steps.

Rows that were sent cannot be removed. wandb can rewind a run (`resume_from`) or fork it only online and on servers that
offer this as a preview, and loses its log then; offline it ignores both. Its own step must increase, or rows are
ignored. So a row that repeats steps, after a resume from an older checkpoint, gets the next step of wandb, and the
charts have both rows at their env_steps.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sfactory.config import Config, Log, to_dict
from sfactory.files import is_file, read_text, replace_text
from sfactory.monitor.rows import read_rows
from sfactory.monitor.table import GROUPS

LONGEST_ID = 1024
"""Bytes of the file with the run's id, and of that with its last step."""


def check_wandb(config: Config) -> None:
    """ValueError if log.wandb is set and wandb is not installed."""
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError("log.wandb needs a package that is not installed: pip install 'sfactory[wandb]'")


class SentRows(NamedTuple):
    """What earlier launches have sent."""

    number: int = 0
    """Rows in metrics.jsonl."""
    last: int = -1
    """Their last env_steps."""

    @classmethod
    def of(cls, run_dir: Path) -> SentRows:
        """Read metrics.jsonl; call it before later rows are dropped from it."""
        steps = [int(row["env_steps"]) for row in read_rows(run_dir)]
        return cls(len(steps), max(steps, default=-1))


class WandbOutput:
    """The rows of one launch at Weights & Biases."""

    def __init__(self, run_dir: Path, config: Config, new: bool, sent: SentRows) -> None:
        """new: a run without earlier launches. sent: by the earlier launches."""
        import wandb

        self._run: Any = wandb.init(
            **wandb_arguments(config.log, run_dir),
            id=wandb_id(run_dir, new),
            dir=run_dir,
            config=to_dict(config),
            resume="allow",
            settings={"console": "off", "silent": config.log.quiet},  # log.txt has the same lines
        )
        # Every group by name: wandb does not say which of several patterns wins.
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric="eval/env_steps" if group == "eval" else "env_steps")
        # A server says its next step; offline the rows that were sent are the measure.
        self._step = max(_last_step(run_dir, new, sent), self._run.starting_step - 1)
        self._sent = sent

    def kept_rows(self, resume_env_steps: int) -> str:
        """One line about rows that were dropped elsewhere and stay here; empty if there are none."""
        if self._sent.last <= resume_env_steps or self._run.disabled:
            return ""
        return (
            f"Weights & Biases cannot remove rows: those from step {resume_env_steps + 1:,} to {self._sent.last:,} "
            "that were sent before stay there, beside the new rows of these steps"
        )

    def row(self, env_steps: int, seconds: float, values: Mapping[str, float]) -> None:
        """Send one row."""
        self._step = max(env_steps, self._step + 1)
        self._run.log({**values, "env_steps": env_steps, "seconds": seconds}, step=self._step)

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


def wandb_id(run_dir: Path, new: bool) -> str:
    """Id of the run at Weights & Biases, kept in the run folder: the same after a resume or a move of the folder.

    A new run gets a random part: Weights & Biases would append it to an existing run of the same id.
    """
    file = run_dir / "wandb" / "id"
    if not new and is_file(file):
        return read_text(file, LONGEST_ID).strip()
    name = "".join(c if c.isalnum() else "-" for c in run_dir.resolve().name)
    if new:
        name = f"{name[:80]}-{secrets.token_hex(4)}"
    file.parent.mkdir(exist_ok=True)
    replace_text(file, name + "\n")
    return name


def _last_step(run_dir: Path, new: bool, sent: SentRows) -> int:
    """The highest step of wandb that earlier launches can have used; kept in the run folder for the next launch.

    In each of them a row has its env_steps, or one more than the row before it.
    """
    if new:
        last = -1
    else:
        file = run_dir / "wandb" / "last_step"
        text = read_text(file, LONGEST_ID).strip() if is_file(file) else ""
        before = int(text) if text.lstrip("-").isdecimal() else -1
        last = max(sent.last, before + sent.number)
    replace_text(run_dir / "wandb" / "last_step", f"{last}\n")
    return last


def wandb_arguments(log: Log, run_dir: Path) -> dict[str, Any]:
    """Arguments of `wandb.init` that a user chooses. An environment variable that decides is left to wandb."""
    tags = [tag.strip() for tag in log.wandb_tags.split(",") if tag.strip()]
    choices: tuple[tuple[str, str, Any, Any], ...] = (
        ("project", "WANDB_PROJECT", log.wandb_project, "sfactory"),
        ("name", "WANDB_NAME", log.wandb_name, run_dir.resolve().name),
        ("group", "WANDB_RUN_GROUP", log.wandb_group, None),
        ("tags", "WANDB_TAGS", tags, None),
        ("mode", "WANDB_MODE", "" if log.wandb_mode == "auto" else log.wandb_mode, None),
    )
    wanted = {
        name: value or (None if os.environ.get(variable) else default) for name, variable, value, default in choices
    }
    return {name: value for name, value in wanted.items() if value is not None}
