"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass

from sfactory.errors import Exit


@dataclass
class Outcome:
    """How a run ended: a word, the exit code, one sentence, and the checkpoint to resume from."""

    name: str
    code: int
    sentence: str
    checkpoint: str = ""
    env_steps: int = 0
    training_return: float | None = None
    run_dir: str = ""

    @classmethod
    def of(cls, code: Exit, sentence: str) -> Outcome:
        """An outcome whose word belongs to its exit code."""
        return cls(code.outcome, int(code), sentence)
