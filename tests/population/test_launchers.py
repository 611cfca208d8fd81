"""Where runs are started: processes here, and what is refused. Clusters are in tests/system/test_launched_runs.py."""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from sfactory.errors import CommandError, SettingError
from sfactory.population import launchers, ray_tasks, side_by_side, slurm
from sfactory.population.commands import LOST, Command, Resources
from sfactory.population.launchers import LocalLauncher, require_launcher
from sfactory.population.side_by_side import Running, SideBySide
from sfactory.supervisor.output_file import OutputFile


def python(folder, text, **options):
    return Command("job", [sys.executable, "-c", text], folder / "out.txt", folder=str(folder), **options)


def code_of(handle):
    while (code := handle.poll()) is None:
        time.sleep(0.01)
    return code


def test_local_launcher_runs_a_command_with_its_output_folder_and_environment(tmp_path):
    text = "import os; print(os.environ['X'], os.getcwd(), flush=True); os._exit(7)"
    handle = LocalLauncher().submit(python(tmp_path, text, environment={"X": "12"}), Resources())
    assert code_of(handle) == 7
    assert (tmp_path / "out.txt").read_text() == f"12 {tmp_path}\n"


def test_local_handle_sends_signals_to_the_session_of_the_command(tmp_path):
    text = "import os, time; print(os.getsid(0) == os.getpid(), flush=True); time.sleep(60)"
    handle = LocalLauncher().submit(python(tmp_path, text), Resources())
    while not (tmp_path / "out.txt").read_text():
        time.sleep(0.01)
    handle.cancel(signal.SIGTERM)
    assert code_of(handle) == -signal.SIGTERM
    assert (tmp_path / "out.txt").read_text() == "True\n"
    handle.cancel(signal.SIGTERM)  # it has ended: nothing happens


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_require_launcher_names_the_extra_that_is_missing(monkeypatch, name, package):
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    with pytest.raises(
        CommandError, match=rf"needs {package}, which is not installed: pip install 'sfactory\[{name}\]'"
    ):
        require_launcher(name, [])
    assert require_launcher("local", []) == {}


def test_require_launcher_reads_options_of_slurm_only():
    assert require_launcher("slurm", ["partition=gpu", "timeout_min=600"]) == {"partition": "gpu", "timeout_min": "600"}
    with pytest.raises(SettingError, match="--slurm partition: expected NAME=VALUE"):
        require_launcher("slurm", ["partition"])
    with pytest.raises(CommandError, match="only --launcher slurm has such options"):
        require_launcher("ray", ["partition=gpu"])


def test_importing_sfactory_does_not_import_a_launcher_that_was_not_chosen():
    text = "import sys, sfactory.cli.main, sfactory.population.population as p; "
    text += "from sfactory.cli.args import opened_launcher; "
    text += "from pathlib import Path; from types import SimpleNamespace as N; "
    text += "options = N(launcher='local', jobs=1, cores=1, gpus=0, slurm=[]); "
    text += "opened_launcher(options, Path('.'), 1).__enter__(); "
    text += "sys.exit(bool({'ray', 'submitit', 'torch'} & set(sys.modules)))"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", text]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--launcher slurm: Could not detect .srun.*; to try it here: --slurm cluster=local"),
        ({"cluster": "local", "partitoin": "gpu"}, "--launcher slurm: Unknown argument 'partitoin'"),
        ({"cluster": "moon"}, "--launcher slurm: AutoExecutor doesn't know any executor named moon"),
        ({"cluster": "local", "timeout_min": "long"}, "--launcher slurm: Parameter .timeout_min. expected type"),
    ],
)
def test_slurm_launcher_refuses_what_submitit_does_not_know(tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=message) as caught:
        slurm.SlurmLauncher(tmp_path / "jobs", options)
    assert "\n" not in str(caught.value)
    assert ("to try it here" in str(caught.value)) == (not options)


