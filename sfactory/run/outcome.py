"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfactory.errors import Exit


@dataclass
class Outcome:
    """How a run ended: a word, the exit code, one sentence, and the checkpoint to resume from."""

    name: str
    code: int
    sentence: str
    checkpoint: str = ""
    env_steps: int = 0
    """Trained steps; in an environment with several agents, steps of agents."""
    environment_steps: int | None = None
    """Steps of the environments that belong to these; None where there is one agent."""
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
