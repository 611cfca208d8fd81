"""How the cores of a machine are divided: the same environments and updates, whatever their number."""

from pathlib import Path

import pytest

from sfactory.config import Config, parsing, presets, with_settings
from sfactory.config.presets import family_defaults
from sfactory.device import thread_pool
from sfactory.learning.batch_scaling import rescale_batch
from sfactory.native.network import CHUNK
from sfactory.run.reader import learning_settings
from sfactory.supervisor import cores
from sfactory.supervisor.cores import LEARNER_THREADS, ROWS_PER_THREAD, by_cores, keep_processes, summary

TARGETS = [preset.path for preset in (*presets.presets(), *family_defaults())]
ONCE = {"batch__epochs": 1, "batch__minibatches": 1}
MACHINES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 64, 128)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(cores, "shows_gpu", lambda: False)


def preset(path: Path) -> Config:
    return parsing.build(presets.read_toml(path), {"env.name": parsing.RawValue("minatar/breakout")})


def breakout(**changes):
    config = parsing.build(*presets.target_layers("minatar/breakout"), {})
    return with_settings(config, {name.replace("__", "."): value for name, value in changes.items()})


def processes(config, num_cores):
    settled = by_cores(config, num_cores)
    return settled.sampling.num_samplers, settled.run.inference_workers


