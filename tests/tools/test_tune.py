"""The search for faster settings, with a formula in place of measurements."""

import itertools

import pytest

from sfactory.config import BatchConfig, Config, Env, Run, Sampling, with_settings
from sfactory.config.toml_file import settings_to_toml
from sfactory.supervisor import cores
from sfactory.tools import tune
from sfactory.tools.bench import BenchFailed, Trial

BASE = Config(
    env=Env(name="minatar/breakout"), sampling=Sampling(1, 2, 16, 64, 2), batch=BatchConfig(epochs=1, minibatches=2)
)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    monkeypatch.setattr(tune, "cores", lambda: 4)


def trials(speed, row=()):
    """Runs of the speed that the function gives for their settings."""
    return lambda config: Trial(speed(config), 0.0, dict.fromkeys(row, 1.0), {})


def speed(config):
    """Fastest with 3 samplers... which 32 environments do not split into; so with 4 of one group, and 2 threads."""
    s = config.sampling
    return 1000.0 * (5 - abs(s.num_samplers - 4)) * (2 if s.groups_per_sampler == 1 else 1) + 500 * (
        config.run.learner_threads == 2
    )


def ticking(step=1.0):
    return itertools.count(0.0, step).__next__


def test_tune_finds_the_fastest_split_of_the_same_environments():
    found = tune.search(BASE, 1000.0, measure=trials(speed), clock=ticking())
    best = with_settings(BASE, found.settings)
    assert (best.sampling.num_samplers, best.sampling.groups_per_sampler, best.run.learner_threads) == (4, 1, 2)
    assert best.sampling.num_envs == BASE.sampling.num_envs
    assert best.batch_rows == BASE.batch_rows
    assert (found.before, found.after) == (speed(BASE), speed(best))
    assert not found.learns_differently


def test_tune_changes_learning_only_on_request_and_reports_it():
    def measure(config):
        return 1000.0 * (1 + (config.run.precision == "bf16"))

    assert tune.search(BASE, 1000.0, measure=trials(measure), clock=ticking()).settings == {}
    found = tune.search(BASE, 1000.0, learning=True, measure=trials(measure), clock=ticking())
    assert found.settings == {"run.precision": "bf16"}
    assert found.learns_differently
    assert "compare returns" in found.text()


def test_tune_says_what_its_speeds_count():
    alone = tune.search(BASE, 1000.0, measure=trials(speed), clock=ticking()).text()
    assert "faster: 10,500 steps/s instead of 2,000, with" in alone
    lines = []
    measure = trials(speed, row=["charts/environment_SPS"])  # a row has it where there are several agents
    found = tune.search(BASE, 1000.0, measure=measure, clock=ticking(), log=lines.append)
    assert found.unit == "agent steps"
    for line in [*lines, *found.text().splitlines()]:
        assert ("agent steps/s" in line) == ("/s" in line)


def test_sampling_auto_says_what_its_speeds_count(monkeypatch):
    fast, lines = trials(speed, row=["charts/environment_SPS"]), []
    monkeypatch.setattr(tune, "trial", lambda config, seconds: fast(config))
    tune.tuned(BASE, lines.append)
    assert lines[-1].endswith("10,500 instead of 2,000 agent steps/s")


def test_tune_stops_in_time_to_remeasure_both_settings():
    calls = []

    def measure(config):
        calls.append(config)
        return speed(config)

    tune.search(BASE, 12.0, measure=trials(measure), clock=ticking(1.0))
    assert 2 <= len(calls) <= 12


def test_tune_skips_a_candidate_that_fails():
    def measure(config):
        if config.sampling.num_samplers > 1:
            raise BenchFailed("no memory")
        return speed(config)

    found = tune.search(BASE, 1000.0, measure=trials(measure), clock=ticking())
    assert with_settings(BASE, found.settings).sampling.num_samplers == 1


def test_tune_remeasures_a_lucky_trial():
    lucky = iter([1000.0, 2000.0, *[1000.0] * 100])  # the second run alone was fast
    found = tune.search(BASE, 1000.0, measure=trials(lambda config: next(lucky)), clock=ticking())
    assert (found.settings, found.before, found.after) == ({}, 1000.0, 1000.0)


