"""The rooflines: reference loops outside sfactory's code, and the sums of their costs."""

import contextlib
import time
from types import SimpleNamespace

import pytest
import torch

from sfactory.config import BatchConfig, Config, Env, Model, Run, Sampling, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.device.thread_pool import ThreadPool, pool_size
from sfactory.envs import make_group, make_spec, raw_loop
from sfactory.learning.flat import FlatParameters
from sfactory.learning.network import build_model
from sfactory.learning.parallel_network import ParallelNetwork
from sfactory.monitor.known_rooflines import workload
from sfactory.tools import plain_torch
from sfactory.tools import roofline as module
from sfactory.tools.roofline import (
    Cost,
    busiest_sampler,
    equal_shares,
    learner_threads,
    matrix_products,
    median_rate,
    random_steps,
    roofline,
)

SMALL = Config(
    env=Env(name="gymnasium/CartPole-v1"), sampling=Sampling(envs_per_group=4, rollout_length=8),
    model=Model(hidden=(8,)), batch=BatchConfig(epochs=3, minibatches=2),
)  # fmt: skip
CARTPOLE = make_spec("gymnasium/CartPole-v1")


def preset(target):
    config = build(*target_layers(target), {})
    return config, make_spec(config.env.tasks[0], config.env.options)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("minatar/asterix", {}),
        ("gymnasium/CartPole-v1", {}),
        ("gymnasium/Hopper-v5", {}),
        ("atari/pong", {"protocol": "machado"}),
    ],
)
def test_raw_loop_steps_every_environment(name, settings):
    step = raw_loop(name, 3, 1, settings)
    assert [step() for _ in range(300)] == [3] * 300


@pytest.mark.envpool
def test_envpool_raw_loop_steps_every_environment():
    step = raw_loop("envpool/CartPole-v1", 3, 1, {})
    assert [step() for _ in range(100)] == [3] * 100


def test_roofline_uses_the_network_itself_without_a_plain_form():
    config, spec = preset("memory/tmaze")
    config = with_settings(config, {"model.core_size": 8, "model.hidden": (8,)})
    found = roofline(config, spec, 1, seconds=0.1)
    for line in (found.best_batch, found.these_batches):
        assert line.training.how.startswith("the network itself")
        assert "through sfactory's group" in line.environment.how
    assert found.arithmetic.training.seconds > 0


