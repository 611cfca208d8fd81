"""One of two processes that train together; run by test_process_group.py with the variables of torchrun."""

import math
import os
import sys
from functools import partial

import numpy as np
import torch
from fake_accelerator import FakeAccelerator
from test_distributed import lanes_of
from test_recorded_updates import ALL_NORMALIZERS, empty_batch, fill, update_on
from update_helpers import B, make_batch, make_update

from sfactory.algo import joint
from sfactory.device.ranks import Ranks
from sfactory.errors import LearnersDiffer, SettingError
from sfactory.learning.distributed import BatchMoments, Counts, Joint, Vote
from sfactory.learning.join import join

HALVES = slice(0, 3), slice(3, B)  # unequal, with unequal numbers of valid rows
SETTINGS = {"epochs": 1, "minibatches": 1, "normalize": True, "value_targets": True, "batch_rule": "none"}
UPDATES = 50


def batches(update):
    """One whole batch per update, with the returns that normalize.reward needs."""
    for number in range(UPDATES):
        batch = make_batch(update, seed=number)
        yield batch._replace(discounted_return=3.0 * batch.reward)


def numbers_of(rank, update):
    """Numbers that float32 cannot hold; each is written by one learner."""
    numbers = np.zeros(4)
    numbers[rank::2] = [0.1 + rank + update, (-1e300, 2**52 + 1)[rank]]
    return numbers


def train(update, lanes, learners=None):
    """Gradient of the first update, metrics of the last one, and everything that a checkpoint holds."""
    found = {}
    for number, batch in enumerate(batches(update)):
        if learners is not None:
            learners.propose(Vote(save=number == 7), Counts(number), numbers_of(learners.ranks.rank, number))
        metrics = update.run(lanes_of(batch, lanes), number, 0.0)
        if number == 0:
            found["gradient"] = update.flat.gradient.numpy().copy()
        if learners is not None:
            found[f"numbers.{number}"] = learners.numbers()
            learners.check_same(update.digest, number)
    for part, tensors in update.state_dict().items():
        found |= {f"{part}.{name}": tensor.numpy() for name, tensor in tensors.items()}
    return found | {f"metric.{name}": metric.numpy() for name, metric in metrics.items()}


def refused(call, error):
    try:
        call()
    except error as raised:
        return str(raised)
    return ""


def counts_of(rank):
    """More rows than float32 can count one by one."""
    return Counts(2**24 + 1 + 4 * rank, 5 + 4095 * rank)


def stale_rows():
    """Log weights, values and targets of both learners, [2, T, b] each."""
    return torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(2)).unbind(0)


def valid_of(rank):
    """1 row and 3 rows."""
    valid = torch.zeros(2, 4, dtype=torch.bool)
    valid.flatten()[: 1 + 2 * rank] = True
    return valid


def votes(learners):
    """(outcome, save, rows, environment steps) after updates with different votes."""
    gradient, valid, found = torch.ones(4), torch.ones(2, 3).bool(), []
    own = [
        (Vote(), Vote()),
        (Vote(0, True), Vote()),
        (Vote(), Vote(6)),
        (Vote(1), Vote(3, True)),
        (Vote(), Vote()),
    ]
    for vote in own:
        learners.propose(vote[learners.ranks.rank], counts_of(learners.ranks.rank), np.zeros(0))
        learners.average_gradients(gradient, valid, {}, {})
        agreed = learners.agree(Vote(7, True))
        found.append((agreed.outcome, agreed.save, *learners.total_counts(Counts(), False)))
    return np.array(found)


