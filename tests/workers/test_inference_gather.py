"""On a GPU, inference waits a moment for the requests of more groups; on a CPU it never does."""

import threading
import time

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator, use_on_all_workers
from test_hand_over import make_run_spec
from test_inference_kills import Learner

from sfactory.workers.inference import Inference
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import SharedState
from sfactory.workers.worker import ListSink

torch.set_num_threads(1)
SAMPLERS, GROUPS = 3, 2


@pytest.fixture
def make_workers(tmp_path, monkeypatch):
    """Inference on an accelerator with published weights, and samplers that have requested nothing yet."""
    opened = []

    def make(accelerator, **settings):
        use_on_all_workers(accelerator, monkeypatch)
        shared = SharedState.create(make_run_spec(tmp_path, SAMPLERS, GROUPS))
        inference = Inference(shared, ListSink(), **settings)
        Learner(shared, np.zeros(inference.model.flat_size(), np.float32))
        samplers = [Sampler(index, shared, ListSink()) for index in range(SAMPLERS)]
        for sampler in samplers:
            sampler.step()  # the environments; the next step requests actions
        opened.extend([*samplers, shared])
        return inference, samplers

    yield make
    for one in opened:
        one.close()


def responses(inference):
    return int((inference.slot_table.response_words != 0).sum())


def test_inference_on_a_gpu_waits_until_it_has_as_many_requests_as_samplers(make_workers):
    inference, samplers = make_workers(FakeAccelerator())
    inference.gather_s = 60.0
    samplers[0].step()
    late = threading.Timer(0.05, samplers[1].step)
    late.start()
    start = time.monotonic()
    assert inference.step()
    late.join()
    assert responses(inference) > GROUPS
    assert time.monotonic() - start < 30.0  # it does not wait for the third sampler
    assert inference.stages.seconds["wait"] >= 0.02


def test_inference_on_a_gpu_responds_to_few_groups_when_the_time_is_over(make_workers):
    inference, samplers = make_workers(FakeAccelerator())
    inference.gather_s, usual = 60.0, inference.gather_s
    assert not inference.step(), "it waits in its loop, for the doorbell, while there is no request at all"
    inference.gather_s = usual
    samplers[0].step()
    assert inference.step()
    assert responses(inference) == GROUPS


@pytest.mark.parametrize(("accelerator", "settings"), [(None, {}), (FakeAccelerator(), {"whole_batch": True})])
def test_inference_on_a_cpu_or_in_lockstep_responds_at_once(make_workers, accelerator, settings):
    inference, samplers = make_workers(accelerator, **settings)
    inference.gather_s = 60.0
    samplers[0].step()
    start = time.monotonic()
    assert inference.step()
    assert time.monotonic() - start < 30.0
    assert responses(inference) == GROUPS
    assert "wait" not in inference.stages.seconds
