"""Which NUMA node each worker runs on, with folders in place of the kernel's description of the machine."""

import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

from sfactory.config import Config, Env, Run, Sampling
from sfactory.device.machine import numa_nodes
from sfactory.envs import make_spec
from sfactory.supervisor.affinity import nodes_of_workers, pin, placement
from sfactory.supervisor.cores import LEARNER_THREADS
from sfactory.workers.names import inference_name, learner_name, sampler_name
from sfactory.workers.shared import RunSpec


def run_spec_of(samplers, inference=1):
    config = Config(
        env=Env("gymnasium/CartPole-v1"),
        run=Run(device="cpu", inference_workers=inference),
        sampling=Sampling(samplers, 2, 4),
    )
    return RunSpec(config, make_spec(config.env.name), "", 0)


def nodes_of(sizes):
    """Nodes of consecutive cores."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [frozenset(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def machine(folder, *cpulists):
    """A folder like /sys/devices/system/node."""
    for number, cpulist in enumerate(cpulists):
        (folder / f"node{number}").mkdir()
        (folder / f"node{number}" / "cpulist").write_text(f"{cpulist}\n")
    return folder


def test_nodes_of_workers_spreads_samplers_over_the_cores_that_are_left():
    run_spec = run_spec_of(samplers=11, inference=2)
    placed = nodes_of_workers(run_spec, nodes_of([8, 8]))
    assert list(placed) == list(run_spec.workers)
    assert (placed[learner_name()], placed[inference_name(0)], placed[inference_name(1)]) == (0, 1, 1)
    samplers = Counter(placed[sampler_name(index)] for index in range(11))
    assert LEARNER_THREADS + samplers[0] in (8, 9)
    assert 2 + samplers[1] in (8, 9)


def test_nodes_of_workers_uses_a_larger_node_more():
    placed = nodes_of_workers(run_spec_of(samplers=9), nodes_of([4, 12]))
    assert placed[learner_name()] == 1
    assert Counter(placed.values()) == {0: 3, 1: 8}


def test_nodes_of_workers_places_a_gpu_learner_as_one_core(monkeypatch):
    monkeypatch.setattr("sfactory.supervisor.cores.shows_gpu", lambda: True)
    run_spec = run_spec_of(samplers=2)
    run_spec = replace(run_spec, config=replace(run_spec.config, run=Run(device="cuda", inference_threads=8)))
    assert Counter(nodes_of_workers(run_spec, nodes_of([4, 4])).values()) == {0: 2, 1: 2}


def test_nothing_is_pinned_on_one_node():
    for nodes in ([], nodes_of([64])):
        assert nodes_of_workers(run_spec_of(4), nodes) == {}
        assert placement(run_spec_of(4), nodes) == ""


def test_placement_names_the_workers_of_every_node():
    text = "node 0 (4 cores): learner, sampler-0; node 1 (4 cores): inference, sampler-1"
    run_spec = run_spec_of(samplers=2)
    run_spec = replace(run_spec, config=replace(run_spec.config, run=Run(device="cpu", learner_threads=1)))
    assert placement(run_spec, nodes_of([4, 4])) == text


def affinity_after(name, nodes):
    """Allowed cores of a thread that calls `pin`; other threads keep theirs."""
    allowed = []

    def pinned():
        pin(name, run_spec_of(samplers=2), nodes)
        allowed.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=pinned)
    thread.start()
    thread.join()
    return allowed[0]


def test_pin_restricts_a_worker_to_the_cores_of_its_node(tmp_path):
    mine = sorted(os.sched_getaffinity(0))
    half = len(mine) // 2
    lists = [",".join(map(str, part)) for part in (mine[:half], mine[half:])]
    nodes = numa_nodes(machine(tmp_path, *lists))
    assert len(nodes) == 2, "this test needs two cores"
    placed = nodes_of_workers(run_spec_of(samplers=2), nodes)
    assert set(placed.values()) == {0, 1}
    for name, node in placed.items():
        assert affinity_after(name, nodes) == nodes[node]
    assert os.sched_getaffinity(0) == set(mine)


def test_pin_leaves_a_worker_alone_on_one_node_and_the_evaluator_always(tmp_path):
    mine = os.sched_getaffinity(0)
    assert affinity_after("sampler-0", [frozenset(mine)]) == mine
    assert affinity_after("evaluator", [frozenset({core}) for core in mine]) == mine


WORKER = """
import os
from queue import SimpleQueue
from sfactory.supervisor import run_worker as module
from sfactory.workers.shared import SharedState, StopOrder
from test_affinity import run_spec_of, two_nodes
module.numa_nodes = two_nodes
shared = SharedState.create(run_spec_of(samplers=1))
shared.supervisor.stop = StopOrder.NOW
args = module.WorkerArgs(shared.run_spec, SimpleQueue(), 0)
module.run_worker("sampler-0", module.fds_of_handles(shared.handles), args)
print(*os.sched_getaffinity(0))
"""


def two_nodes():
    """The first core of this process, and the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    return [frozenset({first}), frozenset(others)]


def test_run_worker_pins_the_process():
    done = subprocess.run(
        [sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    nodes = two_nodes()
    assert set(map(int, done.stdout.split())) == nodes[nodes_of_workers(run_spec_of(samplers=1), nodes)["sampler-0"]]


def test_pin_survives_cores_that_are_gone():
    assert affinity_after("learner", [frozenset({1023}), frozenset({1022})]) == os.sched_getaffinity(0)
