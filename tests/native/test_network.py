import copy
import itertools

import pytest
import torch

from sfactory.device.thread_pool import ThreadPool
from sfactory.envs import ActionLeaf, Leaf
from sfactory.model.actor_critic import ActorCritic
from sfactory.native import network as module
from sfactory.native.network import CHUNK, NativeNetwork, unsupported

DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
SEVERAL = {"a": ActionLeaf((2,), "int64", "discrete", (2, 5)), "b": ActionLeaf((), "int64", "discrete", (40,))}
BOX = {"action": ActionLeaf((3,), "float32", "box", (3,))}
GRID, VECTOR, COUNTS = Leaf((10, 10, 4), "bool"), Leaf((11,), "float32"), Leaf((7,), "uint8")
BITS, OWN = ((0.0,), (1.0,)), ((0.0,) * 7, (1.0, 2.0, 3.0, 4.0, 5.0, 200.0, 0.0))  # bounds
NETWORKS = {
    "grid": (GRID, DISCRETE, dict(encoder="minatar")),
    "grid of bytes": (
        Leaf((5, 8, 3), "uint8", *BITS),
        DISCRETE,
        dict(encoder="minatar", hidden=(20, 30), activation="tanh"),
    ),
    "grid, separate critic": (GRID, DISCRETE, dict(encoder="minatar", separate=True)),
    "grid without hidden layers": (GRID, DISCRETE, dict(encoder="minatar", hidden=())),
    "vector": (VECTOR, DISCRETE, dict(hidden=(64, 64), activation="tanh")),
    "vector without hidden layers": (VECTOR, DISCRETE, dict(hidden=())),
    "vector of bytes": (COUNTS, DISCRETE, dict(hidden=(33,))),
    "vector of bits": (Leaf((7,), "uint8", *BITS), DISCRETE, dict(hidden=(33,))),
    "bytes with their own bounds": (Leaf((7,), "uint8", *OWN), DISCRETE, dict(hidden=(33,))),
    "normalized bytes": (COUNTS, DISCRETE, dict(hidden=(33,), normalize_obs=True)),
    "one number": (Leaf((), "float32"), DISCRETE, dict(hidden=(33,), normalize_obs=True)),
    "several heads": (VECTOR, SEVERAL, dict(hidden=(130, 17), activation="relu")),
    "control": (VECTOR, BOX, dict(hidden=(64, 64), activation="tanh", separate=True, normalize_obs=True)),
    "control, shared": (VECTOR, BOX, dict(hidden=(16,), normalize_obs=True)),
    "grid with a mask": (GRID, DISCRETE, dict(encoder="minatar", mask="mask")),
    "several heads with a mask": (VECTOR, SEVERAL, dict(hidden=(16,), separate=True, mask="mask")),
}


def make(name, seed=0):
    """A network whose biases, deviations and statistics are not those of the start."""
    torch.manual_seed(seed)
    leaf, actions, settings = NETWORKS[name]
    size = sum(sum(action.sizes) for action in actions.values())
    masks = {"mask": Leaf((size,), "int8")} if "mask" in settings else {}
    model = ActorCritic({"obs": leaf, **masks}, actions, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    for leaf_name in model.normalized:
        model.set_normalizer(leaf_name, torch.randn(leaf.shape), torch.rand(leaf.shape) + 0.1)
    return model


def observations(leaf, rows, seed=1):
    g = torch.Generator().manual_seed(seed)
    if leaf.dtype == "float32":
        return 2.0 * torch.randn(rows, *leaf.shape, generator=g)
    if leaf.dtype == "bool":
        return torch.rand(rows, *leaf.shape, generator=g) < 0.1
    return torch.randint(0, 3, (rows, *leaf.shape), generator=g, dtype=torch.uint8)


def masks(model, rows, seed=3):
    """An action mask for every row that allows the first action of every head, or None."""
    if not model.mask:
        return None
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 2, (rows, model.distribution.num_params), generator=g, dtype=torch.int8)
    for part in model.distribution.parts:
        mask[:, [part.params.start + sum(part.sizes[:head]) for head in range(len(part.sizes))]] = 1
    return mask


