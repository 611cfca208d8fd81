"""`sfactory.train` with code of the user's own and with callbacks: real runs from a script, stdin, IPython, threads."""

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import gymnasium
import pytest
from forked_processes import ForkedCommand, run_forked
from gymnasium.wrappers import TimeLimit
from run_helpers import command

import sfactory
from sfactory.config.toml_file import from_toml
from sfactory.envs import EnvError
from sfactory.errors import CommandError, SettingError

TINY = {
    "sampling": {"num_samplers": 1, "envs_per_group": 4, "rollout_length": 16},
    "batch": {"minibatches": 1},
    "log": {"quiet": True, "every_updates": 1},
    "checkpoint": {"exact": False},
    "run": {"mode": "lockstep"},
    "stop": {"env_steps": 200},
}
ASYNC = {**TINY, "run": {"mode": "async"}, "stop": {"env_steps": 500}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_python(text, *words, stdin=None, timeout=110):
    """Run a script with Python; `words` instead of its file."""
    Path("my.py").write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, *(words or ["my.py"])], input=stdin, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


class Recorder(sfactory.Callback):
    def __init__(self):
        self.rows, self.checkpoints = [], []

    def on_row(self, run, row):
        self.rows.append(row)

    def on_checkpoint(self, run, path):
        assert path.is_dir()
        self.checkpoints.append(int(path.name))


# -- environments, wrappers and networks as objects --------------------------------------------------------------


@pytest.mark.usefixtures("forked")
def test_train_with_a_closure_wrappers_and_an_encoder_can_be_resumed_and_evaluated(folder, monkeypatch):
    from torch import nn

    limit = 7

    class Wide(nn.Module):
        def __init__(self, shape, *, hidden, activation):
            super().__init__()
            self.out_size, self.net = 32, nn.Sequential(nn.Linear(shape[0], 32), nn.ReLU())

        def forward(self, obs):
            return self.net(obs.float())

    recorder = Recorder()
    outcome = sfactory.train(
        lambda: gymnasium.make("CartPole-v1"),
        wrappers=[lambda env: TimeLimit(env, limit)],
        callbacks=recorder,
        **{**TINY, "model": {"encoder": Wide}, "run": {"mode": "lockstep", "dir": "runs/a"}},
    )
    config = from_toml(Path("runs/a/config.toml"))
    names = (config.env.name, config.env.options.wrappers[0], config.model.encoder)
    assert [name.rpartition("-")[0] for name in names] == [
        "cloudpickle:lambda",
        "cloudpickle:lambda",
        "cloudpickle:Wide",
    ]
    assert len(os.listdir("runs/a/code")) == 3
    steps, lengths = outcome.history["charts/episodic_length"]
    assert (lengths <= limit).all(), "the wrapper cuts episodes"
    assert steps[-1] == outcome.env_steps
    assert [row["env_steps"] for row in recorder.rows] == outcome.history.steps.tolist()
    assert recorder.checkpoints[-1] == outcome.env_steps

    monkeypatch.delenv("SFACTORY_PICKLES")  # as in another process
    monkeypatch.setattr("sfactory.pickled._made", set())
    assert sfactory.resume("runs/a", stop={"env_steps": 300}).env_steps >= 300
    assert sfactory.load_policy("runs/a").act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    done = run_forked(command("eval", "runs/a", "--episodes", "2", "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["mean"] <= limit

    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "somebody"))  # another user, who did not train it
    further = functools.partial(sfactory.resume, stop={"env_steps": 500})
    for refused in (sfactory.load_policy, further, sfactory.evaluate):
        with pytest.raises(CommandError, match=r"names code that would be run: .* this user has not trained it here"):
            refused("runs/a")
    assert sfactory.load_policy("runs/a", trust=True).act([0.0, 0.0, 0.0, 0.0]) in (0, 1)


