"""Published numbers are whole, whatever the writer does while they are read."""

import numpy as np
import pytest

from sfactory.shm.arena import Arena
from sfactory.shm.published import Published, published_layout

SIZE = 6


@pytest.fixture
def arena():
    arena = Arena.create(published_layout(SIZE))
    yield arena
    arena.close()


class Interrupted:
    """Buffers of which the first copies are made in two halves, with publications in between."""

    def __init__(self, buffers, between, times):
        self.buffers, self.between, self.times = buffers, between, times

    def __getitem__(self, index):
        outer = self

        class Buffer:
            def copy(self):
                if not outer.times:
                    return outer.buffers[index].copy()
                outer.times -= 1
                first = outer.buffers[index][: SIZE // 2].copy()
                outer.between()
                return np.concatenate([first, outer.buffers[index][SIZE // 2 :]])

        return Buffer()


@pytest.mark.parametrize("publications", [1, 2, 3])
def test_published_numbers_are_whole_if_the_writer_publishes_while_they_are_copied(arena, publications):
    writer, reader = Published(arena), Published(arena)
    writer.write(np.full(SIZE, 1.0))
    values = iter(range(2, 100))

    def publish():
        for _ in range(publications):
            writer.write(np.full(SIZE, float(next(values))))

    reader._buffers = Interrupted(reader._buffers, publish, times=2)
    found = reader.read()
    assert len(set(found.tolist())) == 1, found
    assert found[0] == 1 + 2 * publications, "the newest"


def test_published_numbers_are_those_before_if_the_writer_is_killed_in_the_middle(arena):
    writer, reader = Published(arena), Published(arena)
    assert reader.read().tolist() == [0.0] * SIZE
    writer.write(np.full(SIZE, 5.0))
    arena["published"][0, :3] = 7.0  # the next publication, not announced
    assert reader.read().tolist() == [5.0] * SIZE
