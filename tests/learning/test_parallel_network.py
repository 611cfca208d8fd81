"""Parts of a pass: whoever computes them, the gradients are those of the whole and the same to the bit."""

import copy

import pytest
import torch

from sfactory.device.selection import precision
from sfactory.device.thread_pool import ThreadPool
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning import parallel_network as module
from sfactory.learning.parallel_network import ParallelNetwork
from sfactory.model.actor_critic import ActorCritic

torch.set_num_threads(1)
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (3,))}
FP32 = precision("fp32", torch.device("cpu"))
T, B = 5, 12


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "FEW_ROWS", 8)
    monkeypatch.setattr(module, "MANY_ROWS", 16)


def network(threads=1, core="none"):
    torch.manual_seed(0)
    size = 6 if core != "none" else 0
    model = ActorCritic({"obs": Leaf((4,), "float32")}, ACTIONS, hidden=(16,), core=core, core_size=size)
    return ParallelNetwork(model, ThreadPool(threads), FP32)


def inputs(core="none"):
    g = torch.Generator().manual_seed(1)
    first = torch.zeros(T, B, dtype=torch.bool)
    first[2, ::3] = True
    state = torch.randn(B, 6 if core == "gru" else 12, generator=g) if core != "none" else None
    return {"obs": torch.randn(T, B, 4, generator=g)}, first, state


def loss_of(out):
    return (out.params.square().sum(-1) * out.value).sum() + out.value.sum()


@pytest.mark.parametrize("core", ["none", "gru", "lstm"])
def test_gradients_of_parts_are_those_of_the_whole(core):
    net, given = network(3, core), inputs(core)
    out = net.forward_train(*given)
    loss_of(out).backward()
    net.backward()
    got = [p.grad.clone() for p in net.parameters]
    whole = net.model.unroll(*given)
    assert torch.allclose(whole.params, out.params, atol=1e-6)
    want = torch.autograd.grad(loss_of(whole), net.parameters)
    for g, w in zip(got, want, strict=True):
        assert torch.allclose(g, w, rtol=1e-4, atol=1e-6)
    looked = net.forward_eval(*given)
    assert torch.equal(looked.value, out.value)
    assert not looked.value.requires_grad


@pytest.mark.parametrize(
    ("encoder", "shape", "dtype"), [("minatar", (10, 10, 4), "bool"), ("nature", (4, 36, 36), "uint8")]
)
def test_an_update_with_fused_adam_moves_every_weight_as_plain_autograd_does(encoder, shape, dtype):
    """The same numbers in another order of memory are the same gradient to every test but the optimizer's."""
    torch.manual_seed(0)
    model = ActorCritic({"obs": Leaf(shape, dtype)}, ACTIONS, encoder=encoder, hidden=(8,))
    plain = copy.deepcopy(model)
    obs = {"obs": torch.randint(0, 2, (T, B, *shape)).to(getattr(torch, dtype))}
    first = torch.zeros(T, B, dtype=torch.bool)
    net = ParallelNetwork(model, ThreadPool(2), FP32)
    for one in (model, plain):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1, eps=1e-3, fused=True)
        out = net.forward_train(obs, first, None) if one is model else one.unroll(obs, first)
        loss_of(out).backward()
        if one is model:
            net.backward()
        optimizer.step()
    for (name, got), want in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("core", ["none", "gru"])
def test_the_number_of_threads_changes_no_bit(core):
    grads = []
    for threads in (1, 2, 5):
        net = network(threads, core)
        loss_of(net.forward_train(*inputs(core))).backward()
        net.backward()
        grads.append([p.grad for p in net.parameters])
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_a_parameter_that_no_output_depends_on_gets_no_gradient():
    net = network()
    net.parameters.append(torch.nn.Parameter(torch.ones(2)))
    loss_of(net.forward_train(*inputs())).backward()
    net.backward()
    assert net.parameters[-1].grad is None


def test_parts_are_many_where_the_batch_is_large_and_one_where_it_is_small(monkeypatch):
    monkeypatch.undo()
    net = network()

    def parts(rows, shape=(4,)):
        return len(net._bounds({"obs": torch.zeros(1, rows, *shape)}, torch.Size((1, rows)))) - 1

    assert (parts(64), parts(256), parts(512), parts(4096), parts(65536)) == (1, 1, 2, 8, 128)
    assert (parts(16, (4, 84, 84)), parts(128, (4, 84, 84)), parts(2048, (4, 84, 84))) == (1, 2, 14)


def test_a_gpu_gets_everything_at_once_unless_that_is_too_much_for_its_memory():
    net = network()

    def parts(rows, shape):
        return len(net._bounds({"obs": torch.empty(1, rows, *shape, device="meta")}, torch.Size((1, rows)))) - 1

    assert (parts(64, (4,)), parts(1 << 20, (10, 10, 4)), parts(16384, (4, 84, 84))) == (1, 1, 1)
    assert parts(65536, (4, 84, 84)) == 4
