"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sfactory.errors import Exit

if TYPE_CHECKING:
    from sfactory.run.curves import History

STOPPED = (Exit.INTERRUPTED, Exit.TERMINATED, Exit.REQUEUE)
"""Exit codes of runs that a signal has ended."""


@dataclass(repr=False)
class Outcome:
    """How a run ended: a word, the exit code, one sentence, and the checkpoint to resume from."""

    name: str
    code: int
    sentence: str
    checkpoint: str = ""
    env_steps: int = 0
    """Trained steps; in an environment with several agents, steps of agents."""
    environment_steps: int | None = None
    """Steps of the environments that belong to these; None where there is one agent, or if an earlier version did not
    count them."""
    training_return: float | None = None
    """None if it is not known."""
    run_dir: str = ""
    episodes: int = 0
    """Episodes that the training return is the mean of, at most 100."""
    resume_settings: dict[str, float] = field(default_factory=dict)
    """Settings that a resume must change to train on: every stop rule that was reached, raised."""
    rank: int = 0
    """Of the process that reports it, in a job of several learners."""

    @classmethod
    def of(cls, code: Exit, sentence: str) -> Outcome:
        """An outcome whose word belongs to its exit code."""
        return cls(code.outcome, int(code), sentence)

    def begin(self, sentence: str) -> None:
        """Give the sentence its beginning, unless it has one: until then it holds additions only, after a `;`."""
        if not self.sentence or self.sentence.startswith(";"):
            self.sentence = sentence + self.sentence

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the run: Ctrl-C, SIGTERM, or the scheduler's."""
        return self.code in STOPPED

    @property
    def saved(self) -> bool:
        """Whether nothing that was trained is lost: the newest checkpoint holds the last update."""
        return not self.env_steps or (bool(self.checkpoint) and int(Path(self.checkpoint).name) >= self.env_steps)

    @property
    def failed(self) -> bool:
        """Whether the run ended otherwise than by a stop rule, a callback, or a signal after which it was saved."""
        return self.code != Exit.FINISHED and not (self.stopped and self.saved)

    @property
    def history(self) -> History:
        """The metrics of the whole run so far, read from its folder at every access. ValueError if it is gone."""
        from sfactory.run.curves import read_history

        return read_history(Path(self.run_dir))

    def __repr__(self) -> str:
        score = "unknown" if self.training_return is None else f"{self.training_return:.4g} ({self.episodes} episodes)"
        return (
            f"<Outcome {self.name} (exit {self.code}): {self.sentence}; {self.env_steps:,} steps, training return "
            f"{score}, run_dir {self.run_dir!r}>"
        )