class FakeRay:
    """What RayHandle uses of ray: `outcome` is the result of the task, or what `get` raises."""

    exceptions = SimpleNamespace(
        RayError=type("RayError", (Exception,), {}),
        TaskCancelledError=type("TaskCancelledError", (Exception,), {}),
        RayTaskError=type("RayTaskError", (Exception,), {"cause": PermissionError("no such folder there")}),
    )

    def __init__(self, outcome):
        self.outcome, self.cancelled = outcome, []

    def wait(self, tasks, timeout, fetch_local):
        return ([], tasks) if self.outcome is None else (tasks, [])

    def get(self, task):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self, task, force):
        self.cancelled.append(force)


def test_ray_handle_reports_a_dead_worker_as_lost():
    errors = FakeRay.exceptions
    assert ray_tasks.RayHandle(FakeRay(None), "t").poll() is None
    assert ray_tasks.RayHandle(FakeRay(75), "t").poll() == 75
    assert ray_tasks.RayHandle(FakeRay(errors.RayError()), "t").poll() == LOST
    assert ray_tasks.RayHandle(FakeRay(errors.TaskCancelledError()), "t").poll() == -signal.SIGTERM
    with pytest.raises(PermissionError, match="no such folder there"):
        ray_tasks.RayHandle(FakeRay(errors.RayTaskError()), "t").poll()


def test_ray_handle_interrupts_at_first_and_kills_at_last():
    ray = FakeRay(None)
    ray_tasks.RayHandle(ray, "t").cancel(signal.SIGINT)
    ray_tasks.RayHandle(ray, "t").cancel(signal.SIGKILL)
    assert ray.cancelled == [False, True]


def test_side_by_side_asks_again_for_jobs_that_are_not_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "POLL_S", 0.0)
    asked, order = [], []

    def ready(job):
        asked.append(job)
        return job != "late" or len(asked) > 8

    def start(job):
        order.append(job)
        return Running(job, SimpleNamespace(poll=lambda: 0), 0.0, OutputFile(tmp_path / "out.txt"))

    jobs = SideBySide(1, start, lambda running, code: None, ready)
    jobs.queue += ["late", "first", "second"]
    jobs.run()
    assert order == ["first", "second", "late"]


def job(tmp_path, done, result=None):
    """A job of submitit: its result is a file, which may come late."""
    pickle = tmp_path / "result.pkl"
    return SimpleNamespace(
        job_id="7", done=lambda: done, result=lambda: result, cancel=lambda check: None,
        paths=SimpleNamespace(result_pickle=pickle),
    )  # fmt: skip


def test_slurm_handle_reports_a_job_without_a_result_as_lost_after_a_while(tmp_path, monkeypatch):
    assert slurm.SlurmHandle(job(tmp_path, done=False)).poll() is None
    handle = slurm.SlurmHandle(job(tmp_path, done=True, result=75))
    assert handle.poll() is None, "the file may not be visible here yet"
    monkeypatch.setattr(slurm, "RESULT_S", 0.0)
    assert handle.poll() == LOST
    (tmp_path / "result.pkl").touch()
    assert handle.poll() == 75


def test_slurm_handle_does_not_wait_for_the_result_of_a_cancelled_job(tmp_path):
    handle = slurm.SlurmHandle(job(tmp_path, done=True))
    handle.cancel(signal.SIGINT)
    assert handle.poll() == LOST


@pytest.mark.parametrize("done", [False, True])
def test_slurm_launcher_uses_a_job_that_an_earlier_command_submitted_and_that_is_not_over(tmp_path, monkeypatch, done):
    launcher = slurm.SlurmLauncher(tmp_path, {"cluster": "local"})
    monkeypatch.setattr(
        launcher.executor._executor, "job_class", lambda folder, number: job(tmp_path, done), raising=False
    )
    submitted = []
    monkeypatch.setattr(launcher.executor, "submit", lambda *_: submitted.append(1) or job(tmp_path, False))
    (tmp_path / "job.job").write_text("5\n")
    launcher.submit(python(tmp_path, ""), Resources(2))
    assert submitted == ([1] if done else [])
    assert (tmp_path / "job.job").read_text() == ("7\n" if done else "5\n")
