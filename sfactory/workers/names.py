"""Names of the worker processes: the one place that writes and parses them.

The learner and the inference worker belong to a policy, samplers are numbered. The number of policy 0 is left out.
"""

from __future__ import annotations

from typing import NamedTuple

POLICY = 0
"""Number of the only policy of a run."""

LEARNER, INFERENCE, SAMPLER, EVALUATOR = "learner", "inference", "sampler", "evaluator"
"""Kinds of workers."""


class WorkerName(NamedTuple):
    """A parsed worker name. number: the policy of a learner or inference worker, the number of a sampler."""

    kind: str
    number: int


def _policy_worker(kind: str, policy: int) -> str:
    return f"{kind}-{policy}" if policy else kind


def learner_name(policy: int = POLICY) -> str:
    return _policy_worker(LEARNER, policy)


def inference_name(policy: int = POLICY) -> str:
    return _policy_worker(INFERENCE, policy)


def evaluator_name(policy: int = POLICY) -> str:
    return _policy_worker(EVALUATOR, policy)


def sampler_name(index: int) -> str:
    return f"{SAMPLER}-{index}"


def parse_worker(name: str) -> WorkerName:
    """``"sampler-3"`` -> ``("sampler", 3)``, ``"learner"`` -> ``("learner", 0)``. ValueError for any other name."""
    kind, dash, number = name.partition("-")
    numbered = number.isdecimal() if dash else kind != SAMPLER
    if kind not in (LEARNER, INFERENCE, SAMPLER, EVALUATOR) or not numbered:
        raise ValueError(f"{name!r} is not the name of a worker")
    return WorkerName(kind, int(number or 0))
