"""Linear through oneDNN equals `nn.Linear`; scaled images equal the bytes divided by 255."""

import pytest
import torch
from torch import nn

from sfactory.model import linear
from sfactory.model.encoders import FEW_CHANNELS, scaled
from sfactory.model.linear import FEW_ROWS, LARGE, Linear, onednn_is_faster

torch.set_num_threads(1)
ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
SHAPES = [(256, 128), (1024, 128), (131, 257)]


@pytest.fixture
def onednn(monkeypatch):
    """Force oneDNN on every processor (torch's own product if this torch has none) and record the calls."""
    calls, real = [], linear._product if ONEDNN else nn.functional.linear

    def product(x, weight, bias):
        calls.append(tuple(x.shape))
        return real(x, weight, bias)

    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "_product", product)
    return calls


def twins(inputs, outputs, bias=True):
    torch.manual_seed(0)
    ours, plain = Linear(inputs, outputs, bias), nn.Linear(inputs, outputs, bias)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("lead", [(FEW_ROWS,), (33,), (5, 9)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_outputs_and_gradients_equal_nn_linear(onednn, shape, bias, lead):
    ours, plain = twins(*shape, bias)
    assert ours.weight.numel() >= LARGE
    x = torch.randn(*lead, shape[0])
    results = []
    for layer in (ours, plain):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.square().sum().backward()
        results.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters())])
    assert len(onednn) == 3  # forward, and the gradients of input and weight
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_linear_computes_only_required_gradients(onednn):
    ours, _ = twins(*SHAPES[0])
    x = torch.randn(FEW_ROWS, 256)
    ours(x).sum().backward()
    assert len(onednn) == 2  # the input is the observation
    with torch.no_grad():
        ours(x)
    assert len(onednn) == 3
    ours.weight.requires_grad_(False)
    ours.bias.grad = None
    ours(x).sum().backward()
    assert len(onednn) == 4
    assert ours.bias.grad is not None


def test_linear_uses_torch_for_all_other_inputs(onednn):
    ours, plain = twins(*SHAPES[0])
    x = torch.randn(FEW_ROWS, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    assert torch.equal(ours.double()(x.double()), plain.double()(x.double()))
    small, small_plain = twins(16, 16)
    assert torch.equal(small(x[:, :16]), small_plain(x[:, :16]))
    assert Linear(256, 128).to("meta")(x.to("meta")).shape == (FEW_ROWS, 128)
    for few in (x[:0], x[0], x[: FEW_ROWS - 1]):  # no row, no row axis, too few rows
        assert torch.equal(Linear.forward(ours.float(), few), plain.float()(few))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ours(x[:, 1:])
    rows = torch.export.Dim("N", min=1)
    program = torch.export.export(Linear(256, 128), (x,), dynamic_shapes=({0: rows},))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    assert onednn == []


def test_linear_results_do_not_depend_on_the_number_of_rows(onednn):
    """Inference and learner have different batch sizes; their log-probabilities must agree to 1e-4."""
    ours, _ = twins(1024, 128)
    x = torch.randn(512, 1024)
    with torch.no_grad():
        whole, parts = ours(x), torch.cat([ours(part) for part in x.split(100)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("cpuinfo", "capability", "faster"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
        ("CPU architecture: 8\n", "DEFAULT", False),
    ],
)
def test_onednn_is_faster_depends_on_the_processor_only(monkeypatch, tmp_path, cpuinfo, capability, faster):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{cpuinfo}")
    assert onednn_is_faster(file) is (faster and ONEDNN)
    assert onednn_is_faster(tmp_path / "nothing") is False


@pytest.mark.parametrize("channels", [1, 3, 4, FEW_CHANNELS + 1])
@pytest.mark.parametrize("bf16", [False, True])
def test_scaled_images_are_bytes_divided_by_255_in_channels_last_memory(channels, bf16):
    obs = torch.randint(0, 256, (5, channels, 12, 9), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        x = scaled(obs)
    assert x.is_contiguous(memory_format=torch.channels_last) or channels == 1
    assert torch.equal(x, obs.to(x.dtype).div(255.0))
    assert x.dtype == (torch.bfloat16 if bf16 else torch.float32)
