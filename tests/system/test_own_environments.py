"""Real runs of environments in files of the user's own."""

import json
import subprocess
import sys

import pytest
from builders import MY_ENV
from run_helpers import SMALL, command

BASE = "import os\n" + MY_ENV
INDEXED = """
class Indexed(MyEnv):
    def __init__(self, folder, file, env_index):
        assert file == f"f{env_index}"
        self.file = os.path.join(folder, str(env_index))
        os.close(os.open(self.file, os.O_CREAT | os.O_EXCL))  # fails while another copy has this number
        with open(os.path.join(folder, "built"), "a") as log:
            log.write(f"{env_index}\\n")
    def step(self, action):
        if self.np_random.random() < 0.01:
            raise RuntimeError("broken")
        return super().step(action)
    def close(self):
        os.unlink(self.file)

gymnasium.register("Indexed-v0", entry_point=Indexed)
"""
TEXT = """
class WithText(MyEnv):
    observation_space = spaces.Dict(x=MyEnv.observation_space, text=spaces.Text(9))
    def reset(self, **options):
        obs, info = super().reset(**options)
        return {"x": obs, "text": "hello"}, info
    def step(self, action):
        obs, *rest = super().step(action)
        return {"x": obs, "text": "hello"}, *rest

def double(env, factor=1.0):
    return gymnasium.wrappers.TransformReward(env, lambda reward: factor * reward)
"""


def run(folder, *words, script=None):
    arguments = command(*words) if script is None else [sys.executable, *script]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_every_copy_that_is_alive_in_a_run_has_a_number_of_its_own(tmp_path):
    """24 training environments have 0 to 23, evaluations of the run 24 and up; replaced environments keep theirs."""
    (tmp_path / "own_envs.py").write_text(BASE + INDEXED)
    copies = tmp_path / "copies"
    copies.mkdir()
    settings = ["--env.settings.folder", copies, "--env.settings.file", "f{index}"]
    stop = ["--stop.env-steps", "6k", "--eval.every", "2k", "--eval.episodes", "3"]
    target = "gymnasium/own_envs:Indexed-v0"
    done = run(tmp_path, "train", target, "--run.dir", "run", *SMALL, *stop, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    built = [int(line) for line in (copies / "built").read_text().split()]
    assert set(range(24)) < set(built) <= set(range(27))
    assert {24, 25, 26} <= set(built)
    assert built[0] == 24  # the environment that shows the spaces
    assert len(built) > 40  # some were replaced
    faults = [json.loads(line).get("faults/total", 0) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert max(faults) > 5
    done = run(tmp_path, "eval", "run", "--episodes", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [int(line) for line in (copies / "built").read_text().split()][len(built) :][:3] == [56, 56, 57]


@pytest.mark.slow
def test_wrappers_and_drop_of_a_configuration_file_train_and_evaluate(tmp_path):
    (tmp_path / "own_envs.py").write_text(BASE + TEXT)
    (tmp_path / "own.toml").write_text(
        '[env]\nname = "own_envs:WithText"\nwrappers = "own_envs:double,TimeLimit"\ndrop = "text"\n'
        "[env.wrapper_settings.double]\nfactor = 2.0\n[env.wrapper_settings.TimeLimit]\nmax_episode_steps = 5\n"
    )
    done = run(tmp_path, "train", "--config", "own.toml", "--run.dir", "run", *SMALL, "--stop.env-steps", "2k")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert rows[-1]["charts/episodic_return"] == 10.0  # five steps worth 2
    done = run(tmp_path, "eval", "run", "--episodes", "3", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["mean"] == 10.0
    changed = run(tmp_path, "resume", "run", "--env.drop", "x", "--stop.env-steps", "4k")
    assert changed.returncode == 4
    assert "env.drop cannot change in the middle of a run" in changed.stderr


LATE = """
import gymnasium, sfactory, threading
from own_envs import MyEnv

if __name__ == "__main__":
    lock = threading.Lock()
    gymnasium.register("Late-v0", entry_point=lambda: lock and MyEnv())
    outcome = sfactory.train("gymnasium/Late-v0", stop={"env_steps": 3000}, run={"dir": "run"}, log={"quiet": True})
    print(outcome.code, outcome.sentence)
"""


@pytest.mark.parametrize("way", ["script", "notebook"])
def test_an_environment_that_workers_do_not_know_is_answered_with_what_to_do(tmp_path, way):
    """Registered below the guard of a script, or in a notebook, which has no file; it cannot be pickled."""
    (tmp_path / "own_envs.py").write_text(BASE)
    (tmp_path / "late.py").write_text(LATE)
    done = run(tmp_path, script=["late.py"] if way == "script" else ["-c", LATE])
    assert done.returncode == 1, done
    assert "EnvError: gymnasium/Late-v0 is registered in the main process only" in done.stderr
    assert (
        "register it in a file of its own, for example my_envs.py, and train gymnasium/my_envs:Late-v0" in done.stderr
    )
