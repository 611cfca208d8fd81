"""The search for faster settings, against a machine made of a formula."""

import itertools

import pytest

from sfactory.config import BatchConfig, Config, Env, Run, Sampling, with_settings
from sfactory.config.toml_file import settings_to_toml
from sfactory.tools import tune
from sfactory.tools.bench import BenchFailed

BASE = Config(
    env=Env(name="minatar/breakout"), sampling=Sampling(1, 2, 16, 64, 2), batch=BatchConfig(epochs=1, minibatches=2)
)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    monkeypatch.setattr(tune, "cores", lambda: 4)


def speed(config):
    """Fastest with 3 samplers... which 32 environments do not split into; so with 4 of one group, and 2 threads."""
    s = config.sampling
    return 1000.0 * (5 - abs(s.num_samplers - 4)) * (2 if s.groups_per_sampler == 1 else 1) + 500 * (
        config.run.learner_threads == 2
    )


def ticking(step=1.0):
    return itertools.count(0.0, step).__next__


def test_it_climbs_to_the_fastest_split_of_the_same_environments():
    found = tune.search(BASE, 1000.0, measure=speed, clock=ticking())
    best = with_settings(BASE, found.settings)
    assert (best.sampling.num_samplers, best.sampling.groups_per_sampler, best.run.learner_threads) == (4, 1, 2)
    assert best.sampling.num_envs == BASE.sampling.num_envs
    assert best.batch_rows == BASE.batch_rows
    assert (found.before, found.after) == (speed(BASE), speed(best))
    assert not found.learns_differently


def test_what_changes_the_learning_is_only_tried_when_asked_for_and_said():
    def measure(config):
        return 1000.0 * (1 + (config.run.precision == "bf16"))

    assert tune.search(BASE, 1000.0, measure=measure, clock=ticking()).settings == {}
    found = tune.search(BASE, 1000.0, learning=True, measure=measure, clock=ticking())
    assert found.settings == {"run.precision": "bf16"}
    assert found.learns_differently
    assert "compare returns" in found.text()


def test_it_stops_when_the_time_is_over_and_leaves_enough_to_measure_both_again():
    calls = []

    def measure(config):
        calls.append(config)
        return speed(config)

    tune.search(BASE, 12.0, measure=measure, clock=ticking(1.0))
    assert 2 <= len(calls) <= 12


def test_a_candidate_that_does_not_run_is_passed_over():
    def measure(config):
        if config.sampling.num_samplers > 1:
            raise BenchFailed("no memory")
        return speed(config)

    found = tune.search(BASE, 1000.0, measure=measure, clock=ticking())
    assert with_settings(BASE, found.settings).sampling.num_samplers == 1


def test_luck_that_does_not_come_again_is_not_believed():
    lucky = iter([1000.0, 2000.0, *[1000.0] * 100])  # the second run alone was fast
    assert tune.search(BASE, 1000.0, measure=lambda config: next(lucky), clock=ticking()).after < 2000.0


def test_settings_that_do_not_run_at_all_are_the_callers_to_hear_of():
    def measure(config):
        raise BenchFailed("the run to be measured ended by itself: no")

    with pytest.raises(BenchFailed):
        tune.search(BASE, 10.0, measure=measure)


def test_threads_are_tried_where_the_cores_compute_the_network(monkeypatch):
    def tried(device, inference_device=""):
        config = with_settings(BASE, {"run.device": device, "run.inference_device": inference_device})
        names = {name for change in tune.changes(config, 4, False) for name in change.settings if "threads" in name}
        return sorted(name.removeprefix("run.").removesuffix("_threads") for name in names)

    monkeypatch.setattr(tune, "shows_gpu", lambda: True)
    assert tried("cpu") == ["inference", "learner"]
    assert tried("auto") == tried("cuda:0") == []
    assert tried("cuda", "cpu") == ["inference"]
    assert tried("cpu", "cuda") == ["learner"]
    monkeypatch.setattr(tune, "shows_gpu", lambda: False)
    assert tried("auto") == ["inference", "learner"]


def test_several_tasks_keep_whole_shares_of_the_groups():
    two = with_settings(BASE, {"env.name": "minatar/breakout,minatar/asterix"})
    for change in tune.changes(two, 4, learning=True):
        assert change.apply(two).sampling.num_groups % 2 == 0


def test_found_settings_are_toml_that_train_reads(tmp_path):
    import tomllib

    text = settings_to_toml({"sampling.num_samplers": 3, "run.learner_threads": 2, "run.precision": "bf16"})
    assert tomllib.loads(text) == {
        "sampling": {"num_samplers": 3}, "run": {"learner_threads": 2, "precision": "bf16"},
    }  # fmt: skip


def test_auto_is_for_processes():
    with pytest.raises(ValueError, match=r"sampling\.auto"):
        Config(run=Run(mode="lockstep"), sampling=Sampling(auto=True))


def test_what_cannot_be_tried_is_left_to_the_run_itself(monkeypatch):
    """The run then ends with its own exit code and sentence, or trains."""

    def fails(config, seconds):
        raise BenchFailed("the run to be measured ended by itself: no such game")

    monkeypatch.setattr(tune, "trial", fails)
    said = []
    asked = with_settings(BASE, {"sampling.auto": True})
    assert tune.tuned(asked, said.append) == BASE
    assert "no such game" in said[-1]