STDIN = f"""
import gymnasium, sfactory
from gymnasium import spaces

class Guess(gymnasium.Env):
    observation_space, action_space = spaces.Box(0, 1, (2,)), spaces.Discrete(2)
    def __init__(self, rounds=3):
        self.rounds = rounds
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.rounds
        return self.observation_space.low, {{}}
    def step(self, action):
        self.left -= 1
        return self.observation_space.low, 1.0, self.left == 0, False, {{}}

TINY = {ASYNC!r}
outcome = sfactory.train(Guess, env={{"settings": {{"rounds": 5}}}}, **TINY)
print(outcome.name, outcome.training_return, outcome.run_dir.startswith("runs/Guess_s1_"))
gymnasium.register("Late-v0", entry_point=Guess, kwargs={{"rounds": 4}})
outcome = sfactory.train("gymnasium/Late-v0", **TINY)
print(outcome.name, outcome.training_return, sfactory.evaluate(outcome.run_dir, episodes=2).returns)
"""
EXPECTED = ["finished 5.0 True", "finished 4.0 (4.0, 4.0)"]


@pytest.mark.parametrize("how", ["ipython", "stdin", "script"])
def test_train_with_a_class_and_an_id_that_only_the_main_process_knows(how):
    """In asynchronous mode: samplers are processes of their own."""
    guarded = "if True:\n" if how != "script" else 'if __name__ == "__main__":\n'
    if how == "script":
        text, words, stdin = guarded + textwrap.indent(STDIN, "    "), (), None
    elif how == "stdin":
        text, words, stdin = "", ("-",), STDIN
    else:
        text, words, stdin = (
            "",
            ("-m", "IPython", "--no-banner", "--no-confirm-exit", "--colors=NoColor", "-c", STDIN),
            None,
        )
    assert in_python(text, *words, stdin=stdin).splitlines()[-2:] == EXPECTED


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_train_with_a_whole_network_of_ones_own_and_refuses_one_that_drops_out(folder):
    from torch import nn

    class Shared(nn.Module):
        def __init__(self, shapes, *, outputs, dropout=0.0):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(*shapes["obs"], 16), nn.Tanh(), nn.Dropout(dropout))
            self.heads = nn.Linear(16, outputs + 1)

        def forward(self, obs):
            out = self.heads(self.body(obs["obs"]))
            return out[:, :-1], out[:, -1]

    continuous = {**TINY, "normalize": {"obs": True}}
    outcome = sfactory.train("gymnasium/Pendulum-v1", **continuous, model={"network": Shared})
    policy = sfactory.load_policy(outcome.run_dir)
    assert {"trunk.network.body.0.weight", "log_std"} < set(policy.model.state_dict())
    start = sfactory.load_policy(f"{outcome.run_dir}/checkpoints/{0:012d}")
    moved = policy.model.trunk.network.heads.weight - start.model.trunk.network.heads.weight
    assert moved.abs().max() > 0, "it was trained"
    assert policy.act([1.0, 0.0, 0.0]).shape == (1,)
    log = Path(outcome.run_dir, "log.txt").read_text()
    assert "obs: 3 float32 -> cloudpickle:Shared-" in log
    assert sfactory.resume(outcome.run_dir, stop={"env_steps": 300}).code == 0
    with pytest.raises(ValueError, match=r"model.network cloudpickle:Shared-\w+ contains Dropout"):
        sfactory.train("gymnasium/CartPole-v1", **TINY, model={"network": functools.partial(Shared, dropout=0.5)})


def test_train_refuses_what_is_no_environment_before_anything_starts(folder):
    with pytest.raises(SettingError, match="every process builds its own; pass the class, or a function"):
        sfactory.train(gymnasium.make("CartPole-v1"))
    with pytest.raises(
        SettingError, match=r"expected a preset, FAMILY/ID, a Config, or a class or function .* got int"
    ):
        sfactory.train(3)
    with pytest.raises(EnvError, match=r"expected a gymnasium environment .* got an object of type dict"):
        sfactory.train(lambda: {}, **TINY)
    with pytest.raises(SettingError, match="given twice"):
        sfactory.train("classic/cartpole", wrappers=[], env={"wrappers": "TimeLimit"})
    assert list(folder.iterdir()) == []


