"""Observation spaces other than one Box."""

import numpy as np
from base import Task, case
from gymnasium import spaces

F = np.float32
NUMBERS = spaces.Box(-1, 1, (3,), F)


@case("obs/t: vector of 1 float32 -> mlp, normalized", "obs/x: vector of 3 float32 -> mlp, normalized")
class Scalar(Task):
    obs = spaces.Dict(t=spaces.Box(0, 1, (), F), x=NUMBERS)


@case("obs: vector of 1 float32 -> mlp, normalized")
class ScalarOnly(Task):
    obs = spaces.Box(0, 1, (), F)


@case("obs/0: Discrete(3), one-hot: vector of 3 bool -> mlp", "obs/1: vector of 1 float32 -> mlp, normalized")
class TupleWithScalar(Task):
    obs = spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (), F)))


@case("obs/n: vector of 1 int64, 0 to 9 -> mlp, normalized")
class ScalarInteger(Task):
    obs = spaces.Dict(n=spaces.Box(0, 9, (), np.int64), x=NUMBERS)


@case("obs/b: vector of 3 float32 -> mlp, normalized", "obs/a: left out")
class ZeroLeaf(Task):
    obs = spaces.Dict(a=spaces.Box(-1, 1, (0,)), b=NUMBERS)


@case("obs/b: vector of 3 float32 -> mlp, normalized", "obs/a: left out")
class ZeroPicture(Task):
    obs = spaces.Dict(a=spaces.Box(0, 255, (0, 84, 84), np.uint8), b=NUMBERS)


@case(code=2, says="no number")
class ZeroOnly(Task):
    obs = spaces.Box(-1, 1, (0,))


@case(code=2, says="no number")
class EmptyDict(Task):
    obs = spaces.Dict({})


@case("obs: Discrete(5), one-hot: vector of 5 bool -> mlp")
class Category(Task):
    obs = spaces.Discrete(5)


@case("obs: Discrete(5), one-hot: vector of 5 bool -> mlp")
class CategoryFromMinusTwo(Task):
    obs = spaces.Discrete(5, start=-2)


@case("obs: Discrete(100000), binary digits: vector of 17 bool -> mlp")
class ManyCategories(Task):
    obs = spaces.Discrete(100_000)


@case("vector of 5 bool -> mlp")
class SeveralCategories(Task):
    obs = spaces.MultiDiscrete([2, 3])


@case("vector of 14 bool -> mlp")
class CategoriesInTwoDimensions(Task):
    obs = spaces.MultiDiscrete([[2, 3], [4, 5]])


@case("vector of 37 bool -> mlp")
class SeveralManyCategories(Task):
    obs = spaces.MultiDiscrete([100_000, 1_000_000])


@case("vector of 6 bool -> mlp")
class BinaryMatrix(Task):
    obs = spaces.MultiBinary((2, 3))


@case(code=2, says="--env.drop mission")
@case(
    "obs/image: grid 7x7x3 uint8, channels last -> minatar CNN, normalized",
    "obs/direction: Discrete(4), one-hot: vector of 4 bool -> mlp",
    flags=("--env.drop", "mission"),
)
class Mission(Task):
    obs = spaces.Dict(
        image=spaces.Box(0, 10, (7, 7, 3), np.uint8), direction=spaces.Discrete(4), mission=spaces.Text(30)
    )


@case(code=2, says="--env.drop graph")
@case("obs/x: vector of 3 float32 -> mlp, normalized", flags=("--env.drop", "graph"))
class WithGraph(Task):
    obs = spaces.Dict(graph=spaces.Graph(NUMBERS, None), x=NUMBERS)


@case(code=2, says="--env.drop a/words")
@case("obs/a/x: vector of 3 float32 -> mlp, normalized", flags=("--env.drop", "a/words"))
class Nested(Task):
    obs = spaces.Dict(a=spaces.Dict(words=spaces.Sequence(spaces.Discrete(3)), x=NUMBERS), b=spaces.Discrete(2))


@case(code=2, says="is not supported")
class TextOnly(Task):
    obs = spaces.Text(10)


@case(code=2, says="nothing", flags=("--env.drop", "nothing"))
class DropUnknown(Task):
    obs = spaces.Dict(x=NUMBERS)


@case(code=6, says="it may hold 0 and 1")
class BinaryWithTwo(Task):
    obs = spaces.MultiBinary(3)

    def look(self):
        return np.array([0, 2, 1], np.int8)


@case(code=2, says="expected one leaf of shape (5,)")
class MaskInParts(Task):
    obs = spaces.Dict(x=NUMBERS, action_mask=spaces.Tuple((spaces.MultiBinary(2), spaces.MultiBinary(3))))
    actions = spaces.MultiDiscrete([2, 3])


@case(code=2, says="--env.drop action_mask")
@case("obs/x: vector of 3 float32 -> mlp, normalized", flags=("--env.drop", "action_mask"))
class MaskOfABox(Task):
    obs = spaces.Dict(x=NUMBERS, action_mask=spaces.MultiBinary(3))
    actions = spaces.Box(-1, 1, (2,), np.float32)
