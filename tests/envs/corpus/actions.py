"""Action spaces. `Task.step` asserts that every action is in the space."""

import numpy as np
from base import Task, case
from gymnasium import spaces


@case()
class FromMinusOne(Task):
    actions = spaces.Discrete(3, start=-1)


@case()
class Several(Task):
    actions = spaces.MultiDiscrete([2, 3])


@case()
class InTwoDimensions(Task):
    actions = spaces.MultiDiscrete([[2, 3], [4, 5]])


@case()
class Binary(Task):
    actions = spaces.MultiBinary(4)


@case()
class BinaryMatrix(Task):
    actions = spaces.MultiBinary((2, 3))


@case()
class ScalarBox(Task):
    actions = spaces.Box(-1, 1, (), np.float32)


@case()
class Doubles(Task):
    actions = spaces.Box(-1, 1, (2,), np.float64)


@case()
class Matrix(Task):
    actions = spaces.Box(-1, 1, (2, 2), np.float32)


@case()
class UnboundedBox(Task):
    actions = spaces.Box(-np.inf, np.inf, (2,), np.float32)


@case()
class IntegerBox(Task):
    actions = spaces.Box(-10, 10, (1,), np.int64)


@case()
class IntegerMatrix(Task):
    actions = spaces.Box(0, 3, (2, 2), np.int32)


@case()
class Bytes(Task):
    actions = spaces.Box(0, 255, (2,), np.uint8)


@case(code=2, says="Box(")
class LargeIntegers(Task):
    actions = spaces.Box(-(2**40), 2**40, (1,), np.int64)


@case(code=2, says="has no numbers")
class Nothing(Task):
    actions = spaces.Box(-1, 1, (0,), np.float32)


@case()
class Nested(Task):
    actions = spaces.Dict(turn=spaces.Discrete(3), drive=spaces.Tuple((spaces.Box(0, 1, (1,)), spaces.MultiBinary(2))))

    def reward(self, action):
        return float(action["turn"] == 1)


@case(code=2, says="is not supported")
class Words(Task):
    actions = spaces.Text(5)


@case(code=2, says="is not supported")
class SequenceOfChoices(Task):
    actions = spaces.Sequence(spaces.Discrete(3))
