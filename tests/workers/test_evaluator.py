"""The evaluator plays due checkpoints with the same seeds every time, and only checkpoints that it has verified."""

import io
import os
import sys
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import av
import pytest
from forked_processes import run_forked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sfactory.config import Config, Env, Eval, Model, Sampling
from sfactory.envs import EnvError, make_spec
from sfactory.learning.network import build_model
from sfactory.monitor.table import meaning
from sfactory.play import episodes
from sfactory.run import checkpoint, checkpoint_writer
from sfactory.run.lock import LOCK, lock_folder
from sfactory.workers import evaluator as module
from sfactory.workers.evaluator import Evaluator, PolicyPlayer
from sfactory.workers.shared import RunSpec
from sfactory.workers.worker import ListSink


@pytest.fixture
def run_spec(tmp_path):
    config = Config(
        env=Env("gymnasium/CartPole-v1", step_timeout=20.0),
        model=Model(hidden=(8,)),
        eval=Eval(every=100, episodes=4, greedy=True),
    )
    return RunSpec(config, make_spec(config.env.name), str(tmp_path), 0)


def save(run_spec, env_steps, shift=0.0):
    model = build_model(run_spec.config, run_spec.spec)
    for parameter in model.parameters():
        parameter.data += shift
    contents = checkpoint.Contents({"env_steps": env_steps}, {"model": model.state_dict()})
    return checkpoint_writer.save(run_spec.debug_dir.parent, contents, keep=3)


def test_evaluation_due_if_a_multiple_of_eval_every_lies_between(run_spec):
    assert not run_spec.evaluation_due(0, 99)
    assert run_spec.evaluation_due(0, 100)
    assert run_spec.evaluation_due(0, 1234)
    assert not run_spec.evaluation_due(1234, 1299)
    assert run_spec.evaluation_due(1234, 1300)
    never = RunSpec(Config(env=run_spec.config.env), run_spec.spec, run_spec.run_dir, 0)
    assert not never.evaluation_due(0, 10**9)


def test_evaluator_plays_each_checkpoint_beyond_the_next_multiple_once(run_spec):
    evaluator = Evaluator(run_spec, ListSink(), evaluated=0)
    assert not evaluator.step()
    save(run_spec, 90)
    assert not evaluator.step()
    save(run_spec, 110)
    save(run_spec, 320)  # the evaluator was slow: 110 is skipped
    assert evaluator.step()
    assert not evaluator.step()
    (_, (kind, worker, row)) = evaluator.sink.drain()
    assert (kind, worker, row["eval/env_steps"]) == ("eval", "evaluator", 320)
    assert row["eval/episodic_return"] == row["eval/episodic_length"] >= 8  # a point for every step


def test_evaluator_waits_where_the_folder_of_checkpoints_became_a_file(run_spec):
    (Path(run_spec.run_dir) / "checkpoints").write_text("")
    assert not Evaluator(run_spec, ListSink(), evaluated=0).step()


def test_evaluator_says_which_multiples_have_no_evaluation_and_why(run_spec):
    """It is not an error: a point of the curve is missing, and the log has the reason."""
    evaluator = Evaluator(run_spec, ListSink(), evaluated=0)

    def logged(env_steps):
        save(run_spec, env_steps)
        assert evaluator.step()
        return [text for kind, _, text in evaluator.sink.drain() if kind == "log"]

    assert logged(320) == ["no evaluation at 100 to 200 steps: the evaluator was starting"]
    assert logged(410) == []
    assert logged(600) == ["no evaluation at 500 steps: the one before was still playing"]
    assert not evaluator.step(), "it waits"
    within = "they were passed within one update, or within a second"
    assert logged(1900) == [f"no evaluation at 700 to 1,800 steps: {within}"]


def test_restarted_evaluator_continues_after_the_last_result(run_spec):
    save(run_spec, 320)
    assert not Evaluator(run_spec, ListSink(), evaluated=310).step()
    assert Evaluator(run_spec, ListSink(), evaluated=210).step()