def test_roofline_does_not_depend_on_the_speed_of_sfactory(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the roofline used sfactory's own environments or networks")

    monkeypatch.setattr(module, "make_group", never)
    monkeypatch.setattr(plain_torch, "build_model", never)
    found = roofline(SMALL, CARTPOLE, 1, seconds=0.1)
    assert all(line.steps_per_second > 100 for line in (found.arithmetic, found.best_batch, found.these_batches))


def test_roofline_lines_add_the_costs_of_all_stages():
    found = roofline(SMALL, CARTPOLE, 2, seconds=0.1)
    assert found.passes == "3 x forward and backward + 1 forward"
    for line in (found.arithmetic, found.best_batch, found.one_pass):
        assert line.seconds == line.environment.seconds + line.inference.seconds + line.training.seconds
        assert line.steps_per_second == pytest.approx(2 / line.seconds)
    best, once = found.best_batch, found.one_pass
    assert best.training.seconds == pytest.approx(3 * once.training.seconds + best.inference.seconds)
    forward, training = plain_torch.flops_per_row(SMALL, CARTPOLE)
    ratio = found.arithmetic.training.seconds / found.arithmetic.inference.seconds
    assert ratio == pytest.approx((3 * training + forward) / forward)


def test_roofline_trains_on_replayed_rows_as_well():
    replay = with_settings(SMALL, {"replay.ratio": 2.0})
    found = roofline(replay, CARTPOLE, 2, seconds=0.1)
    assert found.passes == "3 x (3 x forward and backward + 1 forward)"
    forward, training = plain_torch.flops_per_row(SMALL, CARTPOLE)
    ratio = found.arithmetic.training.seconds / found.arithmetic.inference.seconds
    assert ratio == pytest.approx(3 * (3 * training + forward) / forward)
    best, once = found.best_batch, found.one_pass
    assert best.training.seconds == pytest.approx(3 * once.training.seconds + 3 * best.inference.seconds)
    assert "batches of 96," in found.these_batches.training.how  # 3 x 2 x 4 x 8 rows in 2 parts
    assert workload(replay) != workload(SMALL)


def test_roofline_counts_the_fast_passes_of_sfpo_and_the_auxiliary_epochs_of_ppg():
    once = with_settings(SMALL, {"batch.epochs": 1, "batch.minibatches": 1})
    fast = with_settings(once, {"optim.sfpo_steps": 2})
    ppg = with_settings(once, {"algorithm.name": "ppg", "ppg.phase_epochs": 4})
    assert roofline(once, CARTPOLE, 2, "cuda", seconds=0.1).passes == "1 x forward and backward"
    assert roofline(fast, CARTPOLE, 2, "cuda", seconds=0.1).passes == "3 x forward and backward + 1 forward"
    assert roofline(ppg, CARTPOLE, 2, "cuda", seconds=0.1).passes == "5 x forward and backward"
    assert len({workload(one) for one in (once, fast, ppg)}) == 3
    found = roofline(fast, CARTPOLE, 2, seconds=0.1)
    best = found.best_batch
    assert best.training.seconds == pytest.approx(3 * found.one_pass.training.seconds + best.inference.seconds)


def test_roofline_of_these_batches_is_limited_by_the_slowest_process():
    found = roofline(SMALL, CARTPOLE, 64, seconds=0.1, inference_rows=7)
    line = found.these_batches
    assert "batches of 7, 1 thread" in line.inference.how
    assert line.training.how.endswith("batches of 32, 1 thread, with loss and optimizer")  # 2 x 4 x 8 rows in 2 parts
    assert line.limits["inference"] == pytest.approx(1 / line.inference.seconds)
    assert line.limits["learner"] == pytest.approx(1 / line.training.seconds)
    assert line.limits["samplers"] == pytest.approx(1 / line.environment.seconds)
    assert line.limit == "learner", "64 cores do not make a learner with one thread faster"
    assert line.steps_per_second == line.limits["learner"] < 64 / line.seconds


def test_roofline_counts_only_the_environment_beside_a_gpu():
    config, spec = preset("minatar/breakout")
    found = roofline(config, spec, 2, "cuda", seconds=0.1)
    assert found.best_batch.steps_per_second == pytest.approx(2 / found.best_batch.environment.seconds)
    assert found.these_batches.limits["samplers"] == pytest.approx(1 / found.these_batches.environment.seconds)


def test_roofline_best_batch_is_the_cheapest_batch():
    cost = module._cheapest(SMALL, CARTPOLE, "forward", (512, 1), (1,), 0.1)
    assert cost.how == "fp32, batches of 512, 1 thread"
    assert cost.seconds == cost.wall < 1e-5


def test_roofline_uses_bf16_only_if_the_run_may():
    fp32 = roofline(SMALL, CARTPOLE, 1, seconds=0.1)
    assert "bf16" not in str(fp32)
    rate, how = matrix_products(1, (True,), 0.05)
    assert "bf16" in how
    assert rate > 1e8
    halves = Config(run=Run(precision="bf16"), env=SMALL.env, sampling=SMALL.sampling)
    assert module._precisions(halves) == (False, True), "the faster one counts"


def test_matrix_products_leave_out_what_onednn_lacks_on_this_processor(monkeypatch):
    """With AVX2 alone it has no products of bf16 matrices, and `sfactory bench --run.precision bf16` ended there."""

    def lacks_bf16(a, b):
        if a.dtype == torch.bfloat16:
            raise RuntimeError("could not create a primitive descriptor")
        return a @ b

    monkeypatch.setattr(module, "_onednn_product", lacks_bf16)
    module._onednn_has_bf16.cache_clear()
    try:
        assert "torch.mm, bf16" in matrix_products(1, (True,), 0.05)[1]
        assert matrix_products(1, (False,), 0.05)[0] > 0
    finally:
        module._onednn_has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("target", "rows"), [("minatar/breakout", n) for n in (8, 256, 300, 512, 2048)] + [("atari/pong", 64)]
)
def test_learner_threads_are_those_of_the_learner(target, rows):
    """A minibatch is divided into chunks, and a chunk is computed by one thread."""

    class Counted(ThreadPool):
        tasks = 0

        def map(self, task, count):
            self.tasks = count
            return super().map(task, count)

    config, spec = preset(target)
    pool = Counted(1)
    obs = {name: torch.zeros(1, rows, *leaf.shape) for name, leaf in spec.obs.items()}
    model = build_model(config, spec)
    network = ParallelNetwork(model, pool, contextlib.nullcontext, FlatParameters(list(model.parameters())))
    network.forward_eval(SimpleNamespace(obs=obs, first=torch.zeros(1, rows, dtype=torch.bool), state=None))
    assert learner_threads(config, spec, rows) == min(pool_size(config.run.learner_threads), pool.tasks)


