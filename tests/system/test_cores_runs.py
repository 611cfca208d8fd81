"""A preset on the cores of this machine: the numbers of a run are printed, written down and kept."""

from forked_processes import run_forked
from run_helpers import command

from sfactory.config import parsing, presets
from sfactory.config.toml_file import from_toml
from sfactory.device.machine import cores
from sfactory.supervisor.cores import by_cores, summary


def test_preset_runs_with_the_processes_that_by_cores_settles(tmp_path):
    run = tmp_path / "run"

    def finished(*words):
        done = run_forked(command(*words), capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    expected = by_cores(parsing.build(*presets.target_layers("classic/cartpole"), {}), cores())
    line = summary(expected, cores())
    assert line in finished("train", "classic/cartpole", "--run.dir", run, "--stop.env-steps", 2000).splitlines()
    config = from_toml(run / "config.toml")
    assert config.sampling == expected.sampling
    assert config.run.inference_workers == expected.run.inference_workers >= 1
    assert line not in finished("resume", run, "--stop.env-steps", 4000, "--sampling.num-samplers", 0)
    assert from_toml(run / "config.toml").sampling == expected.sampling