def recorded(learners, as_nccl):
    """Train on an accelerator with collectives as over NCCL, which may be part of a recording, or as over gloo."""
    learners.recordable = as_nccl
    rank, accelerator = learners.ranks.rank, FakeAccelerator()
    update = update_on(accelerator, learners=learners, normalize=ALL_NORMALIZERS, epochs=1, minibatches=2)
    batch, heard = empty_batch(update), []
    for number in range(6):
        fill(batch, update, 10 * number + rank)
        counts = Counts(number + rank)
        learners.propose(Vote(number % 3 * rank, number == 4 - rank), counts, numbers_of(rank, number))
        update.run(batch, number, 0.0)
        accelerator.wait()
        agreed = learners.agree(Vote())
        heard.append([agreed.outcome, agreed.save, learners.total_counts(Counts(), False).rows, *learners.numbers()])
    found = {"recordings": accelerator.recordings, "replays": accelerator.replays, "heard": np.array(heard)}
    return {**found, "weights": update.flat.values.detach().numpy().copy()}


def main(folder):
    torch.set_num_threads(1)
    ranks = Ranks.from_env(os.environ)
    rank = ranks.rank
    learners = join(ranks, torch.device("cpu"), 60.0, lambda ranks: None, print)
    found = {"votes": votes(learners), "skipped_counts": np.array(learners.total_counts(counts_of(rank), True))}
    gradient = torch.full((3,), float(1 + rank))
    report = {"mean": torch.tensor(float(rank)), "most": torch.tensor(-1.0 - rank)}
    valid = valid_of(rank)
    log_w, value, target = (x[rank] for x in stale_rows())
    joints = {
        "most": Joint(partial(report["most"].view, 1), joint.largest),
        "ess": Joint(partial(joint.weight_sums, log_w, valid), joint.sample_size),
        "fit": Joint(partial(joint.fit_moments, value, target, valid), joint.fit),
    }
    report |= {"ess": torch.tensor(math.nan), "fit": torch.tensor(math.nan)}  # their means are not used
    report = learners.average_gradients(gradient, valid, report, joints)
    found |= {"weighted": gradient.numpy(), "report": np.array([float(value) for value in report.values()])}
    mean, var, rows = torch.tensor([1e8, rank]), torch.tensor([1.0, 2.0]), torch.tensor(2.0)
    (pooled,) = learners.pool_moments([BatchMoments(mean.double(), var.double(), rows.double() * rank)])
    found["pooled"] = torch.cat([pooled.mean, pooled.var, pooled.rows.view(1)]).numpy()
    own = torch.tensor(math.nan if rank else 4.0), torch.tensor(float(1 - rank))  # the second has no rows
    means = [learners.average_metric(*own), learners.average_metric(torch.tensor(1.0 + rank), valid.sum())]
    found["averages"] = torch.stack(means).numpy()
    arrays = learners.collect({"arena": np.arange(3 + rank, dtype=np.int64), "state": np.full(2, rank, np.uint8)})
    found |= {f"collected.{name}": array for name, array in arrays.items()}
    found["exchanged"] = learners.exchange(numbers_of(rank, 50))
    found["leaders"] = learners.leaders("precision", f"of {rank}")
    update = make_update(learners=learners, **SETTINGS)
    with torch.no_grad():
        update.flat.values.add_(0.5 * rank)
    different = refused(lambda: learners.check_same(update.digest, 12), LearnersDiffer)
    # Not contiguous: what is sent is a copy of it.
    leaders = {"weights": torch.full((2, 3), 1.0 + rank).T, "steps": torch.tensor(7 - rank)}
    found["is_copied"] = learners.copy_from_leader({"part": leaders})
    found |= {f"copied.{name}": tensor.numpy() for name, tensor in leaders.items()}
    state = update.state_dict()
    if learners.copy_from_leader(state):
        update.load_state_dict(state)
    found |= {"different": different, **train(update, HALVES[rank], learners)}
    for name, as_nccl in (("nccl", True), ("gloo", False)):
        found |= {f"{name}.{key}": value for key, value in recorded(learners, as_nccl).items()}
    found["facts"] = refused(lambda: learners.require_same({"a": "1", "optim.lr": str(rank)}), SettingError)
    learners.close()
    np.savez(f"{folder}/{rank}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