def test_wrappers_of_gymnasium_keep_their_names():
    config = sfactory.make_config(
        "gymnasium/CartPole-v1", wrappers=[TimeLimit, "FlattenObservation", gymnasium.Wrapper]
    )
    assert config.env.options.wrappers == ("TimeLimit", "FlattenObservation", "gymnasium.core:Wrapper")


# -- runs that fail or are stopped -------------------------------------------------------------------------------


class Breaks(gymnasium.Wrapper):
    """Raises in every step."""

    def step(self, action):
        raise RuntimeError("broken for good")


@pytest.mark.usefixtures("forked")
def test_train_raises_run_failed_unless_it_is_told_not_to_check():
    broken = {**TINY, "env": {"fault_budget": 0.0}}
    with pytest.raises(sfactory.RunFailed) as raised:
        sfactory.train("gymnasium/CartPole-v1", wrappers=[lambda env: Breaks(env)], **broken)
    error = raised.value
    assert error.outcome.failed
    assert error.sentence == error.outcome.sentence
    assert "broken for good" in Path(error.log).read_text()
    assert Path(error.log).parent == Path(error.outcome.run_dir)
    outcome = sfactory.train("gymnasium/CartPole-v1", wrappers=[lambda env: Breaks(env)], check=False, **broken)
    assert (outcome.code, outcome.name) == (error.outcome.code, error.outcome.name)
    assert outcome.code != 0


INTERRUPTED = f"""
import sfactory

def report(run, row):
    print("row", flush=True)

if __name__ == "__main__":
    sections = {{**{ASYNC!r}, "stop": {{}}, "run": {{"dir": "run"}}}}
    outcome = sfactory.train("classic/cartpole", callbacks=report, **sections)
    print("returned", outcome.name, outcome.stopped, outcome.saved, flush=True)
"""


