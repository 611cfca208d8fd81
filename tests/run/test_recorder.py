"""The recorder names the stop rule that was reached, and ends a run whose environments fail too often."""

import contextlib
import json
import shutil

import pytest

from sfactory.config import Config, Env, Log, Stop
from sfactory.device.ranks import ALONE, Ranks
from sfactory.envs import make_spec
from sfactory.errors import CommandError, Exit
from sfactory.learning.network import build_model
from sfactory.monitor import messages
from sfactory.monitor.episode_file import read_episodes
from sfactory.monitor.episodes import Episodes
from sfactory.monitor.rows import read_rows
from sfactory.run.checkpoint import Contents
from sfactory.run.checkpoint_writer import save
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.run.trust import read_record, record_run

pytestmark = pytest.mark.usefixtures("forked")

NAME = "gymnasium/CartPole-v1"


@pytest.fixture
def recorder(tmp_path):
    config = Config(env=Env(NAME), stop=Stop(env_steps=5000, target_return=0.95))
    with RunRecorder.open(config, tmp_path / "run", resume=False, specs=[make_spec(NAME)]) as recorder:
        yield recorder


@pytest.mark.parametrize("error", [None, CommandError(Exit.USAGE, "no")], ids=["in order", "refused"])
def test_recorder_closes_where_the_folder_of_checkpoints_became_a_file(tmp_path, error):
    """The run ended with a usage error in place of its outcome. Nothing is removed: it may have been trained."""
    config = Config(env=Env(NAME))
    with contextlib.suppress(CommandError):
        with RunRecorder.open(config, tmp_path / "run", resume=False, specs=[make_spec(NAME)]):
            shutil.rmtree(tmp_path / "run/checkpoints", ignore_errors=True)
            (tmp_path / "run/checkpoints").write_text("")
            if error is not None:
                raise error
    assert (tmp_path / "run/config.toml").is_file()


def add_episodes(recorder, *returns):
    recorder.handle((messages.EPISODES, "sampler-0", [(value, 1, 0) for value in returns]))


def end_at(recorder, env_steps, *returns):
    """What a learner sends at its end."""
    episodes = Episodes()
    episodes.add([(value, 1, 0) for value in returns])
    counts = {"env_steps": env_steps, "updates": 9, "seconds": 2.5, "episodes": episodes.state()}
    recorder.handle((messages.END, "learner", counts))


@pytest.mark.parametrize(
    ("env_steps", "returns", "sentence", "settings"),
    [
        (5001, [0.5], "stop.env-steps 5,000 was reached (5,001)", {"stop.env_steps": 10_000}),
        (900, [0.951] * 100, "stop.target-return 0.95 was reached (0.951)", {"stop.target_return": 1.046}),
        (900, [0.951] * 99, "a stop rule was reached", {}),  # the last counters are lost
    ],
)
def test_recorder_names_the_stop_rule_that_was_reached(recorder, env_steps, returns, sentence, settings):
    end_at(recorder, env_steps, *returns)
    add_episodes(recorder, *[7.0] * 50)  # after the learner has stopped
    (recorder.run_dir / f"checkpoints/{env_steps:012d}").mkdir(parents=True)
    outcome = recorder.finish(Outcome.of(Exit.FINISHED, "; more"))
    assert outcome.sentence == f"{sentence}; more"
    assert outcome.resume_settings == settings
    status = json.loads((recorder.run_dir / "status.json").read_text())
    assert (status["training_return"], status["episodes"]) == (pytest.approx(returns[0]), len(returns))
    assert (outcome.training_return, outcome.episodes) == (status["training_return"], status["episodes"])


def test_recorder_proposes_a_plain_resume_where_the_last_checkpoint_is_older(recorder):
    end_at(recorder, 5001)
    (recorder.run_dir / "checkpoints/000000004000").mkdir(parents=True)
    outcome = recorder.finish(Outcome.of(Exit.STORAGE, "; the last checkpoint could not be written"))
    assert outcome.resume_settings == {}


def save_run(config, run_dir, returns):
    """A checkpoint after 700 steps."""
    episodes = Episodes()
    episodes.add([(value, 1, 0) for value in returns])
    state = {"env_steps": 700, "updates": 7, "seconds": 1.5, "launch": 0, "episodes": episodes.state()}
    state |= {"skipped_updates": 0, "lr": 1e-3, "kl": 0.0, "ess": 1.0}
    model = build_model(config, make_spec(NAME))
    save(run_dir, Contents(state, {"model": dict(model.state_dict())}), keep=1)