def of_updates(config):
    """Everything about the data of an update that learning depends on."""
    s = config.sampling
    return s.num_envs, s.rollout_length, config.lanes, config.batch_rows, config.optimizer_steps_per_update


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_by_cores_leaves_the_environments_and_updates_of_a_preset_unchanged(path):
    config = preset(path)
    assert config.sampling.num_samplers == config.run.inference_workers == 0
    for num_cores in MACHINES:
        settled = by_cores(config, num_cores)
        assert of_updates(settled) == of_updates(config)
        assert learning_settings(settled) == learning_settings(config)
        assert settled.sampling.num_samplers >= 1 <= settled.run.inference_workers
        assert by_cores(settled, 7) == settled, "settled numbers stay"
    two = by_cores(config, 2)
    least = config.sampling.min_samplers
    groups = {"sampling.groups_per_sampler": config.sampling.groups_per_sampler // least}
    fewest = {"sampling.num_samplers": least, **groups, "run.inference_workers": 1}
    assert two == with_settings(config, fewest), "on two cores a preset has the fewest samplers, its groups as written"


def test_by_cores_gives_a_preset_its_fewest_samplers_where_that_is_possible():
    def split(num_cores, **changes):
        s = by_cores(breakout(sampling__min_samplers=2, **changes), num_cores).sampling
        return s.num_samplers, s.groups_per_sampler, s.envs_per_group

    assert split(1) == (1, 2, 16)
    assert split(2) == split(4) == (2, 1, 16)
    assert split(8) == (4, 2, 4), "with more cores the rule for them holds"
    assert split(2, sampling__groups_per_sampler=3) == (2, 3, 8)
    assert split(2, sampling__groups_per_sampler=3, sampling__envs_per_group=7, batch__minibatches=7) == (1, 3, 7)
    assert split(2, sampling__num_samplers=1) == (1, 2, 16), "a number that was given is kept"
    assert split(2, run__mode="lockstep") == (1, 2, 16)


def test_by_cores_uses_the_cores_that_learner_and_inference_leave():
    assert [processes(breakout(), c)[0] for c in (1, 2, 4, 5, 6, 7, 64)] == [1, 1, 1, 2, 2, 4, 4]
    assert [processes(breakout(batch__minibatches=1), c)[0] for c in (4, 6, 7, 8, 9)] == [1, 2, 2, 2, 4], "4 threads"
    assert processes(breakout(batch__minibatches=32), 6) == processes(breakout(), 6), "at least 2 threads"
    assert processes(breakout(run__learner_threads=1), 4) == (2, 1)
    assert processes(breakout(run__inference_threads=3), 6) == (1, 1)
    assert processes(breakout(sampling__envs_per_group=64), 64) == (16, 1)
    assert processes(breakout(sampling__envs_per_group=24), 16) == (6, 1), "a divisor of the group"


def test_by_cores_keeps_groups_of_four_also_after_the_batch_is_rescaled():
    for factor in (0.25, 0.5, 2.0, 4.0):
        config = breakout(batch__factor=factor)
        for num_cores in MACHINES:
            scaled, _ = rescale_batch(by_cores(config, num_cores))
            assert of_updates(scaled) == of_updates(rescale_batch(config)[0])
            assert scaled.sampling.envs_per_group >= 4
    assert processes(breakout(batch__factor=4.0), 64)[0] == 1
    assert processes(breakout(batch__factor=1.5, sampling__envs_per_group=48), 8)[0] == 2, "48 / 3 / 1.5 is no number"


def test_by_cores_does_not_look_at_the_machine_in_lockstep():
    assert {processes(breakout(run__mode="lockstep"), c) for c in MACHINES} == {(1, 1)}


def test_by_cores_keeps_one_sampler_where_batch_slots_counts_slots_of_one_size():
    assert processes(breakout(batch__slots=3), 64) == (1, 1)


def test_by_cores_starts_more_inference_workers_only_where_one_is_slower_than_the_learner():
    assert processes(breakout(**ONCE), 16) == (4, 2), "4 threads learn as fast as 2 inference threads act"
    assert processes(breakout(**ONCE), 4) == (1, 1)
    assert processes(breakout(**ONCE, run__learner_threads=12, sampling__envs_per_group=64), 64) == (16, 6)
    assert processes(breakout(), 64) == (4, 1), "four epochs: the learner is slower"
    assert processes(breakout(**ONCE, sampling__num_samplers=2), 16) == (2, 1), "one worker serves two samplers"
    assert processes(breakout(run__inference_workers=3), 16) == (4, 3), "a number of one's own is kept"
    assert processes(breakout(run__inference_workers=3), 2) == (1, 1), "a worker without a sampler has nothing to do"


def test_by_cores_leaves_one_core_to_each_worker_with_a_gpu(monkeypatch):
    monkeypatch.setattr(cores, "shows_gpu", lambda: True)
    assert processes(breakout(**ONCE), 4) == (2, 1)
    assert processes(breakout(**ONCE), 16) == (4, 1)
    assert processes(breakout(**ONCE, run__device="cpu"), 16) == (4, 2)
    assert processes(breakout(**ONCE, run__inference_device="cpu"), 16) == (4, 2), "no learner on the CPU to wait for"


def test_learner_share_is_the_number_of_threads_the_learner_uses():
    assert LEARNER_THREADS == thread_pool.AUTO
    assert ROWS_PER_THREAD == CHUNK


def test_learner_with_replay_has_the_cores_that_its_longer_updates_need():
    """More rows of a minibatch have more threads, and inference has more time for a row."""
    assert [cores._learner_cores(breakout(replay__ratio=ratio), 64) for ratio in (0.0, 1.0)] == [2, 4]
    workers = [cores._num_inference(breakout(**ONCE, replay__ratio=ratio), 8, 64) for ratio in (0.0, 1.0)]
    assert workers == [2, 1]


def test_learner_with_fast_passes_leaves_inference_more_time_for_a_row():
    workers = [cores._num_inference(breakout(**ONCE, optim__sfpo_steps=steps), 8, 64) for steps in (0, 2)]
    assert workers == [2, 1]


def test_summary_names_all_numbers():
    text = "16 cores: 4 samplers x 2 groups x 4 environments, 2 inference workers"
    assert summary(by_cores(breakout(**ONCE), 16), 16) == text
    assert summary(by_cores(breakout(), 1), 1) == "1 core: 1 sampler x 2 groups x 16 environments, 1 inference worker"


def test_keep_processes_keeps_what_the_run_has_on_any_machine():
    config = breakout(**ONCE)
    run = by_cores(config, 16)
    assert keep_processes(run, config) == run, "the same command again"
    assert keep_processes(run, with_settings(run, {"sampling.num_samplers": 0})) == run
    assert keep_processes(run, with_settings(config, {"sampling.num_samplers": 1})).run.inference_workers == 1
    assert keep_processes(run, run) == run
    more = with_settings(config, {"sampling.envs_per_group": 32})
    assert keep_processes(run, more).sampling == more.sampling, "other environments are divided again"