def test_tune_reports_the_speeds_that_were_measured_at_the_end():
    known = [BASE]

    def measure(config):  # all that is tried is 1.2 times as fast in its first run as later
        lucky = 1.0 if config in known else 1.2
        known.append(config)
        return speed(config) * lucky

    found = tune.search(BASE, 1000.0, measure=trials(measure), clock=ticking())
    assert (found.before, found.after) == (speed(BASE), speed(with_settings(BASE, found.settings)))


def test_tune_raises_if_the_given_settings_fail():
    def measure(config):
        raise BenchFailed("the run to be measured ended by itself: no")

    with pytest.raises(BenchFailed):
        tune.search(BASE, 10.0, measure=trials(measure))


def test_tune_varies_threads_only_for_networks_on_the_cpu(monkeypatch):
    def tried(device, inference_device=""):
        config = with_settings(BASE, {"run.device": device, "run.inference_device": inference_device})
        names = {name for change in tune.changes(config, 4, False) for name in change.settings if "_threads" in name}
        return sorted(name.removeprefix("run.").removesuffix("_threads") for name in names)

    monkeypatch.setattr(cores, "shows_gpu", lambda: True)
    assert tried("cpu") == ["inference", "learner"]
    assert tried("auto") == tried("cuda:0") == []
    assert tried("cuda", "cpu") == ["inference"]
    assert tried("cpu", "cuda") == ["learner"]
    monkeypatch.setattr(cores, "shows_gpu", lambda: False)
    assert tried("auto") == ["inference", "learner"]


def test_tune_varies_inference_workers_on_the_cpu_where_there_are_samplers_and_cores(monkeypatch):
    def tried(num_cores, **changes):
        config = with_settings(BASE, {name.replace("__", "."): value for name, value in changes.items()})
        found = [change.settings.get("run.inference_workers") for change in tune.changes(config, num_cores, False)]
        return [workers for workers in found if workers]

    four = {"sampling__num_samplers": 4, "sampling__envs_per_group": 4}
    assert tried(16, **four) == [1, 3], "two are settled by the cores"
    assert tried(16, **four, run__inference_workers=1) == [2]
    assert tried(16, **four, run__inference_workers=3) == [1, 2, 4]
    assert tried(16) == tried(2, **four) == []
    monkeypatch.setattr(cores, "shows_gpu", lambda: True)
    assert tried(16, **four) == []


def test_tune_starts_from_the_number_of_samplers_that_the_cores_settle(monkeypatch):
    monkeypatch.setattr(tune, "cores", lambda: 16)
    undecided = with_settings(BASE, {"sampling.num_samplers": 0, "batch.epochs": 4})
    seen = []

    def measure(config):
        seen.append(config.sampling)
        return 1000.0 * (1 + (config.run.learner_threads == 2) + (config.sampling.num_samplers == 4))

    found = tune.search(undecided, 1000.0, measure=trials(measure), clock=ticking())
    assert (seen[0].num_samplers, seen[0].envs_per_group) == (4, 4)
    assert found.settings == {
        "sampling.num_samplers": 4, "sampling.groups_per_sampler": 2, "sampling.envs_per_group": 4,
        "run.learner_threads": 2,
    }, "with two threads the cores would settle another number"  # fmt: skip


def test_tune_keeps_groups_divisible_by_the_tasks():
    two = with_settings(BASE, {"env.name": "minatar/breakout,minatar/asterix"})
    for change in tune.changes(two, 4, learning=True):
        assert change.apply(two).sampling.num_groups % 2 == 0


def test_tune_writes_toml_that_train_reads(tmp_path):
    import tomllib

    text = settings_to_toml({"sampling.num_samplers": 3, "run.learner_threads": 2, "run.precision": "bf16"})
    assert tomllib.loads(text) == {
        "sampling": {"num_samplers": 3}, "run": {"learner_threads": 2, "precision": "bf16"},
    }  # fmt: skip


def test_sampling_auto_requires_async_mode():
    with pytest.raises(ValueError, match=r"sampling\.auto"):
        Config(run=Run(mode="lockstep"), sampling=Sampling(auto=True))


def test_sampling_auto_keeps_the_settings_if_the_trial_fails(monkeypatch):
    """The run itself then fails with its own exit code, or trains."""

    def fails(config, seconds):
        raise BenchFailed("the run to be measured ended by itself: no such game")

    monkeypatch.setattr(tune, "trial", fails)
    lines = []
    asked = with_settings(BASE, {"sampling.auto": True})
    assert tune.tuned(asked, lines.append) == BASE
    assert "no such game" in lines[-1]