def test_median_rate_is_neither_the_fastest_nor_the_mean_of_its_stretches():
    waits = iter([0.001, 0.001, 0.001, *[0.02] * 3, 0.3, *[0.02] * 100])

    def step():
        time.sleep(next(waits))
        return 1

    assert 0.015 < median_rate(step, 0.01 * module.STRETCHES) < 0.04


def test_median_rate_gives_up_and_does_not_repeat_long_calls():
    calls = []

    def step():
        calls.append(1)
        time.sleep(0.01)
        return 2

    assert median_rate(step, 10.0, give_up=1e-3) > 0.004
    assert len(calls) == 2
    median_rate(step, 0.001)
    assert len(calls) == 5, "one stretch of one call"


@pytest.mark.parametrize(("slow", "best"), [(64, 8), (8, 64)])
def test_environment_costs_are_measured_for_two_group_sizes(monkeypatch, slow, best):
    """64 MuJoCo environments exceed the cache; 8 of ale-py need more calls."""

    def loop(task, num_envs, seed, settings):
        def step():
            time.sleep(1e-3 * num_envs if num_envs == slow else 1e-4 * num_envs)
            return num_envs

        return step

    monkeypatch.setattr(module, "raw_loop", loop)
    by_size = module.environment_costs(Config(env=Env("minatar/breakout"), sampling=Sampling(envs_per_group=64)), 0.3)
    costs = {size: of_tasks["minatar/breakout"] for size, of_tasks in by_size.items()}
    assert set(costs) == {8, 64}
    assert min(costs.values()) == costs[best]
    assert costs[best].seconds < 5e-4 < 9e-4 < costs[slow].seconds
    assert costs[best].how == f"its library alone, {best} environments"


TWO_TASKS = Config(
    env=Env("gymnasium/CartPole-v1,gymnasium/CartPole-v0"), sampling=Sampling(1, 2, envs_per_group=4, rollout_length=8),
    batch=BatchConfig(epochs=1, minibatches=1), model=Model(hidden=(8,)),
)  # fmt: skip
ONE, OTHER = TWO_TASKS.env.tasks
SHARES = {ONE: 0.25, OTHER: 0.75}


def slow_loops(monkeypatch):
    """A step takes 1 ms in the first task and 3 ms in the second."""

    def loop(task, num_envs, seed, settings):
        return lambda: time.sleep(num_envs * (1e-3 if task == ONE else 3e-3)) or num_envs

    monkeypatch.setattr(module, "raw_loop", loop)


