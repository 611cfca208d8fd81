"""Sweeps and populations on submitit's local executor, and on a Ray cluster of two workers on this machine."""

import json
import os
import signal
import subprocess

import psutil
import pytest
from run_helpers import command, wait_for

from sfactory.run.history import read_history
from sfactory.run.reader import read_status

SHORT = ["--stop.env-steps", "6k", "--run.mode", "lockstep", "--run.device", "cpu", "--checkpoint.every-seconds", "0.5"]
SWEEP = ["sweep", "classic/cartpole", "--seeds", "0..3", "--jobs", 2, "--cores", 1, "--dir", "s"]
LONG = [*SHORT, "--stop.env-steps", "60k"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def ray_cluster():
    """A head without cores, and two nodes with one core each: two runs fit."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    cluster.shutdown()


def start(folder, arguments, **environment):
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def require_finished(process, sentence):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert err.splitlines()[-1] == f"sfactory: finished (exit 0): {sentence}"
    return err


def states(folder):
    return [json.loads((folder / f"s/s{n}/status.json").read_text())["state"] for n in range(4)]


def tasks_named(name):
    """Processes of Ray's workers that run a task of this name, or of submitit's jobs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if words.startswith(f"ray::{name}"):
            found.append(process)
    return found


def test_sweep_of_four_runs_on_a_ray_cluster_of_two_workers(tmp_path, ray_cluster):
    process = start(tmp_path, [*SWEEP, "--launcher", "ray", *SHORT], RAY_ADDRESS=ray_cluster[0].address)
    require_finished(process, "4 of 4 runs finished")
    assert states(tmp_path) == ["finished"] * 4


def test_sweep_on_ray_starts_the_run_of_a_dead_worker_again(tmp_path, ray_cluster):
    process = start(tmp_path, [*SWEEP, "--launcher", "ray", *LONG], RAY_ADDRESS=ray_cluster[0].address)
    wait_for(lambda: any((tmp_path / "s/s1/checkpoints").glob("0*")), 90, process)
    (worker,) = tasks_named("s1")
    worker.kill()
    err = require_finished(process, "4 of 4 runs finished")
    assert "s1  lost at" in err
    assert states(tmp_path) == ["finished"] * 4
    assert "terminated (exit 143)" in (tmp_path / "s/s1/log.txt").read_text(), "it saved when its worker died"


def require_stopped(folder, process):
    """Ctrl-C: the command ends with 130, and so do both runs, with a checkpoint."""
    wait_for(lambda: all(any((folder / f"s/s{n}/checkpoints").glob("0*")) for n in (0, 1)), 90, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err[-3000:]
    wait_for(lambda: "running" not in [read_status(folder / f"s/s{n}").get("state") for n in (0, 1)])
    assert [read_status(folder / f"s/s{n}")["state"] for n in (0, 1)] == ["terminated"] * 2


def test_sweep_on_ray_stops_with_checkpoints_on_a_signal(tmp_path, ray_cluster):
    arguments = [*SWEEP, "--launcher", "ray", *LONG, "--stop.env-steps", "10M"]
    require_stopped(tmp_path, start(tmp_path, arguments, RAY_ADDRESS=ray_cluster[0].address))
    assert not tasks_named("s")


def test_pbt_on_a_ray_cluster_that_loses_a_node(tmp_path, ray_cluster):
    cluster, nodes = ray_cluster
    options = [
        "--members",
        2,
        "--jobs",
        2,
        "--cores",
        1,
        "--replace",
        0.5,
        "--period",
        "10k",
        "--start",
        0,
        "--launcher",
        "ray",
    ]
    process = start(tmp_path, ["pbt", "classic/cartpole", "--dir", "p", *options, *LONG], RAY_ADDRESS=cluster.address)
    wait_for(lambda: any((tmp_path / "p/m1/checkpoints").glob("0*")), 90, process)
    cluster.remove_node(nodes.pop())
    cluster.add_node(num_cpus=1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert "it is started again" in err
    assert [len(read_history(tmp_path / "p").of(member)) for member in (0, 1)] == [6, 6]


def test_sweep_on_ray_starts_a_cluster_here_if_none_is_named(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    arguments = command(*SWEEP, "--launcher", "ray", *SHORT)
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert states(tmp_path) == ["finished"] * 4


def test_sweep_on_ray_says_that_no_cluster_answers(tmp_path):
    process = start(tmp_path, [*SWEEP, "--launcher", "ray", *SHORT], RAY_ADDRESS="127.0.0.1:1")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "--launcher ray: no cluster at RAY_ADDRESS 127.0.0.1:1" in err.splitlines()[-1]


# -- submitit

LOCAL = ["--launcher", "slurm", "--slurm", "cluster=local"]


def test_sweep_of_four_runs_through_submitit(tmp_path):
    require_finished(start(tmp_path, [*SWEEP, *LOCAL, *SHORT]), "4 of 4 runs finished")
    assert states(tmp_path) == ["finished"] * 4


def job_process(folder, name):
    """The process of submitit that carries out a job."""
    job = (folder / f"s/jobs/{name}.job").read_text().strip()
    (task,) = psutil.Process(int(job)).children()
    return task


def test_sweep_through_submitit_goes_on_after_the_signal_before_the_time_limit(tmp_path):
    process = start(tmp_path, [*SWEEP, *LOCAL, *LONG])
    wait_for(lambda: any((tmp_path / "s/s1/checkpoints").glob("0*")), 90, process)
    first = (tmp_path / "s/jobs/s1.job").read_text()
    job_process(tmp_path, "s1").send_signal(signal.SIGUSR1)
    err = require_finished(process, "4 of 4 runs finished")
    assert "s1  stopped by the scheduler at" in err
    assert (tmp_path / "s/jobs/s1.job").read_text() != first, "another job"
    assert "requeue (exit 75)" in (tmp_path / "s/s1/log.txt").read_text()
    assert states(tmp_path) == ["finished"] * 4


def test_sweep_through_submitit_starts_the_run_of_a_dead_job_again(tmp_path):
    process = start(tmp_path, [*SWEEP, *LOCAL, *LONG])
    wait_for(lambda: any((tmp_path / "s/s0/checkpoints").glob("0*")), 90, process)
    job_process(tmp_path, "s0").kill()
    assert "s0  lost at" in require_finished(process, "4 of 4 runs finished")
    assert states(tmp_path) == ["finished"] * 4


def test_sweep_through_submitit_stops_with_checkpoints_on_a_signal(tmp_path):
    require_stopped(tmp_path, start(tmp_path, [*SWEEP, *LOCAL, *LONG, "--stop.env-steps", "10M"]))