def test_train_returns_the_outcome_of_a_run_that_ctrl_c_has_stopped():
    Path("my.py").write_text(INTERRUPTED)
    process = ForkedCommand([sys.executable, "my.py"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "row\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "returned interrupted True True"
    assert process.returncode == 0
    assert json.loads(Path("run/status.json").read_text())["state"] == "interrupted"


# -- callbacks ---------------------------------------------------------------------------------------------------


class StopsAndSaves(Recorder):
    """Asks for a checkpoint with the first row, and stops the run with a later one."""

    def on_row(self, run, row):
        super().on_row(run, row)
        if len(self.rows) == 1:
            run.save()
        if any(self.checkpoints) or len(self.rows) > 500:  # one was saved besides that of the start
            run.stop("saved")


@pytest.mark.usefixtures("forked")
@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_callback_saves_and_stops_a_run(mode):
    callback = StopsAndSaves()
    sections = {**TINY, "run": {"mode": mode}, "stop": {}, "checkpoint": {"exact": False, "every_seconds": 1e9}}
    outcome = sfactory.train("classic/cartpole", callbacks=[callback], **sections)
    assert (outcome.name, outcome.code, outcome.sentence) == ("finished", 0, "stopped by a callback: saved")
    assert len(callback.rows) < 500
    assert callback.checkpoints[-1] == outcome.env_steps == int(Path(outcome.checkpoint).name)
    assert json.loads((Path(outcome.run_dir) / "status.json").read_text())["sentence"] == outcome.sentence


@pytest.mark.usefixtures("forked")
@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_callback_that_raises_ends_the_run_after_a_checkpoint(mode):
    class Wrong(sfactory.Callback):
        def on_row(self, run, row):
            if run.env_steps > 100:
                raise LookupError("a mistake of mine")

    sections = {**TINY, "run": {"mode": mode, "dir": "run"}, "stop": {}}
    with pytest.raises(
        sfactory.RunFailed, match=r"Wrong.on_row raised LookupError: a mistake of mine; see run/log.txt"
    ) as raised:
        sfactory.train("classic/cartpole", callbacks=Wrong(), **sections)
    assert isinstance(raised.value.__cause__, LookupError)
    outcome = raised.value.outcome
    assert outcome.saved
    assert outcome.env_steps > 100
    log = Path("run/log.txt").read_text()
    assert "Traceback" in log
    assert "in on_row" in log
    status = json.loads(Path("run/status.json").read_text())
    assert (status["state"], status["exit"]) == ("callback failed", 1)
    again = sfactory.resume("run", stop={"env_steps": outcome.env_steps + 64})
    assert again.env_steps > outcome.env_steps


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_callback_that_ends_the_program_does_so_after_a_checkpoint(error):
    def leave(run, row):
        if run.env_steps > 100:
            raise error

    sections = {**TINY, "run": {"mode": "lockstep", "dir": "run"}, "stop": {}}
    with pytest.raises(type(error)) as raised:
        sfactory.train("classic/cartpole", callbacks=leave, check=False, **sections)
    assert raised.value is error
    status = json.loads(Path("run/status.json").read_text())
    assert status["state"] == "callback failed"
    assert int(Path(status["checkpoint"]).name) == status["env_steps"] > 100


@pytest.mark.usefixtures("forked")
def test_callbacks_of_a_run_in_a_thread_are_called_there_and_stop_it():
    """No signal reaches such a run: a callback is the way to end it."""
    found, threads = [], set()
    wanted = threading.Event()

    def look(run, row):
        threads.add(threading.current_thread())
        if wanted.is_set():
            run.stop("wanted")

    def train():
        found.append(sfactory.train("classic/cartpole", callbacks=look, **{**TINY, "stop": {}}))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=train)
    thread.start()
    while not threads and thread.is_alive():
        time.sleep(0.02)
    assert signal.getsignal(signal.SIGINT) is before, "the handlers of the program stay"
    wanted.set()
    thread.join(60)
    assert threads == {thread}
    assert [outcome.sentence for outcome in found] == ["stopped by a callback: wanted"]


# -- compare and report ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_compare_and_report_are_the_commands_as_functions():
    sections = {**TINY, "stop": {"env_steps": 400}}
    runs = [sfactory.train("classic/cartpole", **{**sections, "run": {"mode": "lockstep", "seed": s}}) for s in (1, 2)]
    found = sfactory.compare("runs/*")
    done = subprocess.run(command("compare", *(run.run_dir for run in runs)), capture_output=True, text=True)
    assert done.stdout.startswith(str(found))
    assert found.as_dict()["panels"][0]["groups"][0]["runs"] == sorted(run.run_dir for run in runs)
    assert str(sfactory.compare([run.run_dir for run in runs], by="seconds")) != str(found)
    assert str(sfactory.compare("runs/*", labels="mine")) == str(sfactory.compare("runs/*", labels=["mine"]))
    with pytest.raises(ValueError, match="labels: expected 1, one for each group in this order: all runs; got 2"):
        sfactory.compare("runs/*", labels="ours, theirs")
    with pytest.raises(ValueError, match="no row of these runs has it"):
        sfactory.compare("runs/*", metric="eval/iqm")
    with pytest.raises(ValueError, match="by: expected one of env_steps, seconds"):
        sfactory.compare("runs/*", by="steps")
    page = sfactory.report(runs[0].run_dir)
    assert page == Path(runs[0].run_dir) / "report.html"
    other = sfactory.report(runs[0].run_dir, "page.html")
    assert other.read_text() == page.read_text()
    with pytest.raises(ValueError, match="the folder nowhere does not exist"):
        sfactory.report(runs[0].run_dir, "nowhere/page.html")
