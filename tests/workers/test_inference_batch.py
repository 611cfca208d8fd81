"""Batches of inference on an accelerator: places, buckets, padding, on the fake one that runs operations late."""

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator
from torch import nn

from sfactory.device.accelerator import DIRECT_BYTES
from sfactory.workers.inference_batch import ALIGN, CpuBatch, GpuBatch, buckets

torch.set_num_threads(1)
E = 4
WIDE = DIRECT_BYTES // 4 // E  # floats of a row, so that a group's rows are just large enough for a copy of their own


class Doubling:
    """A forward pass that keeps its inputs."""

    def __init__(self):
        self.linear = nn.Linear(WIDE, 2)
        self.seen = []

    @torch.inference_mode()
    def __call__(self, inputs):
        self.seen.append({name: x.clone() for name, x in inputs.items()})
        return {"value": self.linear(inputs["wide"]) + inputs["small"], "twice": inputs["small"].long() * 2}


def batches_on(late, groups=5, **settings):
    inputs = {"wide": np.zeros((groups * E, WIDE), np.float32), "small": np.zeros((groups * E, 1), np.float32)}
    forward, plain = Doubling(), Doubling()
    plain.linear.load_state_dict(forward.linear.state_dict())
    forward.linear.to(late.device)
    device = GpuBatch(forward, inputs, E, late, **{"direct": getattr(late, "may_register", True), **settings})
    host = CpuBatch(plain, {name: x.copy() for name, x in inputs.items()}, E)
    return device, host, forward


@pytest.mark.parametrize("may_record", [True, False])
@pytest.mark.parametrize("may_register", [True, False])
def test_gpu_batch_returns_the_outputs_of_the_cpu_batch(may_register, may_record):
    """For every number of groups, and independent of the previous batch."""
    lines = []
    late = FakeAccelerator(may_register, may_record)
    device, host, _ = batches_on(late, log=lines.append)
    assert ("wide" in device.direct) is may_register
    assert "small" not in device.direct
    draws = np.random.default_rng(0)
    for groups in (5, 1, 3, 2, 5, 4, 1):
        for place in range(groups):
            rows = {"wide": draws.random((E, WIDE), np.float32), "small": draws.random((E, 1), np.float32)}
            for name, x in rows.items():
                device.stage(name, place, x)
                host.stage(name, place, x)
        actual, expected = device.run(groups), host.run(groups)
        for name, x in expected.items():
            assert x.shape == actual[name].shape
            assert x.dtype == actual[name].dtype
            np.testing.assert_allclose(actual[name], x, rtol=1e-5, atol=1e-6)
    assert late.recordings == (4 if may_record else 0)
    assert lines == ([] if may_record else ["inference is not recorded: not here"])


@pytest.mark.parametrize("may_register", [True, False])
def test_gpu_batch_pads_with_zeros(may_register):
    device, _, forward = batches_on(FakeAccelerator(may_register, may_record=False))
    ones = {"wide": np.ones((E, WIDE), np.float32), "small": np.ones((E, 1), np.float32)}
    for groups, bucket in ((5, 5), (3, 4), (1, 1), (2, 2)):
        for place in range(groups):
            for name, x in ones.items():
                device.stage(name, place, x)
        device.run(groups)
        for x in forward.seen[-1].values():
            assert len(x) == bucket * E
            assert bool((x[: groups * E] == 1).all())
            assert bool((x[groups * E :] == 0).all())


@pytest.mark.parametrize("may_register", [True, False])
def test_gpu_batch_copies_once_each_way_besides_direct_leaves(may_register):
    class Counting(FakeAccelerator):
        copies = 0

        def copy(self, target, source):
            self.copies += 1
            super().copy(target, source)

    late = Counting(may_register, may_record=False)
    device, _, _ = batches_on(late)
    late.copies = 0
    for place in range(3):
        device.stage("wide", place, np.ones((E, WIDE), np.float32))
        device.stage("small", place, np.ones((E, 1), np.float32))
    device.run(3)
    assert late.copies == 2 + (3 if may_register else 0)


def test_gpu_batch_packs_leaves_of_every_type_and_odd_size():
    rows, draws = 4 * E, np.random.default_rng(0)
    inputs = {
        "bytes": np.zeros((rows, 7), np.uint8),
        "flags": np.zeros(rows, bool),
        "wide": np.zeros((rows, 3), np.float64),
        "half": np.zeros((rows, 2, 5), np.float16),
        "count": np.zeros(rows, np.int64),
    }

    @torch.inference_mode()
    def forward(tensors):
        return {**{f"{name}_out": x.clone() for name, x in tensors.items()}, "turned": tensors["half"].transpose(1, 2)}

    device = GpuBatch(forward, inputs, E, FakeAccelerator(), direct=False)
    for upload in device.uploads.values():
        assert all(x.storage_offset() * x.itemsize % ALIGN == 0 for x in upload.tensors.values())
    for groups in (4, 1, 3, 2):
        given = {name: draws.integers(0, 2, (groups * E, *x.shape[1:])).astype(x.dtype) for name, x in inputs.items()}
        for place in range(groups):
            for name, x in given.items():
                device.stage(name, place, x[place * E : place * E + E])
        outputs = device.run(groups)
        np.testing.assert_array_equal(outputs.pop("turned"), given["half"].transpose(0, 2, 1))
        for name, x in given.items():
            assert outputs[f"{name}_out"].dtype == x.dtype
            np.testing.assert_array_equal(outputs[f"{name}_out"], x)


def test_gpu_batch_uses_new_weights_in_the_next_run():
    """A recorded graph reads the weights by address, so they are changed in place."""
    device, _, forward = batches_on(FakeAccelerator())
    device.stage("wide", 0, np.ones((E, WIDE), np.float32))
    before = device.run(1)["value"].copy()
    with torch.no_grad():
        forward.linear.weight.mul_(2.0)
        forward.linear.bias.mul_(2.0)
    device.stage("wide", 0, np.ones((E, WIDE), np.float32))
    np.testing.assert_allclose(device.run(1)["value"], 2 * before, rtol=1e-5)


def test_buckets_are_powers_of_two_and_all_groups():
    assert buckets(1) == [1]
    assert buckets(2) == [1, 2]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(12) == [1, 2, 4, 8, 12]
    device, _, _ = batches_on(FakeAccelerator(), groups=6, whole=True)
    assert device.buckets == [6]
