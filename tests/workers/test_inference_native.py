"""The rows that a turn of the native kernels reads and writes, against the slot table's own words."""

import numpy as np

from sfactory.native.library import load
from sfactory.shm.slots import Request, pack, unpack

GROUPS, SLOTS, STEPS, ENVS = 5, 3, 7, 4


def test_rows_of_requests_are_those_of_their_group_slot_and_step():
    draw = np.random.default_rng(1)
    requests = [Request(int(draw.integers(1, 2**38)), int(draw.integers(SLOTS)), t) for t in (0, 6, 3, 6, 1)]
    words = np.array([pack(request) for request in requests])
    assert [unpack(word) for word in words] == requests
    groups, observed, written = np.array([4, 0, 3]), *np.full((2, GROUPS * ENVS), -1)
    versions = np.zeros((GROUPS, SLOTS, STEPS), np.int64)
    load().sf_rows(
        groups.ctypes.data, len(groups), words.ctypes.data, SLOTS, STEPS, ENVS,
        observed.ctypes.data, written.ctypes.data, versions.ctypes.data, 9,
    )  # fmt: skip
    for found, steps in ((observed, STEPS + 1), (written, STEPS)):
        numbers = np.arange(GROUPS * SLOTS * steps * ENVS).reshape(GROUPS, SLOTS, steps, ENVS)
        expected = [numbers[group, requests[group].slot, requests[group].t] for group in groups]
        np.testing.assert_array_equal(found[: 3 * ENVS], np.concatenate(expected))
        assert (found[3 * ENVS :] == -1).all()
    expected = np.zeros_like(versions)
    for group in groups:
        expected[group, requests[group].slot, requests[group].t] = 9
    np.testing.assert_array_equal(versions, expected)