def test_ranks_go_on_from_a_part_of_the_episodes_each_and_report_the_return_of_all(tmp_path):
    config, run_dir = Config(env=Env(NAME)), tmp_path / "run"
    with RunRecorder.open(config, run_dir, resume=False, specs=[make_spec(NAME)]):
        pass
    save_run(config, run_dir, [1.0, 2.0, 3.0])
    for rank, expected in enumerate([[1.0], [2.0, 3.0]]):
        ranks = Ranks(rank, 2, rank, 2)
        with RunRecorder.open(config, run_dir, resume=True, specs=[make_spec(NAME)], ranks=ranks) as recorder:
            assert list(recorder.board.episodes.returns[0]) == expected
            assert recorder.board.episodes.count == (3, 0)[rank]
            assert recorder.episodes.training_return == 2.0
    add_episodes(recorder, 9.0)
    assert recorder.episodes.training_return == 2.0, "those of the job come from the learner"


def test_recorder_keeps_what_a_run_has_reached_when_a_launch_fails(tmp_path):
    config, run_dir = Config(env=Env(NAME)), tmp_path / "run"
    with RunRecorder.open(config, run_dir, resume=False, specs=[make_spec(NAME)]):
        pass
    save_run(config, run_dir, [0.5] * 3)
    with (
        pytest.raises(ZeroDivisionError),
        RunRecorder.open(config, run_dir, resume=True, specs=[make_spec(NAME)]) as recorder,
    ):
        raise ZeroDivisionError("a bug at the start")
    assert recorder.progress.env_steps == 700
    status = json.loads((run_dir / "status.json").read_text())
    expected = {"state": "failed", "env_steps": 700, "updates": 7, "seconds": 1.5, "training_return": 0.5}
    assert {name: status[name] for name in expected} == expected


# -- failures of environments ------------------------------------------------------------------------------------

FAULT = """environment {env}: RuntimeError: solver diverged (seed {seed}, step {step} of the episode)
Traceback (most recent call last):
  File "/home/me/sim.py", line 12, in step
RuntimeError: solver diverged
"""


def fail(recorder, number, steps=0, broken=1):
    """What a sampler sends after a failure."""
    recorder.handle((messages.STEPS, "sampler-0", (steps, broken)))
    recorder.handle((messages.FAULT, "sampler-0", FAULT.format(env=number % 4, seed=number, step=number % 9)))


def test_recorder_prints_the_first_traceback_and_then_counts(recorder, capsys):
    for number in range(100):
        fail(recorder, number, steps=10)
    err = capsys.readouterr().err
    assert err.count('File "/home/me/sim.py", line 12, in step') == 1
    assert "log.txt" in err.splitlines()[0]
    assert [line for line in err.splitlines() if "times like this" in line] == [
        "environments failed 10 times like this: RuntimeError: solver diverged",
        "environments failed 100 times like this: RuntimeError: solver diverged",
    ]
    log = (recorder.run_dir / "log.txt").read_text()
    assert log.count("Traceback") == 1
    assert log.count("environment 3: RuntimeError") == 25


def test_recorder_is_silent_about_failures_if_it_is_quiet(tmp_path, capsys):
    config = Config(env=Env(NAME), log=Log(quiet=True))
    with RunRecorder.open(config, tmp_path / "run", resume=False, specs=[make_spec(NAME)]) as recorder:
        for number in range(30):
            fail(recorder, number, steps=10)
    assert capsys.readouterr() == ("", "")
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_recorder_warns_once_of_many_broken_episodes(recorder, capsys):
    add_episodes(recorder, *[1.0] * 300)
    for number in range(50):
        fail(recorder, number, steps=40)
    assert capsys.readouterr().err.count("warning: 5.1% of the last 316 episodes were cut") == 1


def test_recorder_ends_a_run_without_one_good_step(recorder):
    for number in range(20):
        assert recorder.outcome_from_messages() is None
        fail(recorder, number)
    outcome = recorder.outcome_from_messages()
    assert outcome.code == Exit.ENVIRONMENT
    assert outcome.sentence.startswith("no environment got past its first step, 20 failures; the first: environment 0")


