"""The precision of a run: what auto decides, what it measures, what it leaves alone."""

from dataclasses import replace

import pytest
import torch
from fake_accelerator import FakeAccelerator

from sfactory.config import Config, Env, Model, Run, Sampling, with_settings
from sfactory.envs import ActionLeaf, EnvSpec, Leaf
from sfactory.learning import precision as module
from sfactory.learning.network import build_model
from sfactory.learning.precision import Cost, choose_precision, decide, measure

torch.set_num_threads(1)
IMAGES = EnvSpec(
    name="faults/count",
    obs={"obs": Leaf((1, 36, 36), "uint8")},
    actions={"action": ActionLeaf((), "int64", "discrete", (3,))},
)
CONFIG = Config(
    env=Env("faults/count"), run=Run(device="cpu"), sampling=Sampling(1, 2, 4, 8, 2), model=Model(hidden=(16,))
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "BUDGET_S", 0.0)
    monkeypatch.setattr(module, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(module, "cpu_flags", lambda: {"avx512_bf16"})


def chosen(config=CONFIG, recorded=""):
    return choose_precision(config, IMAGES, build_model(config, IMAGES), None, recorded)


def with_run(**settings):
    return replace(CONFIG, run=replace(CONFIG.run, **settings))


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_choose_precision_takes_what_the_settings_name(name):
    assert chosen(with_run(precision=name), recorded="fp32") == (name, "")


def test_choose_precision_measures_image_encoders_and_logs_the_figures():
    name, line = chosen()
    assert name in ("fp32", "bf16")
    assert line.startswith(f"precision: {name}, ")
    assert "times as fast" in line
    assert "us per row" in line


@pytest.mark.parametrize(
    "config",
    [
        with_run(mode="lockstep"),
        replace(CONFIG, model=Model(encoder="mlp", hidden=(16,))),
        replace(CONFIG, model=Model(hidden=(16,), core="gru", core_size=4)),
    ],
    ids=["lockstep", "mlp", "gru"],
)
def test_choose_precision_keeps_fp32_without_measuring(config, monkeypatch):
    monkeypatch.setattr(module, "measure", None)
    assert chosen(config) == ("fp32", "")


def test_choose_precision_measures_nothing_on_a_processor_without_bf16_instructions(monkeypatch):
    monkeypatch.setattr(module, "cpu_flags", lambda: {"avx512f"})
    monkeypatch.setattr(module, "measure", None)
    name, line = chosen()
    assert name == "fp32"
    assert "has no bf16 instructions" in line


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_choose_precision_keeps_the_recorded_choice_of_a_resumed_run(name, monkeypatch):
    monkeypatch.setattr(module, "measure", None)
    assert chosen(recorded=name) == (name, f"precision: {name}, as in the checkpoint")
    assert chosen(with_run(mode="lockstep"), recorded=name).name == name


def test_decide_takes_bf16_only_if_it_is_clearly_faster():
    config = replace(CONFIG, batch=replace(CONFIG.batch, epochs=4, minibatches=2))
    assert Cost(10.0, 100.0).of_step(config) == 2 * 10.0 + 4 * 100.0
    fp32 = Cost(10e-6, 100e-6)
    assert decide(config, fp32, Cost(5e-6, 50e-6), "this GPU (H)") == (
        "bf16",
        "precision: bf16, 2.00 times as fast as fp32 on this GPU (H); us per row, fp32 and bf16: "
        "inference 10.0 and 5.0, learner 100.0 and 50.0",
    )
    assert decide(config, fp32, Cost(9.5e-6, 95e-6), "")[0] == "fp32"
    assert decide(config, fp32, Cost(20e-6, 200e-6), "this GPU (H)").line.startswith(
        "precision: fp32, bf16 is 0.50 times as fast on this GPU (H)"
    )


def test_decide_counts_the_passes_over_replayed_rows():
    """Where acting is slower in bf16 and learning faster, replay decides: it adds passes of the learner only."""
    plain = replace(CONFIG, batch=replace(CONFIG.batch, epochs=1, minibatches=2))
    replayed = with_settings(plain, {"replay.ratio": 2.0})
    assert Cost(10.0, 100.0).of_step(replayed) == 10.0 + 3 * (10.0 + 100.0)
    fp32, bf16 = Cost(10e-6, 20e-6), Cost(12e-6, 14e-6)
    assert decide(plain, fp32, bf16, "").name == "fp32"
    assert decide(replayed, fp32, bf16, "").name == "bf16"


@pytest.mark.parametrize("agents", [(), ("left", "right")])
def test_measure_passes_as_many_rows_as_a_minibatch_has_with_replay_and_agents(agents, monkeypatch):
    monkeypatch.setattr(module, "PASS_S", 100.0)
    rows, draw = [], module._observations
    monkeypatch.setattr(module, "_observations", lambda *given: rows.append(given[1]) or draw(*given))
    spec = replace(IMAGES, agents=agents)
    assert spec.rows == max(1, len(agents))
    measure(with_settings(CONFIG, {"replay.ratio": 1.0}), spec, build_model(CONFIG, IMAGES))
    acting, learning = CONFIG.sampling.envs_per_group, 2 * CONFIG.batch_rows // CONFIG.batch.minibatches
    assert set(rows) == {module.FEWEST_ROWS, acting * spec.rows, learning * spec.rows}


@pytest.mark.parametrize("accelerator", [None, FakeAccelerator(), FakeAccelerator(may_record=False)])
def test_measure_leaves_the_network_and_the_random_numbers_as_they_were(accelerator):
    model, fresh = (build_model(CONFIG, IMAGES) for _ in range(2))
    before = torch.random.get_rng_state()
    costs = measure(CONFIG, IMAGES, model, accelerator)
    assert all(seconds > 0.0 for cost in costs for seconds in cost)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    for (name, kept), expected in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(kept, expected), name


def test_measure_runs_every_pass_in_its_own_precision(monkeypatch):
    """One network, four passes: forward in fp32 and bf16, forward and backward in fp32 and bf16."""
    seen = []

    def hook(layer, inputs, output):
        seen.append((len(output), torch.is_grad_enabled(), output.dtype))

    model = build_model(CONFIG, IMAGES)
    handle = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(hook)
    measure(CONFIG, IMAGES, model)
    handle.remove()
    assert set(seen[-4:]) == {(rows, grad, dtype) for rows, grad in ((4, False), (64, True)) for dtype in
                              (torch.float32, torch.bfloat16)}  # fmt: skip
