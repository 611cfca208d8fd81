"""Keep each worker on the cores of one NUMA node, on machines that have more than one.

Memory of another node is slower, and the kernel moves a process between nodes as it likes. A worker may use every core
of its node: on two cores, pinning to single cores was slower (benchmarks/LOG.md). Where this process may use the cores
of one node only, nothing is pinned. The evaluator is never pinned: it uses whatever is idle.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from sfactory.device.machine import numa_nodes
from sfactory.device.ranks import Ranks
from sfactory.supervisor.cores import worker_cores
from sfactory.workers.shared import RunSpec

Cores = frozenset[int]


def nodes_of_workers(run_spec: RunSpec, nodes: Sequence[Cores]) -> dict[str, int]:
    """Worker -> index in `nodes`. Empty unless there are several nodes.

    Workers are placed one after the other, the learner first, on the node with the most free cores. This depends on
    nothing else, so a restarted worker gets the same node.
    """
    if len(nodes) < 2:
        return {}
    free = [len(node) for node in nodes]
    placed = {}
    for name in run_spec.workers:
        placed[name] = free.index(max(free))
        free[placed[name]] -= worker_cores(run_spec.config, name, sum(map(len, nodes)))
    return placed


def pin(name: str, run_spec: RunSpec, nodes: Sequence[Cores]) -> None:
    """Restrict this process, and the threads and children it starts from now on, to the cores of its node."""
    node = nodes_of_workers(run_spec, nodes).get(name)
    if node is not None:
        with contextlib.suppress(OSError):  # the allowed cores changed in between
            os.sched_setaffinity(0, nodes[node])


def keep_to_nodes(ranks: Ranks) -> None:
    """Restrict this process and its children to its share of the NUMA nodes, where the machine has several ranks."""
    nodes = numa_nodes()
    if ranks.local_world_size > 1 and len(nodes) > 1:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, frozenset().union(*ranks.nodes(nodes)))


def placement(run_spec: RunSpec, nodes: Sequence[Cores]) -> str:
    """One line about the nodes of all workers; empty if nothing is pinned."""
    placed = nodes_of_workers(run_spec, nodes)
    parts = [
        f"node {index} ({len(node)} cores): {', '.join(name for name, its in placed.items() if its == index) or 'none'}"
        for index, node in enumerate(nodes)
    ]
    return "; ".join(parts) if placed else ""
