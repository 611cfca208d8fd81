"""Two processes with half a batch each against one with the whole batch, over gloo."""

import sys

import learner_process
import numpy as np
import pytest
import torch
from forked_processes import ForkedCommand
from learner_process import SETTINGS, stale_rows, train, valid_of
from ranks_helpers import start_ranks
from update_helpers import make_update

from sfactory.algo.loss import effective_sample_size, explained_variance
from sfactory.device.accelerator import WARM

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes found, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, learner_process.__file__, str(folder)]
    processes = start_ranks([command] * 2, popen=ForkedCommand)
    for process in processes:
        assert process.wait(100) == 0
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


@pytest.fixture(scope="module")
def one():
    return train(make_update(**SETTINGS), slice(None))


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_first_gradient_of_two_learners_is_that_of_one_with_the_whole_batch(ranks, one):
    assert relative(ranks[0]["gradient"], one["gradient"]) < 1e-6
    assert (ranks[0]["gradient"] == ranks[1]["gradient"]).all()


def test_weights_and_statistics_of_two_learners_stay_close_to_one_for_50_updates(ranks, one):
    names = [name for name in one if name.startswith(("model.", "normalizers.", "optimizer."))]
    assert len(names) > 30
    for name in names:
        assert ranks[0][name] == pytest.approx(one[name], rel=1e-3, abs=2e-5), name


def test_two_learners_have_the_same_weights_statistics_and_metrics_bit_for_bit(ranks):
    names = [name for name in ranks[0] if name.startswith(("model.", "normalizers.", "optimizer.", "metric."))]
    assert len(names) > 40
    for name in names:
        assert ranks[0][name].tobytes() == ranks[1][name].tobytes(), name


def test_metrics_of_two_learners_are_close_to_those_of_one(ranks, one):
    for name in ("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"):
        assert ranks[0][f"metric.{name}"] == pytest.approx(one[f"metric.{name}"], rel=1e-3, abs=1e-4), name


def test_gradients_and_metrics_are_weighted_by_valid_rows_and_largest_metrics_are_the_largest(ranks):
    for found in ranks:
        assert found["weighted"] == pytest.approx([(1 * 1.0 + 3 * 2.0) / 4] * 3)
        assert found["report"][:2] == pytest.approx([3 / 4, -1.0])
        assert found["averages"] == pytest.approx([4.0, (1 * 1.0 + 3 * 2.0) / 4])


def test_joint_metrics_of_two_learners_are_those_of_all_their_rows(ranks):
    valid = torch.stack([valid_of(rank) for rank in range(2)])
    log_w, value, target = stale_rows()
    expected = [float(effective_sample_size(log_w, valid)), float(explained_variance(value, target, valid))]
    for found in ranks:
        assert found["report"][2:] == pytest.approx(expected, rel=1e-5)


def test_moments_of_a_learner_without_rows_do_not_count_and_large_means_do_not_cancel(ranks):
    for found in ranks:
        assert found["pooled"] == pytest.approx([1e8, 1.0, 1.0, 2.0, 2.0], rel=1e-12)


def test_learners_agree_on_the_largest_outcome_on_any_save_and_on_the_exact_sums_of_counts(ranks):
    sums = [2**25 + 6, 4105]
    for found in ranks:
        assert found["votes"].tolist() == [[0, 0, *sums], [0, 1, *sums], [6, 0, *sums], [3, 1, *sums], [0, 0, *sums]]
        assert found["skipped_counts"].tolist() == sums


def test_learners_have_the_numbers_of_all_others_before_the_update_to_the_bit(ranks):
    for found in ranks:
        for update in range(50):
            assert found[f"numbers.{update}"].tolist() == [0.1 + update, 1.1 + update, -1e300, 2**52 + 1]
        assert found["exchanged"].tolist() == [50.1, 51.1, -1e300, 2**52 + 1]


def test_all_reduce_of_learners_as_over_nccl_is_part_of_the_recorded_update_and_over_gloo_goes_step_by_step(ranks):
    """The all-reduce is real in both cases: it is recorded, and repeated, on a fake accelerator."""
    for rank, found in enumerate(ranks):
        assert (found["nccl.recordings"], found["nccl.replays"]) == (1, 6 - WARM)
        assert (found["gloo.recordings"], found["gloo.replays"]) == (0, 0)
        for key in ("weights", "heard"):
            assert found[f"nccl.{key}"].tobytes() == found[f"gloo.{key}"].tobytes(), key
        assert found["gloo.weights"].tobytes() == ranks[0]["gloo.weights"].tobytes()
        expected = [
            [number % 3, number in (3, 4), 2 * number + 1, 0.1 + number, 1.1 + number, -1e300, 2**52 + 1]
            for number in range(6)
        ]
        assert found["nccl.heard"].tolist() == expected, rank


def test_leader_collects_the_arrays_of_all_learners(ranks):
    assert ranks[0]["collected.arena"].tolist() == [0, 1, 2]
    assert ranks[0]["collected.arena.1"].tolist() == [0, 1, 2, 3]
    assert ranks[0]["collected.state.1"].tolist() == [1, 1]
    assert not [name for name in ranks[1] if name.startswith("collected")]


def test_learners_copy_tensors_of_any_layout_from_the_leader_in_place(ranks):
    for rank, found in enumerate(ranks):
        assert found["copied.weights"].tolist() == [[1.0, 1.0]] * 3
        assert found["copied.steps"] == 7
        assert found["is_copied"] == (rank > 0)


def test_learners_take_the_leaders_choice_and_refuse_other_settings_and_other_weights(ranks):
    for found in ranks:
        assert str(found["leaders"]) == "of 0"
        assert str(found["facts"]).startswith("rank 1 has another value of optim.lr than rank 0: 1, not 0; start all")
        assert str(found["different"]) == "after update 12 the weights of rank 1 are not those of rank 0"
