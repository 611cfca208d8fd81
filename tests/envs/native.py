"""Checks for groups of native vector environments."""

import numpy as np


def resets_after_an_illegal_action(group):
    """Give an illegal action to the second of two environments with six actions."""
    step = group.step({"action": np.array([0, 6])})
    assert [fault.env for fault in step.faults] == [1]
    assert "illegal action [[6]]" in step.faults[0].message
    assert not step.valid.any()
    assert step.first.all()
    assert group.step({"action": np.array([0, 5])}).valid.all()
