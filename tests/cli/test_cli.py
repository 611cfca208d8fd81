"""Commands, their errors, their output and their exit codes."""

import errno
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from sfactory.cli import evaluate
from sfactory.cli import main as cli
from sfactory.cli.completion import command_parsers
from sfactory.cli.exit_line import exit_of
from sfactory.config.toml_file import from_toml
from sfactory.errors import CheckpointError, EnvError, Exit, RunBusy, SettingNote
from sfactory.tools.tune import with_settings

LAST = re.compile(r"sfactory: [a-z -]+ \(exit (\d+)\): .+")


def run(*words):
    """Exit code of the command, in this process."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    return left.value.code


@pytest.fixture
def supervisor(monkeypatch):
    """A supervisor that writes the settings and returns the outcome that the test sets."""
    from sfactory.config.toml_file import to_toml
    from sfactory.run.outcome import Outcome
    from sfactory.supervisor import train as real

    fake = SimpleNamespace(calls=[], error=None, outcome=("finished", 0, "a reason"))

    def train(config, run_dir, resume=False, ranks=None, callbacks=(), notes=()):
        fake.calls.append((config, run_dir, resume))
        fake.notes = notes
        if fake.error is not None:
            raise fake.error
        newest = Path(run_dir) / "checkpoints" / "000000001000"
        newest.mkdir(parents=True, exist_ok=True)
        (Path(run_dir) / "config.toml").write_text(to_toml(config))
        settings = {"stop.env_steps": 2000} if fake.outcome[1] == 0 else {}
        return Outcome(*fake.outcome, str(newest), 1234, resume_settings=settings)

    monkeypatch.setattr(real, "train", train)
    return fake


# -- errors


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("trian minatar/breakout", "trian: no such command; did you mean train?"),
        ("minatar/breakout", "did you mean sfactory train minatar/breakout?"),
        ("train", "no TARGET; name a preset"),
        ("train breakout", "breakout: no such preset; write minatar/breakout (tuned), or"),
        ("train minatar/breakot", "did you mean breakout?"),
        ("train minatar/breakout classic/cartpole", "expected one TARGET, got minatar/breakout classic/cartpole"),
        ("train minatar/breakout --optim.lrr 1", "optim.lrr: no such setting; did you mean optim.lr?"),
        ("train minatar/breakout --optim.lr 1e-3x", "optim.lr: '1e-3x' is not a number"),
        ("train minatar/breakout --trace.estimator vtrce", "did you mean vtrace?"),
        ("train minatar/breakout --stop.env-steps", "stop.env-steps: a value is missing"),
        ("train minatar/breakout --batch.minibatches 7", "must divide into 7 minibatches; try"),
        ("train minatar/breakout --config absent.toml", "absent.toml: cannot be read (No such file or directory)"),
        ("train minatar/breakout --env.settings.stick 0.1", "no such setting"),
        ("train gymnasium/CartPol-v1", "CartPole-v1"),
        ("train minatar/breakout --print-confg", "print-confg: no such setting; did you mean print-config?"),
        ("train minatar/breakout --log.wandb", "pip install 'sfactory[wandb]'"),
        ("resume runs/absent", "runs/absent does not exist"),
        ("eval runs/absent", "runs/absent does not exist"),
        ("eval runs/absent --episodes many", "episodes: 'many' is not a number"),
        ("eval runs/absent --optim.lr 1", "optim.lr: eval plays with the settings of the run"),
        ("eval runs/absent --epsodes 3", "--epsodes: no such option; did you mean --episodes?; see --help"),
        ("eval runs/absent --games 3", "--games: no such option; eval plays with the settings of the run; see --help"),
        ("presets minatar atari", "expected one WORD, got minatar atari"),
        ("presets --json", "--json: no such option; presets takes no settings; see --help"),
        ("verify-resume classic/cartpole --run.seed 3", "run.seed: verify-resume sets it itself; use --seed"),
        ("verify-resume classic/cartpole --stop.env-steps 5k", "stop.env-steps: verify-resume sets it itself; use --"),
        ("verify-resume classic/cartpole --run.mode async", "run.mode: verify-resume sets it itself; both runs are in"),
        ("bench classic/cartpole --steps 5k", "stop.env-steps: bench sets it itself; use --seconds"),
        ("bench classic/cartpole --eval.every 5k", "eval.every: bench sets it itself; the measured run is not"),
        ("profile classic/cartpole --name a", "run.dir: profile sets it itself; the measured run is in a temporary"),
        ("profile classic/cartpole -o absent/trace.json", "absent/trace.json: the folder absent does not exist"),
        ("bench classic/cartpole --write absent/best.toml", "absent/best.toml: the folder absent does not exist"),
    ],
)
def test_command_line_reports_a_mistake_in_one_line_and_writes_nothing(typed, tmp_path, monkeypatch, words, answer):
    real = importlib.util.find_spec  # wandb counts as missing, installed or not
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: real(name, *rest) if name != "wandb" else None)
    code, out, line = typed(*words.split())
    assert code == 2
    assert answer in line
    assert LAST.fullmatch(line)[1] == "2"
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_eval_shows_the_video_of_a_checkpoint_in_the_tensorboard_of_its_run(tmp_path, monkeypatch):
    (path := tmp_path / "run/checkpoints/000000000100").mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    shown = []
    monkeypatch.setattr("sfactory.play.video_event.show_videos", lambda run, files, steps: shown.append((run, files)))
    result = SimpleNamespace(videos=[SimpleNamespace(file="out.mp4")], env_steps=100)
    for word in (path, tmp_path / "run"):
        evaluate._show_videos(str(word), result)
    assert shown == [(tmp_path / "run", [Path("out.mp4")])] * 2


def test_train_refuses_an_existing_folder_and_names_the_resume_command(typed, supervisor, tmp_path):
    (tmp_path / "runs/a b").mkdir(parents=True)
    code, _, line = typed("train", "minatar/breakout", "--run.dir", "runs/a b")
    assert code == 2
    assert "exists already" in line
    (tmp_path / "runs/a b/config.toml").write_text("")
    code, _, line = typed("train", "minatar/breakout", "--run.dir", "runs/a b")
    assert code == 2
    assert "resume it: sfactory resume 'runs/a b'" in line
    assert supervisor.calls == []


def test_train_with_requeue_resumes_or_restarts_a_run_without_a_checkpoint(typed, supervisor):
    words = ("train", "minatar/breakout", "--run.dir", "runs/a", "--run.requeue")
    assert typed(*words)[0] == 0
    Path("runs/a/checkpoints/000000001000").rmdir()  # preempted before there was one
    assert typed(*words)[0] == 0
    assert typed(*words)[0] == 0
    assert [again for _, _, again in supervisor.calls] == [False, False, True]
    Path("runs/a/checkpoints/000000001000").rmdir()
    Path("runs/a/corrupt/000000001000").mkdir(parents=True)
    assert typed(*words)[0] == 5, "a run with damaged checkpoints is not restarted silently"


def test_train_with_requeue_keeps_the_split_that_auto_found_at_first(typed, supervisor, monkeypatch):
    found = {"sampling.num_samplers": 2, "sampling.groups_per_sampler": 1, "run.learner_threads": 3}
    monkeypatch.setattr("sfactory.tools.tune.tuned", lambda config, say: with_settings(config, found))
    words = ("train", "minatar/breakout", "--run.dir", "runs/a", "--run.requeue", "--sampling.auto")
    assert typed(*words)[0] == typed(*words)[0] == 0
    (first, _, _), (second, _, again) = supervisor.calls
    assert again
    assert second.sampling == first.sampling
    assert second.run.learner_threads == 3


def test_train_with_a_run_as_target_suggests_resume(typed, supervisor):
    typed("train", "minatar/breakout", "--run.dir", "runs/a")
    _, _, line = typed("train", "runs/a")
    assert "sfactory resume runs/a" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval runs/a --json=1", "--json: takes no value"),
        ("eval runs/a --seed", "seed: a value is missing"),
        ("eval runs/a --seed -1", "--seed: must be at least 0, got -1"),
        ("eval runs/a --episodes 1.5", "--episodes: 1.5 is not a whole number"),
        ("eval runs/a runs/b", "expected one runs/NAME, got runs/a runs/b"),
        ("eval runs/a --video-episodes 2", "add --video FILE.mp4"),
        ("bench minatar/breakout --seconds 1", "--seconds: must be at least 2, got 1"),
        ("profile minatar/breakout --seconds 601", "--seconds must be more than 0 and at most 600, got 601"),
        ("compare runs/a --by step", "--by: 'step' is not one of env_steps, seconds; did you mean env_steps?"),
        ("compare", "expected RUNS, got none"),
        ("export runs/a", "export needs a file: sfactory export runs/a -o policy.onnx"),
        ("export runs/a --optim.lr 1", "optim.lr: export takes no settings"),
        ("watch runs/a --optim.lrr 1", "optim.lrr: no such setting; did you mean optim.lr?"),
        ("sweep minatar/breakout --jobs 0", "--jobs: must be at least 1, got 0"),
        ("doctor now", "now: this command takes no arguments"),
    ],
)
def test_options_of_a_command_are_checked(typed, words, message):
    code, out, line = typed(*words.split())
    assert (code, out) == (2, "")
    assert message in line
    assert LAST.fullmatch(line)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("T --optim.lr -1 --model.hidden 32 16", {"optim.lr": "-1", "model.hidden": ["32", "16"]}),
        ("--model.hidden 32 16 T", {"model.hidden": ["32", "16"]}),
        ("--model.hidden=32,16 T", {"model.hidden": ["32", "16"]}),
        ("--normalize.obs T --normalize.no-reward", {"normalize.obs": "true", "normalize.reward": False}),
        ("--optim.lr 1 T --optim.lr=2", {"optim.lr": "2"}),
        ("--stop.env_steps 50k --json T", {"stop.env_steps": "50k"}),
        ("--env.settings.a-b 0.5 T --env.settings.c=text", {"env.settings.a_b": 0.5, "env.settings.c": "text"}),
    ],
)
def test_settings_are_parsed_in_every_form_and_order(words, settings):
    options = cli.parse(["train", *words.split()])
    assert options.word == "T"
    assert {name: given.value for name, given in options.settings.items()} == settings


def test_main_prints_notes_about_renamed_settings(typed, monkeypatch, capsys):
    def run(options):
        warnings.warn("batch.epochs is now batch.epochs", SettingNote, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "parse", lambda args: SimpleNamespace(run=run))
    assert typed("train", "x")[::2] == (0, "sfactory: note: batch.epochs is now batch.epochs")


# -- what train does


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("my_file:MyEnv", "my_file-MyEnv"),
        ("my_file.py:MyEnv", "my_file-MyEnv"),
        ("../sub/my_file.py:MyEnv", "my_file-MyEnv"),
        ("/abs/my_file.py:MyEnv", "my_file-MyEnv"),
        ("pkg.mod:factory", "pkg.mod-factory"),
        ("my_file:A,my_file:B", "my_file-A-and-1-more"),
        ("gymnasium/my_file:Mine-v0", "gymnasium-my_file-Mine-v0"),
        ("gymnasium/ale_py:ALE/Pong-v5", "gymnasium-ale_py-ALE-Pong-v5"),
        ("my_file:" + "x" * 300, "my_file-" + "x" * 52),
    ],
)
def test_train_names_the_folder_without_separators(typed, supervisor, target, name):
    assert typed("train", target)[0] == 0
    ((config, run_dir, _),) = supervisor.calls
    assert re.fullmatch(rf"runs/{name}_s1_\d{{8}}-\d{{6}}", str(run_dir))
    assert config.env.name == target


def test_train_says_where_the_settings_of_code_come_from_if_the_code_exists(typed, supervisor):
    typed("train", "my_file:MyEnv")
    (note,) = supervisor.notes
    assert note.startswith("settings: those of gymnasium/*, because there is no preset for my_file:MyEnv")
    typed("train", "classic/cartpole")
    assert not supervisor.notes


@pytest.mark.usefixtures("forked")
def test_train_says_nothing_of_the_settings_of_code_that_does_not_exist(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["train", "my_file_that_is_not_there:MyEnv"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "no module my_file_that_is_not_there" in line


@pytest.mark.parametrize(
    "words",
    [
        "train minatar/breakout --config=~/my.toml", "sweep minatar/breakout --config ~/my.toml --dir=~/my.toml",
        "info ~/my.toml", "compare ~/my.toml", "report runs/a -o ~/my.toml", "export runs/a --out=~/my.toml",
        "doctor --dir=~/my.toml", "eval runs/a --video=~/my.toml", "profile minatar/breakout -o ~/my.toml",
        "bench minatar/breakout --write=~/my.toml", "train ~/my.toml",
    ],
)  # fmt: skip
def test_paths_on_the_command_line_begin_at_the_home_folder(monkeypatch, words):
    monkeypatch.setenv("HOME", "/home/me")
    found = str(vars(cli.parse(words.split())))
    assert "~" not in found
    assert "/home/me/my.toml" in found


@pytest.mark.parametrize("run_dir", ["x" * 300, "runs/" + "x" * 300])
def test_train_refuses_a_folder_whose_name_is_too_long(typed, supervisor, run_dir):
    code, _, line = typed("train", "minatar/breakout", "--run.dir", run_dir)
    assert code == 2
    assert "a name of more than 255 bytes" in line
    assert typed("train", "x" * 300)[0] == 2


def test_train_names_the_folder_after_preset_and_seed(typed, supervisor):
    assert typed("train", "minatar/breakout", "--run.seed", "7")[0] == 0
    ((config, run_dir, resume),) = supervisor.calls
    assert re.fullmatch(r"runs/minatar-breakout_s7_\d{8}-\d{6}", str(run_dir))
    assert not resume
    assert config.run.seed == 7
    typed("train", "minatar/breakout", "--run.seed", "7")
    assert supervisor.calls[1][1] != run_dir  # the same second, another folder


def test_train_prints_the_result_and_the_next_commands(typed, supervisor):
    code, out, line = typed("train", "minatar/breakout", "--run.dir", "runs/a")
    assert code == 0
    assert line == (
        "sfactory: finished (exit 0): a reason; last checkpoint "
        "runs/a/checkpoints/000000001000 at 1,000 steps; resume: sfactory resume runs/a --stop.env-steps 2000"
    )
    assert "sfactory resume" not in out, "one command, in the last line"
    assert "trained 1,234 steps of minatar/breakout" in out
    for command in ("sfactory eval runs/a", "tensorboard --logdir runs/a"):
        assert command in out


def test_train_json_is_the_only_output_on_stdout(typed, supervisor):
    _, out, _ = typed("train", "minatar/breakout", "--run.dir", "runs/a", "--json", "--quiet")
    assert json.loads(out)["env_steps"] == 1234
    assert json.loads(out)["run_dir"] == "runs/a"
    assert supervisor.calls[0][0].log.quiet


@pytest.mark.parametrize("code", sorted({*Exit} - {Exit.FINISHED}))
def test_train_exits_with_the_code_of_the_run(typed, supervisor, code):
    supervisor.outcome = (code.outcome, int(code), "the reason")
    got, out, line = typed("train", "minatar/breakout", "--run.dir", "runs/a")
    assert got == code
    assert LAST.match(line)[1] == str(int(code))
    assert "the reason; last checkpoint" in line
    assert out == ""


def _library_error():
    import numpy as np

    try:
        np.zeros(3) + np.zeros(4)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (EnvError("x/y could not be built: RuntimeError: no display", fault=True), 6, "no display"),
        (EnvError("unknown environment family 'x'"), 2, "unknown environment family"),
        (RunBusy("runs/a is in use by process 7"), 3, "process 7"),
        (CheckpointError("checkpoint 5 skipped: damaged"), 5, "damaged"),
        (OSError(28, "No space left on device"), 10, "No space left"),
        (OSError(24, "Too many open files"), 11, "Too many open files"),
        (MemoryError("arena of 9 GB"), 11, "9 GB"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 11, "no process or thread can be started"),
        (RuntimeError("can't start new thread"), 11, "no process or thread can be started"),
        (KeyError("losses/x"), 1, "KeyError: 'losses/x'"),
        (_library_error(), 1, "ValueError: operands could not be broadcast"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_main_maps_exceptions_to_exit_codes_and_sentences(typed, supervisor, error, code, message):
    supervisor.error = error
    got, _, line = typed("train", "minatar/breakout", "--run.dir", "runs/a")
    assert got == code
    assert message in line
    assert LAST.fullmatch(line)[1] == str(code)


INNER = {
    "the user's file": "raise ValueError('joint')",
    "the standard library": "import json; json.loads('{')",
    "an installed package": "import numpy; numpy.reshape(numpy.zeros(3), (2,))",
    "sfactory": "from sfactory.config.parsing import number; number('x')",
}


@pytest.mark.parametrize("inner", INNER)
def test_exit_line_names_the_place_in_the_users_own_code_where_an_environment_failed(tmp_path, inner):
    file = tmp_path / "my_sim.py"
    file.write_text(f"def build():\n    {INNER[inner]}\n")
    names = {"__name__": "my_sim"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with pytest.raises(ValueError) as caught:
        names["build"]()
    error = EnvError("x could not be built", fault=True)
    error.__cause__ = caught.value
    assert exit_of(error) == (Exit.ENVIRONMENT, f"x could not be built ({file}, line 2)")


def test_exit_line_names_no_place_without_code_of_the_user():
    error = EnvError("x could not be built", fault=True)
    error.__cause__ = KeyError("without a traceback")
    assert exit_of(error)[1] == "x could not be built"
    assert exit_of(EnvError("x is unknown"))[1] == "x is unknown"


def test_main_prints_a_traceback_for_bugs_only(supervisor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    supervisor.error = KeyError("x")
    run("train", "minatar/breakout")
    assert "Traceback" in capsys.readouterr().err
    run("train", "minatar/breakout", "--optim.lr", "x")
    assert capsys.readouterr().err.count("\n") == 1


# -- what resume does


@pytest.fixture
def trained(typed, supervisor):
    typed("train", "minatar/breakout", "--run.dir", "runs/a", "--optim.lr", "0.5", "--env.settings.difficulty", "1")
    supervisor.calls.clear()
    return typed


def test_resume_uses_the_settings_of_the_run_changed_by_flags(trained, supervisor):
    assert trained("resume", "runs/a")[0] == 0
    assert trained("resume", "runs/a", "--stop.env-steps", "50M", "--optim.lr", "0.25")[0] == 0
    (first, run_dir, again), (second, _, _) = supervisor.calls
    assert (str(run_dir), again) == ("runs/a", True)
    assert (first.optim.lr, first.env.settings) == (0.5, {"difficulty": 1})
    assert (second.optim.lr, second.stop.env_steps) == (0.25, 50_000_000)
    assert first.sampling == second.sampling


def test_resume_accepts_a_run_folder_that_was_renamed(trained, supervisor):
    Path("runs/a").rename("elsewhere")
    assert trained("resume", "elsewhere")[0] == 0
    assert str(supervisor.calls[0][1]) == "elsewhere"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--model.hidden", "32"), "model.hidden"),
        (("--env.name", "minatar/asterix"), "env.name"),
        (("--env.settings.difficulty", "2"), "env.settings"),
        (("--normalize.obs",), "normalize.obs"),
        (("--run.mode", "lockstep"), "run.mode"),
        (("--run.seed", "7"), "run.seed"),
        (("--run.dir", "runs/b"), "run.dir"),
        (("--run.init-from", "runs/b"), "run.init-from"),
        (("--sampling.auto",), "sampling.auto"),
    ],
)
def test_resume_refuses_and_lists_fixed_settings(trained, supervisor, flags, name):
    code, _, line = trained("resume", "runs/a", *flags)
    assert code == 4
    assert line.startswith(f"sfactory: resume refused (exit 4): {name} cannot change")
    assert supervisor.calls == []
    assert trained("resume", "runs/a", *flags, "--allow", name)[0] == 0


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        (("--stop.seconds", "9k", "--log.every-seconds", "1", "--run.learner-threads", "2"), ""),
        (("--sampling.slots-per-group", "3"), "warning: sampling.slots-per-group was 2 and is 3 from here on"),
        (("--batch.minibatches", "1"), "warning: batch.minibatches was"),
        (("--optim.lr", "1e-5"), "and is 1e-05 from here on; the curve mixes two settings"),
        (("--surrogate.clip", "0.3"), "warning: surrogate.clip was 0.1 and is 0.3 from here on"),
    ],
)
def test_resume_allows_other_changes_with_or_without_a_warning(trained, supervisor, capsys, flags, warning):
    assert run("resume", "runs/a", *flags) == 0
    err = capsys.readouterr().err
    assert (warning in err, "warning" in err) == (True, bool(warning))
    assert len(supervisor.calls) == 1


def test_resume_tells_a_number_of_samplers_that_another_machine_would_choose(typed, supervisor, monkeypatch, capsys):
    one = ("--sampling.num-samplers", "1", "--sampling.envs-per-group", "64")
    typed("train", "minatar/breakout", "--run.dir", "runs/a", *one)
    monkeypatch.setattr("sfactory.device.machine.cores", lambda: 16)
    capsys.readouterr()
    assert run("resume", "runs/a", "--sampling.num-samplers", "0") == 0
    assert "warning" not in capsys.readouterr().err, "the number of the run is kept"
    assert run("resume", "runs/a", "--sampling.num-samplers", "0", "--sampling.envs-per-group", "128") == 0
    told = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert told == ["sampling.num-samplers", "sampling.envs-per-group"]
    assert supervisor.calls[-1][0].sampling.num_samplers > 1


def test_resume_refuses_a_folder_without_a_usable_checkpoint(trained, supervisor):
    (Path("runs/a/checkpoints") / "000000001000").rmdir()
    code, _, line = trained("resume", "runs/a")
    assert (code, "holds no checkpoint" in line) == (2, True)
    Path("runs/a/corrupt/000000001000").mkdir(parents=True)
    assert trained("resume", "runs/a")[0] == 5
    code, _, line = trained("resume", "runs")
    assert code == 2
    assert line.endswith("runs holds no run (no config.toml); the newest run in it is runs/a")
    Path("elsewhere").mkdir()
    for command in ("resume", "report", "watch"):  # the same words
        _, _, line = trained(command, "elsewhere")
        assert line.endswith("elsewhere holds no run (no config.toml); the newest run here is runs/a")
    assert supervisor.calls == []


# -- what is printed


def test_print_config_prints_the_resolved_settings_and_starts_nothing(typed, supervisor, tmp_path):
    code, out, _ = typed("train", "minatar/breakout", "--optim.lr", "0.5", "--print-config")
    assert code == 0
    assert supervisor.calls == []
    (tmp_path / "resolved.toml").write_text(out)
    got = from_toml(tmp_path / "resolved.toml")
    assert (got.optim.lr, got.env.name, got.batch.epochs) == (0.5, "minatar/breakout", 4)
    again = typed("train", "--config", "resolved.toml", "--print-config")
    assert again[1] == out


@pytest.mark.parametrize("command", [[], *([command] for command in cli.COMMANDS)])
def test_help_fits_a_screen(typed, command):
    code, out, line = typed(*command, "--help")
    assert (code, line) == (0, "")
    assert 1 <= len(out.splitlines()) <= (29 if command else 12 + len(cli.COMMANDS))  # the list has a line per command
    assert max(len(row) for row in out.splitlines()) <= 102


def test_help_all_lists_every_setting(typed):
    from sfactory.config.parsing import field_types, flag_name

    code, out, _ = typed("train", "--help-all")
    assert code == 0
    missing = [name for name in field_types() if f"--{flag_name(name)}" not in out]
    assert missing == []


def test_settings_named_in_the_help_exist():
    from sfactory.config.parsing import field_types

    text = "".join(parser.format_help() for parser in command_parsers(cli.build_parser()).values())
    named = set(re.findall(r"--([a-z]+\.[a-z-]+)", text)) - {"section.field", "env.settings"}
    assert len(named) > 8
    assert {name.replace("-", "_") for name in named} <= set(field_types())


def test_presets_lists_name_environment_and_description(typed):
    code, out, _ = typed("presets")
    assert code == 0
    row = next(row for row in out.splitlines() if row.startswith("classic/pendulum"))
    assert "gymnasium/Pendulum-v1" in row
    assert "never terminates" in row
    assert "default" not in out


def test_envs_prints_how_to_install_a_family(typed, monkeypatch):
    before = next(row for row in typed("envs")[1].splitlines() if row.startswith("minatar"))
    assert "installed" in before
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "minatar" else real(name))
    out = typed("envs")[1]
    row = next(row for row in out.splitlines() if row.startswith("minatar"))
    assert "pip install 'sfactory[minatar]'" in row


# -- the console script


def script(*words, cwd):
    command = [str(Path(sys.executable).with_name("sfactory")), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_importing_the_command_loads_no_heavy_package():
    """Spawned samplers import the main module again, with everything it imports."""
    code = "import sys, sfactory.cli.main; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout
    for heavy in ("torch", "numpy", "gymnasium", "tyro", "msgspec", "pydantic", "shtab", "rich", "tensorboard"):
        assert f"'{heavy}'" not in loaded
    assert "'sfactory'" in loaded


def test_eval_refuses_a_run_without_a_checkpoint(tmp_path):
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/config.toml").write_text('[env]\nname = "gymnasium/CartPole-v1"\n')
    done = script("eval", "runs/a", cwd=tmp_path)
    assert done.returncode == 2
    assert "no checkpoint" in done.stderr.splitlines()[-1]


def test_closed_pipe_is_not_an_error(tmp_path):
    command = f"{Path(sys.executable).with_name('sfactory')} train --help-all | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
