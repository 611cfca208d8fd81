"""Passes in chunks: gradients equal those of one pass, and to the bit for any number of threads."""

import copy
from typing import NamedTuple

import pytest
import torch

from sfactory.device.selection import precision
from sfactory.device.thread_pool import ThreadPool
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning import parallel_network as module
from sfactory.learning.flat import FlatParameters
from sfactory.learning.parallel_network import ParallelNetwork
from sfactory.model.actor_critic import ActorCritic

torch.set_num_threads(1)
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (3,))}
FP32 = precision("fp32", torch.device("cpu"))
T, B = 5, 12


class Rows(NamedTuple):
    obs: dict[str, torch.Tensor]
    first: torch.Tensor
    state: torch.Tensor | None


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "FEW_ROWS", 8)
    monkeypatch.setattr(module, "MANY_ROWS", 16)


def network(threads=1, core="none"):
    torch.manual_seed(0)
    size = 6 if core != "none" else 0
    model = ActorCritic({"obs": Leaf((4,), "float32")}, ACTIONS, hidden=(16,), core=core, core_size=size)
    return ParallelNetwork(model, ThreadPool(threads), FP32, FlatParameters(list(model.parameters())))


def inputs(core="none"):
    g = torch.Generator().manual_seed(1)
    first = torch.zeros(T, B, dtype=torch.bool)
    first[2, ::3] = True
    state = torch.randn(B, 6 if core == "gru" else 12, generator=g) if core != "none" else None
    return {"obs": torch.randn(T, B, 4, generator=g)}, first, state


def loss_of(out):
    return (out.params.square().sum(-1) * out.value).sum() + out.value.sum()


@pytest.mark.parametrize("core", ["none", "gru", "lstm"])
def test_parallel_network_gradients_equal_those_of_one_pass(core):
    net, arguments = network(3, core), inputs(core)
    out = net.forward_train(Rows(*arguments))
    loss_of(out).backward()
    net.backward()
    actual = [p.grad.clone() for p in net.flat.parameters]
    reference = net.model.unroll(*arguments)
    assert torch.allclose(reference.params, out.params, atol=1e-6)
    expected = torch.autograd.grad(loss_of(reference), net.flat.parameters)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    evaluated = net.forward_eval(Rows(*arguments))
    assert torch.equal(evaluated.value, out.value)
    assert not evaluated.value.requires_grad


@pytest.mark.parametrize(
    ("encoder", "shape", "dtype"), [("minatar", (10, 10, 4), "bool"), ("nature", (4, 36, 36), "uint8")]
)
def test_parallel_network_with_fused_adam_moves_every_weight_as_plain_autograd_does(encoder, shape, dtype):
    """Fused Adam reads a gradient in the memory order of its parameter; tensor comparisons ignore that order."""
    torch.manual_seed(0)
    model = ActorCritic({"obs": Leaf(shape, dtype)}, ACTIONS, encoder=encoder, hidden=(8,))
    plain = copy.deepcopy(model)
    obs = {"obs": torch.randint(0, 2, (T, B, *shape)).to(getattr(torch, dtype))}
    first = torch.zeros(T, B, dtype=torch.bool)
    net = ParallelNetwork(model, ThreadPool(2), FP32, FlatParameters(list(model.parameters())))
    for one in (model, plain):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1, eps=1e-3, fused=True)
        out = net.forward_train(Rows(obs, first, None)) if one is model else one.unroll(obs, first)
        loss_of(out).backward()
        if one is model:
            net.backward()
        optimizer.step()
    for (name, actual), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("core", ["none", "gru"])
def test_parallel_network_gradients_are_equal_to_the_bit_for_any_number_of_threads(core):
    grads = []
    for threads in (1, 2, 5):
        net = network(threads, core)
        loss_of(net.forward_train(Rows(*inputs(core)))).backward()
        net.backward()
        grads.append([p.grad.clone() for p in net.flat.parameters])
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_parallel_network_gives_no_gradient_to_a_parameter_that_no_output_depends_on():
    net = network()
    unused = torch.nn.Parameter(torch.ones(2))
    net.flat = FlatParameters([*net.model.parameters(), unused])
    loss_of(net.forward_train(Rows(*inputs()))).backward()
    net.backward()
    assert unused.grad is None
    assert all(p.grad is not None for p in net.model.parameters())


def test_parallel_network_divides_large_batches_into_many_chunks(monkeypatch):
    monkeypatch.undo()
    net = network()

    def chunks(rows, shape=(4,)):
        return len(net._bounds({"obs": torch.zeros(1, rows, *shape)}, torch.Size((1, rows)))) - 1

    assert (chunks(64), chunks(256), chunks(512), chunks(4096), chunks(65536)) == (1, 1, 2, 8, 128)
    assert (chunks(16, (4, 84, 84)), chunks(128, (4, 84, 84)), chunks(2048, (4, 84, 84))) == (1, 2, 14)


def test_parallel_network_divides_a_batch_on_a_gpu_only_to_limit_its_memory():
    net = network()

    def chunks(rows, shape):
        return len(net._bounds({"obs": torch.empty(1, rows, *shape, device="meta")}, torch.Size((1, rows)))) - 1

    assert (chunks(64, (4,)), chunks(1 << 20, (10, 10, 4)), chunks(16384, (4, 84, 84))) == (1, 1, 1)
    assert chunks(65536, (4, 84, 84)) == 4


@pytest.mark.parametrize("core", ["none", "gru"])
def test_parallel_network_differentiates_a_loss_that_uses_one_output_only(core):
    net, arguments = network(2, core), inputs(core)
    net.forward_train(Rows(*arguments)).params.square().sum().backward()
    net.backward()
    reference = net.model.unroll(*arguments).params.square().sum()
    expected = torch.autograd.grad(reference, net.flat.parameters, allow_unused=True)
    for (name, parameter), b in zip(net.model.named_parameters(), expected, strict=True):
        if b is None:
            assert parameter.grad is None, name
        else:
            assert torch.allclose(parameter.grad, b, rtol=1e-4, atol=1e-6), name