def test_roofline_of_several_tasks_has_their_mean_by_the_shares_in_which_they_are_stepped(monkeypatch):
    slow_loops(monkeypatch)
    found = roofline(TWO_TASKS, CARTPOLE, 2, seconds=0.4, task_shares=SHARES)
    here = found.these_batches
    assert found.tasks[ONE].share == 0.25
    assert found.tasks[OTHER].seconds > 2 * found.tasks[ONE].seconds
    mean = sum(each.share * each.seconds for each in found.tasks.values())
    assert here.environment.seconds == pytest.approx(mean)
    assert here.limits["samplers"] == pytest.approx(1 / mean), "one sampler steps both"
    assert here.environment.how == "mean of 2 tasks, each measured alone; its library alone, 4 environments"
    alike = roofline(TWO_TASKS, CARTPOLE, 2, "cuda", seconds=0.2)
    assert [each.share for each in alike.tasks.values()] == [0.5, 0.5]
    assert roofline(SMALL, CARTPOLE, 2, "cuda", seconds=0.1).tasks == {}


def test_busiest_sampler_is_that_of_the_task_with_most_work():
    costs = {ONE: Cost(1.0, ""), OTHER: Cost(3.0, "")}
    together = with_settings(TWO_TASKS, {"sampling.num_samplers": 2})
    apart = with_settings(together, {"sampling.groups_per_sampler": 1})
    assert busiest_sampler(together, costs, SHARES) == pytest.approx((0.25 + 2.25) / 2)
    assert busiest_sampler(apart, costs, SHARES) == pytest.approx(2.25), "the second sampler has only the slow task"
    assert busiest_sampler(apart, costs, equal_shares(apart)) == pytest.approx(1.5)
    alone = with_settings(apart, {"env.name": ONE})
    assert busiest_sampler(alone, {ONE: Cost(3.0, "")}, {ONE: 1.0}) == pytest.approx(1.5)


@pytest.mark.parametrize(("name", "together"), [("mpe/simple_spread", 3), ("classic/connect_four", 1)])
def test_raw_loop_of_agents_counts_those_that_act(name, together):
    step = raw_loop(f"pettingzoo/{name}", 4, 1, {})
    assert [step() for _ in range(60)] == [4 * together] * 60


@pytest.mark.envpool
def test_raw_loop_of_a_game_does_not_count_resets():
    step = raw_loop("envpool/ConnectFour-v1", 8, 1, {})
    counts = [step() for _ in range(300)]
    assert counts[:7] == [8] * 7  # none wins earlier
    assert min(counts) < 8
    assert 8 * 280 < sum(counts) < 8 * 299


@pytest.mark.parametrize(("name", "together"), [("mpe/simple_spread", 3), ("classic/connect_four", 1)])
def test_random_steps_counts_agents_that_act_and_obeys_masks(name, together):
    group = make_group(f"pettingzoo/{name}", 4, [1, 2, 3, 4])
    faults, plain = [], group.step
    group.step = lambda action: (done := plain(action), faults.extend(done.faults))[0]
    step = random_steps(group)
    counts = [step() for _ in range(60)]
    assert not faults
    assert set(counts) <= {k * together for k in range(5)}
    assert 0.9 < sum(counts) / (60 * 4 * together) < 1  # the others are resets


def test_roofline_of_agents_is_in_steps_of_agents_and_has_a_plain_network(monkeypatch):
    config, _ = preset("pettingzoo/mpe/simple_spread")
    monkeypatch.setattr(module, "raw_loop", lambda *words: lambda: time.sleep(0.003) or 24)
    config = with_settings(config, {"model.hidden": (8,), "sampling.envs_per_group": 8, "env.agent_id": False})
    spec = make_spec(config.env.name, config.env.options)
    found = roofline(config, spec, 1, seconds=0.3)
    assert 0.003 / 24 <= found.best_batch.environment.seconds < 0.003  # slow as this machine may be
    assert "the network itself" not in found.best_batch.training.how
    rows = config.sampling.num_groups * 8 * config.sampling.rollout_length * 3 // config.batch.minibatches
    assert f"batches of {rows}," in found.these_batches.training.how
    assert "batches of 24," in found.these_batches.inference.how