def test_evaluator_skips_a_damaged_checkpoint_and_leaves_it_in_place(run_spec):
    path = save(run_spec, 110)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    evaluator = Evaluator(run_spec, ListSink(), evaluated=0)
    assert not evaluator.step()
    assert path.exists()
    assert evaluator.sink.drain() == []
    save(run_spec, 130)
    assert evaluator.step()


def test_evaluator_reports_an_environment_that_fails_and_goes_on(run_spec, monkeypatch):
    evaluator = Evaluator(run_spec, ListSink(), evaluated=0)
    play = module.play_task

    def failing(*args, **kwargs):
        raise EnvError("22 environments failed during the evaluation", fault=True)

    monkeypatch.setattr(module, "play_task", failing)
    save(run_spec, 110)
    assert evaluator.step()
    assert not evaluator.step(), "the same policy is not played again"
    reason = "22 environments failed during the evaluation"
    assert evaluator.sink.drain() == [("no eval", "evaluator", (110, reason))]
    monkeypatch.setattr(module, "play_task", play)
    save(run_spec, 210)
    assert evaluator.step()
    assert [kind for kind, _, _ in evaluator.sink.drain()] == ["eval"]


def test_evaluator_uses_the_same_seeds_and_the_weights_of_each_checkpoint(run_spec):
    def scores(evaluator):
        assert evaluator.step()
        ((_, _, row),) = evaluator.sink.drain()
        return {name: value for name, value in row.items() if name not in ("eval/env_steps", "eval/seconds")}

    evaluator = Evaluator(run_spec, ListSink(), evaluated=0)
    save(run_spec, 100, shift=0.5)
    shifted = scores(evaluator)
    save(run_spec, 200)
    plain = scores(evaluator)
    save(run_spec, 300, shift=0.5)
    assert scores(evaluator) == shifted != plain


def test_policy_player_reports_the_return_of_every_task_and_their_mean(tmp_path):
    tasks = "gymnasium/CartPole-v1", "gymnasium/CartPole-v0"
    config = Config(env=Env(",".join(tasks)), model=Model(hidden=(8,)), eval=Eval(every=100, episodes=3))
    _, _, row = PolicyPlayer(RunSpec(config, make_spec(tasks[0]), str(tmp_path), 0)).evaluate(100)
    each = [row[f"eval/episodic_return/{task}"] for task in tasks]
    assert row["eval/episodic_return"] == pytest.approx(sum(each) / 2)
    assert row["eval/episodic_length"] == row["eval/episodic_return"] >= row["eval/iqm"] - 50


def test_policy_player_reports_the_spread_of_returns_and_the_numbers_of_info(run_spec, monkeypatch):
    results = episodes.EpisodeResults([1.0, 3.0, 5.0, 7.0], [2, 2, 2, 2], infos={"is_success": [1.0, 0.0, 1.0, 1.0]})
    monkeypatch.setattr(module, "play_task", lambda *_, **__: (run_spec.spec, 10, results))
    _, _, row = PolicyPlayer(run_spec).evaluate(100)
    assert (row["eval/min"], row["eval/max"], row["eval/std"]) == (1.0, 7.0, pytest.approx(5**0.5))
    assert row["eval/info/is_success"] == 0.75
    for name in row:
        assert meaning(name)


def test_policy_player_reports_episodes_that_were_cut_only_if_there_are_any(run_spec, monkeypatch):
    def row(capped):
        results = episodes.EpisodeResults([1.0, 3.0], [10, 10], capped=capped)
        monkeypatch.setattr(module, "play_task", lambda *_, **__: (run_spec.spec, 10, results))
        return PolicyPlayer(run_spec).evaluate(100)[2]

    assert row(2)["eval/capped"] == 2.0
    assert meaning("eval/capped")
    assert "eval/capped" not in row(0)


def with_video(run_spec):
    config = replace(run_spec.config, eval=replace(run_spec.config.eval, video=True))
    return replace(run_spec, config=config)


