"""Adam equals `torch.optim.Adam(fused=True)` bit for bit, and does not import the compiler of torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfactory.learning.adam import Adam
from sfactory.learning.flat import FlatParameters
from sfactory.learning.native_adam import NativeAdam


def parameters():
    draw = torch.Generator().manual_seed(3)
    shapes = (7, 5), (16, 3, 3, 3), (32,), (1,), (129, 33)
    found = [torch.randn(shape, generator=draw) for shape in shapes]
    found[1] = found[1].contiguous(memory_format=torch.channels_last)
    return [torch.nn.Parameter(x) for x in found]


def draw_gradients(all_parameters, seed, missing=()):
    draw = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(parameter.shape, generator=draw) for parameter in all_parameters]
    return [None if i in missing else gradient for i, gradient in enumerate(drawn)]


@pytest.mark.parametrize("missing", [(), (3,)], ids=["all", "one comes later"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_adam_equals_the_fused_adam_of_torch_bit_for_bit(tensor_lr, missing):
    mine, theirs = parameters(), parameters()
    flat = FlatParameters(mine)
    assert len(flat.stretches) < len(mine)
    lr = torch.tensor(1e-2) if tensor_lr else 1e-2
    one = Adam(flat, lr, (0.9, 0.99), 1e-5)
    other = torch.optim.Adam(theirs, lr=lr, betas=(0.9, 0.99), eps=1e-5, fused=True, capturable=False)
    for seed in range(6):
        skipped = torch.tensor(float(seed == 3))
        gradients = draw_gradients(theirs, seed, missing if seed < 2 else ())
        flat.set_gradients([gradients])
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = None if gradient is None else torch.empty_like(parameter).copy_(gradient)
        if seed == 4:
            if tensor_lr:
                lr.fill_(3e-3)
            else:
                one.lr = other.param_groups[0]["lr"] = 3e-3
        one.step(skipped)
        other.found_inf, other.grad_scale = skipped, None
        other.step()
        for x, y in zip(mine, theirs, strict=True):
            assert torch.equal(x, y)
    state = other.state_dict()["state"]
    assert one.state_dict().keys() == {f"{i}.{name}" for i in state for name in state[i]}
    for i in state:
        for name, value in state[i].items():
            assert torch.equal(one.state_dict()[f"{i}.{name}"], value), (i, name)
    assert float(one.state_dict()["0.step"]) == 5, "a skipped step is not counted"


@pytest.mark.parametrize("missing", [(), (3,)], ids=["all", "one comes later"])
def test_adam_continues_after_its_state_was_loaded(missing):
    mine, other = FlatParameters(parameters()), FlatParameters(parameters())
    one, two = Adam(mine, 1e-2, (0.9, 0.999), 1e-8), Adam(other, 1e-2, (0.9, 0.999), 1e-8)
    zero = torch.zeros(())
    for seed in range(3):
        mine.set_gradients([draw_gradients(mine.parameters, seed, missing if seed < 2 else ())])
        one.step(zero)
    other.values.copy_(mine.values)
    two.load_state_dict({name: value.contiguous() for name, value in one.state_dict().items()})
    assert two.state_dict().keys() == one.state_dict().keys()
    for seed in range(3, 5):
        for optimizer, each in ((one, mine), (two, other)):
            each.set_gradients([draw_gradients(each.parameters, seed)])
            optimizer.step(zero)
    assert torch.equal(mine.values, other.values)
    two.load_state_dict({})
    assert two.state_dict() == {}, "a checkpoint written before the first step"


UPDATE = """
import sys
sys.path.insert(0, sys.argv[1])
from update_helpers import make_batch, make_update
update = make_update()
update.run(make_batch(update), 0, 0.0)
assert "torch._dynamo" not in sys.modules, "1.7 s at the start of every learner"
assert "torch._inductor" not in sys.modules
"""


def test_update_does_not_import_the_compiler():
    done = subprocess.run(
        [sys.executable, "-c", UPDATE, str(Path(__file__).parent)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_native_adam_takes_the_steps_of_adam():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((7, 5), (3,), (40, 40))]
    flats = [FlatParameters([torch.nn.Parameter(x.clone()) for x in start]) for _ in range(2)]
    optimizers = [kind(flat, 1e-2, (0.9, 0.999), 1e-5) for kind, flat in zip((Adam, NativeAdam), flats, strict=True)]
    for step, size in enumerate((1.0, 1e-3, 1e3, float("nan"), 0.1, 0.0)):
        limit = 0.5 if step % 2 else 0.0
        gradients = [[size * torch.randn(x.shape)] for x in start]
        results = []
        for flat, optimizer in zip(flats, optimizers, strict=True):
            flat.set_gradients([[gradient[0] for gradient in gradients]])
            results.append(optimizer.clip_and_step(limit))
        torch.testing.assert_close(results[1], results[0], equal_nan=True)
        torch.testing.assert_close(flats[1].values, flats[0].values, rtol=1e-5, atol=1e-6)
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    assert states[1]["0.step"] == 5.0
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, rtol=1e-4, atol=1e-6)


def test_native_adam_continues_a_state_with_different_steps():
    flats = [FlatParameters([torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4))]) for _ in range(2)]
    state = {
        f"{i}.{name}": torch.full((size,), 0.1) for i, size in enumerate((3, 4)) for name in ("exp_avg", "exp_avg_sq")
    }
    state |= {"0.step": torch.tensor(3.0), "1.step": torch.tensor(9.0)}
    for kind, flat in zip((Adam, NativeAdam), flats, strict=True):
        optimizer = kind(flat, 1e-2, (0.9, 0.999), 1e-5)
        optimizer.load_state_dict(state)
        flat.set_gradients([[torch.ones(3), torch.ones(4)]])
        optimizer.clip_and_step(0.5)
    assert torch.equal(flats[0].values, flats[1].values)
