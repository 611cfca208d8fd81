"""Publishing weights, at once or a fixed number of updates late."""

import numpy as np
import pytest
import torch

from sfactory.shm.mailbox import NOTHING
from sfactory.workers.publisher import Publisher


class Weights:
    """A network of two weights that are the number of updates."""

    value = 0.0

    def flat_size(self):
        return 2

    def write_flat(self, out):
        out.fill_(self.value)


class FakeMailbox:
    """The two buffers of a mailbox without versions in shared memory."""

    def __init__(self):
        self.buffers, self.published = np.zeros((2, 2), np.float32), []

    def version(self):
        return self.published[-1][0] if self.published else NOTHING

    def begin(self, version):
        return self.buffers[0]

    def finish(self, version):
        self.published.append((version, float(self.buffers[0, 0])))


def publish_all(publisher, updates):
    for number in updates:
        publisher.model.value = float(number)
        publisher.publish(number)
    return publisher.mailbox.published


@pytest.mark.parametrize(
    ("lag", "published"),
    [(0, [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]), (2, [(0, 0.0), (1, 1.0)]), (9, [(0, 0.0)])],
)
def test_publisher_publishes_the_weights_of_forced_lag_updates_ago_once(lag, published):
    rings = []
    publisher = Publisher(Weights(), FakeMailbox(), lambda: rings.append(1), forced_lag=lag)
    assert publish_all(publisher, range(4)) == published
    assert len(rings) == len(published)


def test_publisher_after_a_resume_without_old_weights_publishes_the_oldest_it_has():
    publisher = Publisher(Weights(), FakeMailbox(), lambda: None, forced_lag=2)
    assert publish_all(publisher, range(10, 15)) == [(10, 10.0), (11, 11.0), (12, 12.0)]


def test_restored_publisher_continues_with_the_weights_it_held_back():
    one, other = (Publisher(Weights(), FakeMailbox(), lambda: None, forced_lag=2) for _ in range(2))
    publish_all(one, range(4))
    state = one.state_dict()
    assert [(version, weights.tolist()) for version, weights in state["held_back"]] == [
        (1, [1.0, 1.0]), (2, [2.0, 2.0]), (3, [3.0, 3.0]),
    ]  # fmt: skip
    other.load_state_dict(state)
    assert other.mailbox.buffers.tolist() == one.mailbox.buffers.tolist()
    assert publish_all(other, [4]) == [(2, 2.0)]


def test_publisher_on_a_gpu_copies_weights_through_pinned_memory():
    class Accelerator:
        def pinned(self, tensor):
            self.memory = tensor.clone()
            return self.memory

    accelerator = Accelerator()
    publisher = Publisher(Weights(), FakeMailbox(), lambda: None, accelerator)
    assert publish_all(publisher, [7]) == [(7, 7.0)]
    assert torch.equal(accelerator.memory, torch.full((2,), 7.0))