def pictures(run_spec):
    """(step, picture) of every episode that TensorBoard shows."""
    found = EventAccumulator(f"{run_spec.run_dir}/tb/videos", size_guidance={"images": 0})
    found.Reload()
    return [(image.step, image.encoded_image_string) for image in found.Images("eval/video")]


def test_evaluator_shows_an_episode_in_tensorboard_and_the_scores_do_not_depend_on_it(run_spec):
    (Path(run_spec.run_dir) / "tb").mkdir()
    paths = save(run_spec, 100), save(run_spec, 200, shift=0.5)
    rows = []
    for spec in (run_spec, with_video(run_spec)):
        player = PolicyPlayer(spec)
        for path in paths:
            player.model.load_state_dict(checkpoint.read(path, ("model",)).parts["model"])
            _, _, row = player.evaluate(int(path.name))
            assert player.film(int(path.name)) == []
            rows.append({name: value for name, value in row.items() if name != "eval/seconds"})
    assert rows[:2] == rows[2:]
    (first, gif), (second, _) = pictures(run_spec)
    assert (first, second) == (100, 200)
    with av.open(io.BytesIO(gif)) as video:
        frames = list(video.decode(video=0))
    assert 9 <= len(frames) <= 150
    assert max(frames[0].width, frames[0].height) == 240


def test_evaluator_films_no_more_after_an_error_and_goes_on(run_spec, monkeypatch):
    def failing(*_):
        raise EnvError("no display")

    monkeypatch.setattr(module, "show_episodes", failing)
    evaluator = Evaluator(with_video(run_spec), ListSink(), evaluated=0)
    save(run_spec, 100)
    assert evaluator.step()
    text = "no video of the policy after 100 steps, and none of later ones: no display"
    note, (kind, _, row) = evaluator.sink.drain()
    assert note == ("log", "evaluator", text)
    assert (kind, row["eval/env_steps"]) == ("eval", 100)
    save(run_spec, 200)
    assert evaluator.step()
    assert [kind for kind, _, _ in evaluator.sink.drain()] == ["eval"], "neither a video nor a second line"


def test_evaluator_shows_no_episode_in_the_folder_of_another_run(run_spec):
    run = Path(run_spec.run_dir)
    os.close(lock_folder(run))
    player = PolicyPlayer(with_video(run_spec))
    (run / LOCK).write_text("1")  # as if another folder were in its place
    (run / "tb").mkdir()
    ((_, _, text),) = player.film(100)
    assert "another run is in the place of" in text
    assert not list((run / "tb").iterdir())


def test_restarted_evaluator_films_no_more_because_rendering_may_have_ended_it(run_spec, monkeypatch):
    filmed = []
    monkeypatch.setattr(module, "show_episodes", lambda *_: filmed.append(1))
    save(run_spec, 100)
    for generation in (1, 0):
        evaluator = Evaluator(with_video(run_spec), ListSink(), evaluated=0, generation=generation)
        assert evaluator.step()
        texts = [text for kind, _, text in evaluator.sink.drain() if kind == "log"]
        assert texts == ["no more videos of policies: the evaluator was restarted"][:generation]
        assert len(filmed) == 1 - generation
    plain = Evaluator(run_spec, ListSink(), evaluated=0, generation=1)
    assert plain.sink.drain() == []


HANG = """
import time
from sfactory.workers.evaluator import Watchdog
watchdog = Watchdog(0.4)
for _ in range(8):  # reset every 0.1 s: no effect for twice its limit
    watchdog.reset()
    time.sleep(0.1)
watchdog.stop()
time.sleep(0.8)  # no effect after stop
watchdog.reset()
watchdog.allow(30)  # building takes longer than a step may
time.sleep(0.8)
print("alive", flush=True)
watchdog.reset()
watchdog.allow(1000)
watchdog.reset()  # restores the usual limit at once
def an_environment_that_hangs():
    time.sleep(60)
an_environment_that_hangs()
"""