def test_recorder_logs_an_evaluation_that_failed_and_does_not_wait_for_it(recorder, capsys):
    recorder.handle((messages.NO_EVALUATION, "evaluator", (12_000, "22 environments failed during the evaluation")))
    assert "no evaluation at 12,000 steps: 22 environments failed during the evaluation" in capsys.readouterr().err
    assert recorder.board.evaluated == 12_000


@pytest.mark.parametrize(
    ("more", "end"), [({}, "(2.0 s)"), ({"eval/capped": 3.0}, "(2.0 s); 3 of its episodes did not end and were cut")]
)
def test_recorder_logs_how_many_episodes_of_an_evaluation_were_cut(more, end, recorder, capsys):
    scores = {"eval/episodic_return": 1.5, "eval/iqm": 1.0, "eval/seconds": 2.0, "eval/env_steps": 400.0, **more}
    recorder.handle((messages.EVALUATION, "evaluator", scores))
    assert f"evaluation at 400 steps: mean return 1.50, IQM 1.00 {end}\n" in capsys.readouterr().err


def test_recorder_prints_the_traceback_of_environments_that_cannot_be_built(recorder, capsys):
    trace = FAULT.partition("\n")[2]
    recorder.handle((messages.FAULT, "sampler-0", f"sampler-0: EnvError: x could not be built: OSError: port\n{trace}"))
    err = capsys.readouterr().err
    assert err.startswith("sampler-0: EnvError: x could not be built: OSError: port\n  Traceback")
    assert 'File "/home/me/sim.py", line 12' in err


# -- evaluations -------------------------------------------------------------------------------------------------


def evaluated(recorder, *env_steps):
    for steps in env_steps:
        scores = {"episodic_return": 1.0 * steps, "iqm": 1.0, "episodic_length": 1.0, "seconds": 0.1}
        row = {f"eval/{name}": value for name, value in scores.items()} | {"eval/env_steps": float(steps)}
        recorder.handle((messages.EVALUATION, "evaluator", row))


def trained(recorder, env_steps):
    counts = {"env_steps": env_steps, "updates": 1, "seconds": env_steps / 100, "episodes": Episodes(1).state()}
    recorder.handle((messages.LEARNER, "learner", counts))


def test_recorder_loses_no_evaluation_of_several_between_two_rows(recorder):
    """Each was shown by the next row alone, so that the second of a pair replaced the first in the files."""
    evaluated(recorder, 100, 200, 300)
    trained(recorder, 300)
    evaluated(recorder, 350, 450)  # of checkpoints; the learner has gone on
    trained(recorder, 600)
    trained(recorder, 900)
    evaluated(recorder, 700, 800)  # they were slow, and end after a row beyond them
    trained(recorder, 1200)
    rows = [(row["env_steps"], row.get("eval/env_steps")) for row in read_rows(recorder.run_dir)]
    assert rows == [
        (100, 100), (200, 200), (300, 300), (350, 350), (600, 450), (900, None), (901, 700), (1200, 800)
    ]  # fmt: skip


def test_recorder_writes_the_evaluations_that_no_row_follows(recorder):
    trained(recorder, 300)
    evaluated(recorder, 400, 500)
    recorder.env_steps = 500  # of the learner, beyond the last row
    recorder.finish(Outcome.of(Exit.FINISHED, "the stop rule was reached"))
    assert [row["env_steps"] for row in read_rows(recorder.run_dir)] == [300, 400, 500]


# -- episodes ------------------------------------------------------------------------------------------------------


def episode_lines(run_dir):
    return list(read_episodes(run_dir / "episodes.csv"))


def recorded(run_dir, *, resume=False, keys="", wanted=True, ranks=ALONE):
    config = Config(env=Env(NAME, info_keys=keys), log=Log(episodes=wanted))
    return RunRecorder.open(config, run_dir, resume, [make_spec(NAME)], ranks)


def test_recorder_writes_episodes_only_if_it_is_told_to(tmp_path):
    with recorded(tmp_path / "run", wanted=False) as recorder:
        add_episodes(recorder, 1.0)
    assert not (tmp_path / "run" / "episodes.csv").exists()


def test_recorder_writes_an_episode_with_the_steps_that_are_trained_by_then(tmp_path):
    with recorded(tmp_path / "run") as recorder:
        recorder.trained_steps = lambda: 64
        recorder.handle((messages.EPISODES, "sampler-0", [(1.5, 20, 0, {"is_success": 1.0}), (2.0, 30, 0)]))
        lines = episode_lines(recorder.run_dir)
    assert [
        (line["episode"], line["env_steps"], line["task"], line["return"], line["is_success"]) for line in lines
    ] == [
        ("1", "64", NAME, "1.5", "1"),
        ("2", "64", NAME, "2", ""),
    ]


