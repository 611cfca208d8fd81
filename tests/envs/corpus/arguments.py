"""Constructors: settings, names like ours, factories, wrappers and numbers per copy."""

import gymnasium
from base import Task, case


def settings(**values):
    return tuple(word for name, value in values.items() for word in (f"--env.settings.{name.replace('_', '-')}", value))


@case(flags=settings(env_id="y", num_envs="3", seeds="4", exact="true", name="me", id="i", vectorization_mode="sync"))
class NamesLikeOurs(Task):
    def __init__(self, env_id="", num_envs=1, seeds=0, exact=False, name="", id="", vectorization_mode=""):
        super().__init__()
        got = env_id, num_envs, seeds, exact, name, id, vectorization_mode
        assert got == ("y", 3, 4, True, "me", "i", "sync"), got


@case(flags=("--env.settings.config.vehicles", "5", "--env.settings.none", "None", "--env.settings.off", "false"))
class Tables(Task):
    def __init__(self, config=None, none=1, off=True):
        super().__init__()
        assert (config, none, off) == ({"vehicles": 5}, None, False), (config, none, off)


@case(code=2, says="takes no 'speed'", flags=settings(speed="3"))
class NoArguments(Task):
    pass


@case()
def factory():
    return Task()


@case(code=2, says="gymnasium.Env")
def returns_nothing():
    return None


@case(flags=settings(port="50{index}"))
class Indexed(Task):
    taken: set = set()  # noqa: RUF012  # shared by all copies on purpose

    def __init__(self, env_index, port):
        super().__init__()
        assert port == f"50{env_index}", (port, env_index)
        assert env_index not in self.taken, f"{env_index} is taken"
        self.index = env_index
        self.taken.add(env_index)

    def close(self):
        self.taken.discard(self.index)


def doubled(env):
    """A wrapper as a function."""
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2 * reward)


@case(
    "obs: vector of 6 (2x3) float32 -> mlp, normalized",
    flags=(
        "--env.wrappers", "arguments:doubled,FrameStackObservation",
        "--env.wrapper-settings.FrameStackObservation.stack-size", "2",
    ),
)  # fmt: skip
@case(code=2, says="FrameStackObservation", flags=("--env.wrappers", "FrameStackObservatio"))
class Wrapped(Task):
    pass
