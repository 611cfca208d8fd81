"""Names of the worker processes: the one place that writes and parses them.

A learner and an evaluator have the number of their policy. Inference workers and samplers are numbered through; which
policy and which samplers an inference worker serves is in `RunSpec`. Number 0 is left out, except of samplers.
"""

from __future__ import annotations

from typing import NamedTuple

POLICY = 0
"""Number of the only policy of a run."""

LEARNER, INFERENCE, SAMPLER, EVALUATOR = "learner", "inference", "sampler", "evaluator"
"""Kinds of workers."""

ENVIRONMENTS = "environments"
"""Name of a process that plays for a command, or that reads the specs of a run before its workers start."""

LOCKSTEP = "lockstep"
"""Name of the process of a lockstep run; the workers in it have their own names."""


class WorkerName(NamedTuple):
    """A parsed worker name. number: the policy of a learner or evaluator, the worker's own number of the others."""

    kind: str
    number: int


def _numbered(kind: str, number: int) -> str:
    return f"{kind}-{number}" if number else kind


def learner_name(policy: int = POLICY) -> str:
    return _numbered(LEARNER, policy)


def inference_name(number: int = 0) -> str:
    return _numbered(INFERENCE, number)


def evaluator_name(policy: int = POLICY) -> str:
    return _numbered(EVALUATOR, policy)


def sampler_name(index: int) -> str:
    return f"{SAMPLER}-{index}"


def parse_worker(name: str) -> WorkerName:
    """``"sampler-3"`` -> ``("sampler", 3)``, ``"learner"`` -> ``("learner", 0)``. ValueError for any other name."""
    kind, dash, number = name.partition("-")
    numbered = number.isdecimal() if dash else kind != SAMPLER
    if kind not in (LEARNER, INFERENCE, SAMPLER, EVALUATOR) or not numbered:
        raise ValueError(f"{name!r} is not the name of a worker")
    return WorkerName(kind, int(number or 0))
