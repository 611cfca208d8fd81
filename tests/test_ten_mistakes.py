"""Ten common mistakes on the command line: exit code and error message of each.

The folder contains the runs a (finished), b (no checkpoint yet) and damaged. No command may write or start anything.
"""

import importlib.util

import pytest

from sfactory.errors import Exit
from sfactory.supervisor import train as training

USAGE, REFUSED, DAMAGED, BUSY = Exit.USAGE, Exit.RESUME_REFUSED, Exit.NO_USABLE_CHECKPOINT, Exit.BUSY

MISTAKES = [
    # 1: the command
    ("tran minatar/breakout", USAGE, "tran: no such command; did you mean train?"),
    ("breakout", USAGE, "breakout: no such command; did you mean sfactory train minatar/breakout?"),
    ("minatar/breakot", USAGE, "did you mean sfactory train minatar/breakout?"),
    ("atari/breakout", USAGE, "did you mean sfactory train atari/breakout?"),
    ("runs/a", USAGE, "did you mean sfactory resume runs/a?"),
    ("--optim.lr 1e-3 train minatar/breakout", USAGE, "--optim.lr: no such command; the command comes first"),
    # 2: the target
    ("train", USAGE, "no TARGET; name a preset"),
    ("train breakout", USAGE, "breakout: no such preset; write minatar/breakout (tuned), or"),
    ("train pong", USAGE, "pong: no such preset; write atari/pong (tuned)"),
    ("train CartPole-v1", USAGE, "write classic/cartpole (tuned), or gymnasium/CartPole-v1"),
    ("train Minatar/breakout", USAGE, "Minatar/breakout: no such preset; write minatar/breakout"),
    ("train classic/cartpol", USAGE, "did you mean classic/cartpole?"),
    ("train minatar/brekout", USAGE, "minatar has no game 'brekout'; did you mean breakout?"),
    ("train minatar/pong", USAGE, "there are asterix, breakout, freeway, seaquest, space_invaders"),
    ("train gymnasium/CartPole-v9", USAGE, "CartPole-v1"),
    # 3: the name of a setting
    ("train minatar/breakout --learning-rate 1e-3", USAGE, "learning-rate: no such setting; here optim.lr"),
    ("train minatar/breakout --n-steps 5", USAGE, "n-steps: no such setting; here sampling.rollout-length"),
    ("train minatar/breakout --learning.minibatch 4", USAGE, "did you mean batch.minibatches?"),
    ("train minatar/breakout lr=1e-3", USAGE, "did you mean --optim.lr 1e-3?"),
    ("train minatar/breakout --env.settings.stickyness 0", USAGE, "no such setting"),
    # 4: the value of a setting
    ("train minatar/breakout --optim.lr fast", USAGE, "optim.lr: 'fast' is not a number; write for example 2.5e-4"),
    ("train minatar/breakout --stop.env-steps 1.5", USAGE, "stop.env-steps: 1.5 is not a whole number"),
    ("train minatar/breakout --stop.env-steps", USAGE, "stop.env-steps: a value is missing"),
    ("train minatar/breakout --model.core grru", USAGE, "'grru' is not one of none, gru, lstm; did you mean gru?"),
    ("train minatar/breakout --sampling.num-samplers -1", USAGE, "it must be between 0 and 4096"),
    # 5: settings that do not go together
    ("train minatar/breakout --batch.minibatches 7", USAGE, "must divide into 7 minibatches; try"),
    ("train minatar/breakout --batch.forced-lag 2", USAGE, "needs run.mode lockstep or sampling.slots-per-group 1"),
    ("train minatar/breakout --run.requeue", USAGE, "run.requeue needs run.dir"),
    ("train minatar/breakout --model.squash", USAGE, "model.squash is for continuous actions"),
    ("train memory/tmaze --model.core gru --model.separate", USAGE, "exclude each other"),
    # 6: what is not installed, or not there
    ("train atari/pong", USAGE, "pip install 'sfactory[atari]'"),
    ("train minatar/breakout --log.wandb", USAGE, "pip install 'sfactory[wandb]'"),
    ("train minatar/breakout --run.device cuda", USAGE, "run.device cuda: this machine shows no GPU; use cpu or auto"),
    ("train minatar/breakout --run.inference-device cuda:1", USAGE, "run.inference-device cuda:1: this machine shows"),
    ("train minatar/breakout --model.encoder my_net:Wide", USAGE, "no module my_net here"),
    # 7: files
    ("train minatar/breakout --config my.toml", USAGE, "my.toml: cannot be read (No such file or directory)"),
    ("train my.toml", USAGE, "a file is given as --config my.toml"),
    # 8: a folder that is there, or is not
    ("train minatar/breakout --run.dir runs/a", USAGE, "holds a run already; resume it: sfactory resume runs/a"),
    ("train runs/a", USAGE, "runs/a is a run; continue it: sfactory resume runs/a"),
    ("resume runs/c", USAGE, "runs/c does not exist; the newest run here is runs/"),
    ("resume minatar/breakout", USAGE, "minatar/breakout does not exist; the newest run here is runs/"),
    ("resume", USAGE, "expected one runs/NAME, got none"),
    ("resume runs/a/checkpoints/000000000600", USAGE, "is a checkpoint; its run is runs/a"),
    # 9: too early
    ("resume runs/b", USAGE, "runs/b holds no checkpoint yet"),
    ("eval runs/b", USAGE, "runs/b holds no checkpoint yet"),
    ("export runs/b -o policy.pt2", USAGE, "runs/b holds no checkpoint yet"),
    # 10: another run than the one that was begun, and evaluating under other settings
    ("resume runs/a --model.hidden 64", REFUSED, "model.hidden cannot change in the middle of a run"),
    ("resume runs/a --env.name minatar/asterix", REFUSED, "start a new run with `sfactory train`"),
    ("eval runs/a --optim.lr 1e-3", USAGE, "eval plays with the settings of the run"),
    ("eval runs/a --episodes 0", USAGE, "--episodes: must be at least 1, got 0"),
    ("resume runs/damaged", DAMAGED, "every checkpoint of runs/damaged is damaged"),
]