def test_watchdog_ends_a_process_that_hangs_and_prints_its_stack(tmp_path):
    (tmp_path / "hang.py").write_text(HANG)
    done = run_forked([sys.executable, "hang.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert "Timeout" in done.stderr
    assert "an_environment_that_hangs" in done.stderr


def test_evaluator_arms_the_watchdog_only_while_it_plays(run_spec, monkeypatch):
    calls = []
    monkeypatch.setattr(module.faulthandler, "dump_traceback_later", lambda seconds, **how: calls.append(seconds))
    monkeypatch.setattr(module.faulthandler, "cancel_dump_traceback_later", lambda: calls.append("stopped"))
    evaluator = Evaluator(run_spec, ListSink(), evaluated=0)
    evaluator.step()
    assert calls == [], "no checkpoint to play"
    save(run_spec, 110)
    evaluator.step()
    limits, build = [limit for limit, _ in groupby(calls)], run_spec.config.env.build_timeout
    expected = [build, 4 * build, 80.0, 4 * build, "stopped"]
    assert limits == expected, "of the spec, and of four that one call builds, steps or closes"


class RecordingClock:
    """Keeps what it is told."""

    def __init__(self):
        self.calls = []

    def own(self):
        pass

    def build(self, environments):
        self.calls.append(("build", environments))

    def step(self, environments):
        self.calls.append(("step", environments))


def test_policy_player_tells_of_building_for_every_task(tmp_path):
    """Building may take longer than a step may, so the evaluator gives it another limit."""
    tasks = "gymnasium/CartPole-v1", "gymnasium/CartPole-v0"
    config = Config(env=Env(",".join(tasks)), model=Model(hidden=(8,)), eval=Eval(every=100, episodes=2))
    player, clock = PolicyPlayer(RunSpec(config, make_spec(tasks[0]), str(tmp_path), 0)), RecordingClock()
    player.evaluate(100, clock)
    assert [call for call, _ in groupby(call for call, _ in clock.calls)] == ["build", "step"] * 2 + ["build"]


@pytest.mark.parametrize(
    ("target", "steps"),
    [("gymnasium/CartPole-v1", {3}), ("gymnasium/Acrobot-v1", {1}), ("faults/count", {1}), ("minatar/breakout", {3})],
)
def test_policy_player_tells_how_many_environments_a_call_covers(tmp_path, target, steps):
    """A group that says which environment it steps is limited by one step, any other by those of all of them."""
    config = Config(env=Env(target), model=Model(hidden=(8,)), eval=Eval(every=100, episodes=3))
    player, clock = PolicyPlayer(RunSpec(config, make_spec(target), str(tmp_path), 0)), RecordingClock()
    player.evaluate(100, clock)
    assert {number for call, number in clock.calls if call == "step"} == steps
    assert clock.calls[0] == ("build", 1), "the spec"
    assert clock.calls[-1][0] == "build", "closing"
    assert ("build", 3) in clock.calls


@pytest.mark.parametrize(("num_envs", "training", "expected"), [(0, 2, 2), (0, 50, 5), (3, 2, 3)])
def test_policy_player_has_no_more_environments_than_training_unless_it_is_told_so(
    tmp_path, monkeypatch, num_envs, training, expected
):
    sizes = []

    def recording(num_envs, first_env, make):
        sizes.append(num_envs)
        return make(num_envs, first_env)

    real = episodes.group_factory
    monkeypatch.setattr(
        episodes, "group_factory", lambda *args, **options: partial(recording, make=real(*args, **options))
    )
    config = Config(
        env=Env("faults/count"),
        model=Model(hidden=(8,)),
        sampling=Sampling(num_samplers=1, groups_per_sampler=1, envs_per_group=training),
        eval=Eval(every=100, episodes=5, num_envs=num_envs),
    )
    PolicyPlayer(RunSpec(config, make_spec("faults/count"), str(tmp_path), 0)).evaluate(100)
    assert sizes == [expected]
