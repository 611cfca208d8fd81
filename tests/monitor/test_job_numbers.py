"""Episodes and lags of all ranks of a job, from the sum of one vector per rank."""

import numpy as np
import pytest

from sfactory.device.ranks import ALONE, Ranks
from sfactory.monitor.episodes import Episodes
from sfactory.monitor.job_numbers import EXACT_LAGS, JobNumbers
from sfactory.monitor.lag import lag_row


def filled(*counts, offset=0.0):
    """Episodes of as many tasks as there are counts."""
    episodes = Episodes(len(counts))
    for task, count in enumerate(counts):
        episodes.add([(offset + 0.1 * number + 100 * task, 1 + number, task) for number in range(count)])
    return episodes


def together(all_episodes, all_lags=None):
    """What every rank reads from the sum of all vectors."""
    world = len(all_episodes)
    jobs = [JobNumbers(Ranks(rank, world, rank, world), len(all_episodes[0].returns)) for rank in range(world)]
    lags = all_lags or [{}] * world
    vectors = [job.own(*own) for job, *own in zip(jobs, all_episodes, lags, strict=True)]
    assert {len(vector) for vector in vectors} == {jobs[0].size}
    assert np.count_nonzero(vectors, axis=0).max() <= 1, "each number is written by one rank"
    first, *others = [job.read(np.sum(vectors, axis=0)) for job in jobs]
    assert all(other == first for other in others)
    merged = Episodes(len(all_episodes[0].returns))
    merged.set_state(first.episodes)
    return merged, first.lags


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_training_return_of_a_job_is_the_mean_of_a_hundred_episodes_equally_many_of_each_rank(world):
    ranks = [filled(100 + 20 * rank, offset=10.0 * rank) for rank in range(world)]
    merged, _ = together(ranks)
    assert merged.settled
    assert merged.count == sum(episodes.count for episodes in ranks)
    newest = []
    for rank, episodes in enumerate(ranks):
        share = 100 * (rank + 1) // world - 100 * rank // world
        assert abs(share - 100 / world) < 1
        newest += list(episodes.returns[0])[-share:]
    assert merged.training_return == np.mean(newest)
    assert list(merged.returns[0]) == newest, "to the bit"


def test_training_return_of_a_job_is_not_settled_while_a_rank_has_too_few_episodes():
    merged, _ = together([filled(100), filled(49)])
    assert (merged.in_mean, merged.settled_return) == (99, None)
    assert together([filled(100), filled(50)])[0].settled
    assert together([filled(0), filled(0)])[0].training_return is None


def test_returns_of_a_job_with_several_tasks_are_kept_apart():
    merged, _ = together([filled(3, 0, 130), filled(0, 0, 4)])
    assert [len(returns) for returns in merged.returns] == [3, 0, 54]
    assert len(merged.lengths) == 54  # 50 of the first rank
    assert merged.training_return == np.mean([np.mean(returns) for returns in merged.returns if returns])


def test_episodes_of_a_job_are_complete_only_if_those_of_all_ranks_are():
    ranks = [filled(3), filled(3)]
    assert together(ranks)[0].complete
    ranks[1].complete = False
    assert not together(ranks)[0].complete


@pytest.mark.parametrize("world", [1, 2, 3, 64, 128])
@pytest.mark.parametrize("count", [0, 7, 100, 250])
def test_ranks_that_go_on_from_the_episodes_of_a_job_have_the_same_ones_together(world, count):
    """Also with another number of ranks than before."""
    stored = filled(count, 5)
    parts = [stored.of_rank(Ranks(rank, world, rank, world)) for rank in range(world)]
    merged, _ = together(parts)
    if world <= 100:
        assert merged.state() == stored.state()
    assert merged.count == stored.count
    assert sum(len(part.returns[0]) for part in parts) == len(stored.returns[0])
    assert stored.of_rank(ALONE).state() == stored.state()


def test_lags_of_a_job_are_those_of_all_steps():
    _, lags = together([filled(0)] * 2, [{0: 30, 3: 10}, {0: 1, 16: 2}])
    assert lags == {0: 31, 3: 10, 16: 2}
    row = lag_row({"sampler-0": {0: 30, 3: 10}}, {9: 5}, of_job=lags)  # those of steps of replay are among them
    assert (row["lag/mean"], row["lag/max"], row["lag/mean/sampler-0"]) == ((30 + 32) / 43, 16.0, 0.75)


def test_large_lags_of_a_job_keep_their_mean_number_and_maximum():
    own = [{EXACT_LAGS: 3, 20: 4, 90: 1}, {EXACT_LAGS + 1: 1}]
    _, lags = together([filled(0)] * 2, own)
    assert sum(lags.values()) == 9
    assert sum(lag * steps for lag, steps in lags.items()) == 3 * EXACT_LAGS + 4 * 20 + 90 + EXACT_LAGS + 1
    assert max(lags) == 90
    assert min(lags) >= EXACT_LAGS, "in the same bin of the histogram"