@pytest.fixture
def here(tmp_path, tmp_path_factory, monkeypatch):
    """Create the runs a, b and damaged on a machine without GPU, ale-py and wandb. No run may start."""
    for name in ("a", "b", "damaged"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").write_text('[env]\nname = "gymnasium/CartPole-v1"\n')
    saved = tmp_path / "runs/a/checkpoints/000000000600"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    (tmp_path / "runs/damaged/corrupt/000000000600").mkdir(parents=True)

    def hidden(real):
        return lambda name, *rest: None if name in ("wandb", "ale_py") else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden(importlib.util.find_spec))
    monkeypatch.setitem(__import__("sys").modules, "ale_py", None)
    monkeypatch.setitem(__import__("sys").modules, "sfactory_envs.atari", None)
    missing = tmp_path_factory.mktemp("missing")  # also in the process that builds the environment
    (missing / "ale_py.py").write_text("raise ModuleNotFoundError(\"No module named 'ale_py'\", name='ale_py')\n")
    monkeypatch.syspath_prepend(missing)
    monkeypatch.setattr("sfactory.supervisor.preflight.check_device.__defaults__", ((),))
    monkeypatch.setattr(training.RunRecorder, "open", lambda *args: pytest.fail("a run started"))
    return tmp_path


def _contents(folder):
    """All paths, with the times of files. A folder is made for the run and removed again, which its parent notes."""
    return {path: path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_ten_mistakes_are_reported_in_one_line_and_change_no_file(typed, here, capsys, words, code, message):
    before = _contents(here)
    got, out, line = typed(*words.split())
    assert message in line
    assert got == code
    assert line.startswith(f"sfactory: {code.outcome} (exit {int(code)}): ")
    assert out == ""
    assert _contents(here) == before
