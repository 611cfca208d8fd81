"""`trace.baseline optimal`: what the advantages of an update are."""

import pytest
import torch
from update_helpers import make_batch, make_update

from sfactory.config import with_settings
from sfactory.learning.distributed import BatchMoments, SingleLearner
from sfactory.learning.update import Update

torch.set_num_threads(1)


def with_baseline(learners=None, **shape):
    plain = make_update(**shape)
    return Update(
        with_settings(plain.config, {"trace.baseline": "optimal"}), plain.model, plain.device, learners=learners
    )


def stale(update, seed=1):
    batch = make_batch(update, seed=seed)
    noise = 0.4 * torch.randn(batch.log_prob.shape, generator=torch.Generator().manual_seed(seed))
    return batch._replace(log_prob=batch.log_prob + noise)


def start_of(update, batch):
    with torch.no_grad():
        return update.objective.start(batch, update.network.forward_eval(batch))


@pytest.mark.parametrize("advantage", [True, False])
@pytest.mark.parametrize(
    ("behavior_weight", "trace"), [("surrogate", "gae"), ("trace", "vtrace"), ("twice", "vtrace"), ("none", "gae")]
)
def test_advantages_are_above_the_baseline_of_the_weights_in_use(behavior_weight, trace, advantage):
    shape = dict(behavior_weight=behavior_weight, trace=trace, advantage=advantage, weight_cap=1.3)
    if behavior_weight == "none":
        shape["surrogate"] = "ppo"
    update, plain = with_baseline(**shape), make_update(**shape)
    batch = stale(plain)
    found, before = start_of(update, batch), start_of(plain, batch)
    rho = before.log_rho.exp()
    weight = {
        "surrogate": rho.clamp(max=1.3), "trace": rho.clamp(max=1.0), "none": torch.ones_like(rho),
        "twice": rho.clamp(max=1.3) * rho.clamp(max=1.0),
    }[behavior_weight]  # fmt: skip
    pi = before.params.softmax(-1)
    taken = pi.gather(-1, batch.action["action"].unsqueeze(-1)).squeeze(-1)
    size = (weight**2 * (1 - 2 * taken + pi.square().sum(-1)))[batch.valid]
    b = (size * before.advantage[batch.valid]).sum() / size.sum()
    assert abs(float(b)) > 3e-4
    torch.testing.assert_close(found.advantage[batch.valid], before.advantage[batch.valid] - b, rtol=1e-4, atol=1e-5)
    assert not found.advantage[~batch.valid].any()
    assert torch.equal(found.target, before.target), "the critic has no baseline"


def test_baseline_is_that_of_all_learners():
    class Two(SingleLearner):
        def pool_moments(self, moments):
            sent.append(moments)
            return [BatchMoments(torch.tensor([3.0, 2.0]), *rest) for _, *rest in moments]

    sent = []
    update, plain = with_baseline(Two(), advantage=False), make_update(advantage=False)
    batch = make_batch(plain)
    gap = start_of(plain, batch).advantage - start_of(update, batch).advantage
    torch.testing.assert_close(gap[batch.valid], torch.full((int(batch.valid.sum()),), 1.5))
    assert float(sent[0][0].rows) == float(batch.valid.sum())


@pytest.mark.parametrize("kernels", ["native", "torch", "autograd"])
def test_updates_with_a_baseline_differ_from_those_without(kernels):
    update, plain = with_baseline(kernels=kernels), make_update(kernels=kernels)
    batch = stale(plain)
    for one in (update, plain):
        assert int(one.run(batch, 0, 0.0)["skipped"]) == 0
    assert not torch.allclose(update.flat.values, plain.flat.values)
