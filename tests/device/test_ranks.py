"""The place of a process in a job, read from the environment."""

from pathlib import Path

import pytest
from ranks_helpers import variables

from sfactory.device.ranks import ALONE, Ranks
from sfactory.errors import SettingError


def test_ranks_of_a_process_without_torchrun_or_with_one_rank_are_those_of_a_single_learner():
    assert Ranks.from_env({}) == Ranks.from_env({"WORLD_SIZE": "4"}) == ALONE
    assert Ranks.from_env(variables(0, 1, 29500)) == ALONE
    assert (ALONE.alone, ALONE.is_leader, ALONE.share(5)) == (True, True, 5)


def test_ranks_are_read_from_the_variables_of_torchrun():
    second_node = {**variables(5, 8, 29500), "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    ranks = Ranks.from_env(second_node)
    assert ranks == Ranks(5, 8, 1, 4)
    assert (ranks.alone, ranks.is_leader, ranks.name) == (False, False, "rank 5 of 8")
    assert ranks.folder(Path("runs/a")) == Path("runs/a/rank-5")
    assert Ranks(0, 8, 0, 4).folder(Path("runs/a")) == Path("runs/a")


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_ranks_with_a_missing_variable_are_refused_by_its_name(missing):
    found = {name: value for name, value in variables(1, 2, 29500).items() if name != missing}
    with pytest.raises(SettingError, match=f"WORLD_SIZE is 2, but {missing} is not set"):
        Ranks.from_env(found)


@pytest.mark.parametrize(("name", "value"), [("RANK", "2"), ("RANK", "-1"), ("LOCAL_RANK", "2"), ("RANK", "x")])
def test_ranks_that_are_no_ranks_are_refused(name, value):
    with pytest.raises(SettingError, match="RANK"):
        Ranks.from_env({**variables(1, 2, 29500), name: value})


@pytest.mark.parametrize(
    ("local", "size", "nodes", "expected"),
    [(0, 2, 2, [0]), (1, 2, 2, [1]), (0, 2, 4, [0, 1]), (1, 2, 4, [2, 3]), (3, 4, 2, [1]), (2, 3, 4, [2, 3])],
)
def test_ranks_divide_cores_and_numa_nodes_of_their_machine(local, size, nodes, expected):
    ranks = Ranks(local, size, local, size)
    assert ranks.nodes([frozenset([node]) for node in range(nodes)]) == [frozenset([node]) for node in expected]
    assert ranks.share(8) == 8 // size
    assert ranks.share(1) == 1