def flat(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def native(model, threads=1):
    network = NativeNetwork(model, ThreadPool(threads))
    network.pack(flat(model), backward=True)
    return network


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [1, 13, CHUNK, 2 * CHUNK + 45, 10 * CHUNK])
def test_native_network_equals_the_torch_network_forward_and_backward(name, rows):
    model = make(name)
    leaf = observations(NETWORKS[name][0], 1500)
    index = torch.randperm(1500, generator=torch.Generator().manual_seed(2))[:rows].contiguous()
    network, mask = native(model), masks(model, 1500)
    params, value = network.forward(leaf, index, rows, keep=True, mask=mask)

    exact = copy.deepcopy(model).double()
    chosen = model._read({"obs": leaf[index]})["obs"]  # scaled in float32 by both
    x = _features(exact, chosen, {} if mask is None else {"mask": mask[index]})
    torch.testing.assert_close(params.double(), x[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(value.double(), x[1], rtol=2e-5, atol=2e-5)

    params_grad, value_grad = torch.randn(params.shape) / rows, torch.randn(rows) / rows
    gradient = torch.full_like(flat(model), torch.nan)
    network.backward(params_grad, value_grad, gradient)
    expected = torch.autograd.grad(x, list(exact.parameters()), [params_grad.double(), value_grad.double()])
    expected = torch.cat([part.reshape(-1) for part in expected])
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-4, atol=2e-5 * float(expected.abs().max()))


def _features(model, obs, leaves):
    """Outputs in float64: the encoders convert to float32, so their layers are called one by one."""

    def encode(trunk):
        encoder = trunk.encoders[0]
        x = obs.double()
        if hasattr(encoder, "conv"):
            x = encoder.conv(x.permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
        return encoder.layers(x.reshape(len(x), -1))

    x = encode(model.trunk)
    y = x if model.critic is None else encode(model.critic)
    return model._params(model.policy_head(x), leaves), model.value_head(y).squeeze(-1)


def test_native_network_with_a_mask_blocks_actions_and_has_equal_logits_where_a_head_allows_none():
    model, network = make("several heads with a mask"), native(make("several heads with a mask"))
    leaf, mask = observations(VECTOR, 3), torch.ones(3, 47, dtype=torch.uint8)
    mask[0], mask[1, 2:7], mask[2, 3] = 0, 0, 0  # nothing, nothing in the second head, all but one action
    free = network.forward(leaf, None, 3, keep=False)[0].clone()
    params, _ = network.forward(leaf, None, 3, keep=True, mask=mask)
    assert torch.equal(params[:2, 2:7], torch.zeros(2, 5))
    assert torch.equal(params[0], torch.zeros(47))
    assert torch.equal(params[1, mask[1] != 0], free[1, mask[1] != 0])
    assert params[2, 2:7].softmax(-1)[1] == 0.0
    expected = model({"obs": leaf, "mask": mask}, None, torch.zeros(3, dtype=torch.bool)).params
    for head in slice(0, 2), slice(2, 7), slice(7, 47):
        torch.testing.assert_close(params[:, head].softmax(-1), expected[:, head].softmax(-1))


@pytest.mark.parametrize("name", ["grid", "control"])
def test_native_network_gives_a_row_the_same_bits_in_every_batch(name):
    model = make(name)
    network, leaf = native(model), observations(NETWORKS[name][0], 300)
    params, value = network.forward(leaf, None, 300, keep=False)
    for rows in (1, 5, 16, 131):
        index = torch.arange(7, 7 + rows)
        some_params, some_value = network.forward(leaf, index, rows, keep=True)
        assert torch.equal(some_params, params[index])
        assert torch.equal(some_value, value[index])


@pytest.mark.parametrize("name", ["grid", "control"])
@pytest.mark.parametrize("chunks", [5, 10])  # fewer and more than there are shares
def test_threads_of_a_native_network_do_not_change_a_bit(name, chunks, monkeypatch):
    monkeypatch.setattr(module, "SHARED_FLOPS", 0)
    model, rows = make(name), chunks * CHUNK + 3
    leaf, results = observations(NETWORKS[name][0], rows), []
    params_grad, value_grad = torch.randn(rows, model.distribution.num_params), torch.randn(rows)
    for threads in (1, 3):
        network = native(model, threads)
        params, value = network.forward(leaf, None, rows, keep=True)
        gradient = torch.zeros_like(flat(model))
        network.backward(params_grad, value_grad, gradient)
        results.append((params, value, gradient))
        network.pool.close()
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_native_network_reads_and_writes_parameters_at_their_offsets():
    model = make("control")
    sizes = [parameter.numel() for parameter in model.parameters()]
    offsets = [offset + 5 * number for number, offset in enumerate(itertools.accumulate(sizes[:-1], initial=0))]
    spread = torch.zeros(offsets[-1] + sizes[-1])
    for parameter, offset in zip(model.parameters(), offsets, strict=True):
        spread[offset : offset + parameter.numel()] = parameter.detach().reshape(-1)
    dense, loose = native(model), NativeNetwork(model, ThreadPool(1), offsets)
    loose.pack(spread, backward=True)
    leaf, gradients = observations(VECTOR, 40), []
    for network, size in ((dense, sum(sizes)), (loose, len(spread))):
        params, value = network.forward(leaf, None, 40, keep=True)
        gradients.append(torch.zeros(size))
        network.backward(torch.ones_like(params), torch.ones_like(value), gradients[-1])
    for parameter, at, offset in zip(model.parameters(), itertools.accumulate(sizes, initial=0), offsets, strict=False):
        assert torch.equal(gradients[0][at : at + parameter.numel()], gradients[1][offset : offset + parameter.numel()])


@pytest.mark.parametrize("name", ["grid", "control"])
def test_native_network_keeps_its_weights_when_their_source_is_overwritten(name):
    """As inference: a copy of weights that turns out to be torn is garbage, and the previous weights go on acting."""
    model = make(name)
    network, leaf, source = NativeNetwork(model, ThreadPool(1)), observations(NETWORKS[name][0], 20), flat(model)
    network.pack(source)
    expected = network.forward(leaf, None, 20, keep=False)
    source.fill_(torch.nan)
    for found, before in zip(network.forward(leaf, None, 20, keep=False), expected, strict=True):
        assert torch.equal(found, before)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_native_network_passes_on_what_is_not_finite(activation):
    torch.manual_seed(0)
    model = ActorCritic({"obs": VECTOR}, DISCRETE, hidden=(16,), activation=activation)
    leaf = observations(VECTOR, 3)
    leaf[1, 2] = torch.nan
    params, value = native(model).forward(leaf, None, 3, keep=False)
    assert params.isfinite().all(1).tolist() == [True, False, True]
    assert value.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("size", [1e-6, 0.1, 0.6, 0.63, 3.0, 9.4, 9.6, 80.0, 1e30])
def test_tanh_of_the_native_network_is_that_of_torch(size):
    model = ActorCritic({"obs": Leaf((1,), "float32")}, DISCRETE, hidden=(1,), activation="tanh")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.trunk.encoders[0].layers[0].weight.fill_(1.0)
        model.value_head.weight.fill_(1.0)
    leaf = torch.tensor([[size], [-size]])
    _, value = native(model).forward(leaf, None, 2, keep=False)
    torch.testing.assert_close(value, torch.tanh(leaf[:, 0]), rtol=3e-7, atol=0.0)


def test_unsupported_names_what_the_kernels_do_not_know():
    def reason(obs=VECTOR, actions=DISCRETE, **settings):
        leaves = obs if isinstance(obs, dict) else {"obs": obs}
        return unsupported(ActorCritic(leaves, actions, **settings))

    assert all(unsupported(make(name)) == "" for name in NETWORKS)
    bounded = ActionLeaf((1,), "float32", "box", (1,), low=(-1.0,), high=(1.0,))
    assert reason(core="gru", core_size=4) == "a recurrent core"
    assert reason(actions={"action": bounded}, squash=True) == "squashed actions"
    assert reason(actions={**DISCRETE, "b": bounded}) == "continuous actions of several leaves"
    assert reason({"a": VECTOR, "b": VECTOR}) == "observations of several leaves"
    assert reason(Leaf((4, 84, 84), "uint8")) == "the encoder Nature"
    assert reason(Leaf((3,), "float64")) == "observations of type float64"
    assert reason(Leaf((3,), "int64")) == "observations of type int64"
    assert reason(Leaf((10, 10, 4), "float32")) == "observations of type float32"
    assert reason(Leaf((7, 7, 3), "uint8"), normalize_obs=True) == "a grid that is normalized"
    assert reason(Leaf((7, 7, 3), "uint8")) == "a grid that is scaled or transposed"
    assert reason(Leaf((3, 10, 10), "bool")) == "a grid that is scaled or transposed"
    assert reason(actions={"a": ActionLeaf((), "int32", "discrete", (3,))}) == "actions of type int32"
    assert reason(actions={"a": ActionLeaf((2,), "float64", "box", (2,))}) == "actions of type float64"
    assert reason(hidden=(4,) * 8) == "more than 7 fully connected layers"
    for shape in ((4, 4, 65), (40, 40, 1)):
        assert reason(Leaf(shape, "bool"), encoder="minatar") == "pictures of {} x {} x {}".format(*shape)
    assert module._unsupported_picture(4, 64, 33) == "pictures of 4 x 64 x 33"


def test_native_network_shares_a_chunk_with_other_threads_only_if_it_is_worth_it():
    small, large = (NativeNetwork(make(name), ThreadPool(2)) for name in ("control", "grid"))
    assert (small.threads, large.threads) == (1, 2)
    for network in (small, large):
        network.pool.close()