@pytest.mark.parametrize("wanted", [True, False])
def test_recorder_drops_the_episodes_that_the_checkpoint_does_not_count(tmp_path, wanted):
    run_dir = tmp_path / "run"
    with recorded(run_dir) as recorder:
        add_episodes(recorder, 1.0, 2.0, 3.0, 4.0, 5.0)
    save_run(recorder.config, run_dir, [1.0, 2.0, 3.0])
    with recorded(run_dir, resume=True, wanted=wanted) as recorder:
        add_episodes(recorder, 6.0)
        recorder.finish(Outcome.of(Exit.INTERRUPTED, "stopped"))
    expected = [("1", "1"), ("2", "2"), ("3", "3")] + [("4", "6")] * wanted
    assert [(line["episode"], line["return"]) for line in episode_lines(run_dir)] == expected


def test_recorder_drops_episodes_also_if_none_comes_after_the_resume(tmp_path):
    with recorded(tmp_path / "run") as recorder:
        add_episodes(recorder, 1.0, 2.0, 3.0)
    save_run(recorder.config, recorder.run_dir, [1.0])
    with recorded(recorder.run_dir, resume=True) as recorder:
        recorder.finish(Outcome.of(Exit.INTERRUPTED, "stopped"))
    assert [line["return"] for line in episode_lines(recorder.run_dir)] == ["1"]


def test_recorder_warns_of_listed_numbers_that_no_episode_has(tmp_path):
    with recorded(tmp_path / "run", keys="is_sucess,speed", wanted=False) as recorder:
        for count in (60, 60, 60):
            recorder.handle((messages.EPISODES, "sampler-0", [(1.0, 2, 0, {"speed": 1.0})] * count))
        log = (recorder.run_dir / "log.txt").read_text()
    assert log.count("env.info-keys") == 1
    assert "env.info-keys: is_sucess: no number of this name was in info at the end of 120 episodes" in log


def test_recorder_remembers_whose_code_a_run_has_in_the_folder_that_it_makes_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = tmp_path / "run"
    own = Config(env=Env("my_env_of_recorder:MyEnv"))
    with RunRecorder.open(own, run, resume=False, specs=[make_spec(NAME)]) as recorder:
        record_run(run, own)
        shutil.rmtree(run)
        assert recorder.keep_folder() == ""
    assert read_record(run).modules == ("my_env_of_recorder",)


def another_run_in_place_of(run):
    """Move a run away and put the folder of another one there."""
    other = run.with_name("other")
    other.mkdir()
    (other / "config.toml").write_text("")
    run.rename(run.with_name("elsewhere"))
    other.rename(run)


def test_recorder_writes_its_status_into_its_own_folder_if_that_is_moved_at_this_moment(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with RunRecorder.open(Config(env=Env(NAME)), run, resume=False, specs=[make_spec(NAME)]) as recorder:
        status = tmp_path / "elsewhere" / "status.json"
        real = recorder._presence.loss
        monkeypatch.setattr(recorder._presence, "loss", lambda: (another_run_in_place_of(run), "")[1])
        recorder._write_status("running", pid=7)
        monkeypatch.setattr(recorder._presence, "loss", real)
        assert "another run is in its place" in recorder.keep_folder()
    assert [path.name for path in run.iterdir()] == ["config.toml"]
    assert json.loads(status.read_text())["pid"] == 7


def test_recorder_of_a_failed_start_does_not_empty_the_folder_of_another_run(tmp_path):
    run = tmp_path / "run"
    recorder = RunRecorder.open(Config(env=Env(NAME)), run, resume=False, specs=[make_spec(NAME)])
    another_run_in_place_of(run)
    recorder.__exit__(MemoryError, MemoryError(), None)
    assert [path.name for path in run.iterdir()] == ["config.toml"]


def test_recorder_makes_its_folder_again_after_an_attempt_that_failed(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with RunRecorder.open(Config(env=Env(NAME)), run, resume=False, specs=[make_spec(NAME)]) as recorder:
        shutil.rmtree(run)

        def full(*args):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("sfactory.run.recorder.provenance.record", full)
            assert recorder.keep_folder() == ""
        assert recorder._presence.loss()
        assert recorder.keep_folder() == ""
        assert not recorder._presence.loss()
