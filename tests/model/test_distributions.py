"""ActionDistribution against torch.distributions, sampled frequencies, and at the ends of the noise."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfactory.model.distributions import MASKED_LOGIT, UNIFORM_MAX, ActionDistribution

torch.set_num_threads(1)


class Leaf(NamedTuple):
    shape: tuple[int, ...]
    kind: str
    sizes: tuple[int, ...]


SPACES = {
    "discrete": {"action": Leaf((), "discrete", (5,))},
    "multi_discrete": {"action": Leaf((3,), "discrete", (2, 4, 3))},
    "box": {"action": Leaf((2,), "box", (2,))},
    "matrix_box": {"action": Leaf((2, 2), "box", (4,))},
    "dict": {
        "move": Leaf((), "discrete", (4,)),
        "aim": Leaf((2,), "box", (2,)),
        "buttons": Leaf((2,), "discrete", (2, 2)),
    },
}
PARAMS = {"discrete": 5, "multi_discrete": 9, "box": 4, "matrix_box": 8, "dict": 4 + 4 + 4}
NOISE = {"discrete": 1, "multi_discrete": 3, "box": 2, "matrix_box": 4, "dict": 1 + 2 + 2}
LEAD = [(7,), (3, 4), ()]


def draw(name: str, seed: int, lead: tuple[int, ...]) -> tuple[ActionDistribution, Tensor, Tensor]:
    distribution = ActionDistribution(SPACES[name])
    g = torch.Generator().manual_seed(seed)
    params = torch.randn(*lead, distribution.num_params, generator=g)
    return distribution, params, torch.rand(*lead, distribution.num_noise, generator=g)


def torch_distributions(name: str, params: Tensor) -> list[tuple[str, int | None, torch.distributions.Distribution]]:
    """(leaf, head or None for a box, torch's distribution) for every independent part, column by column."""
    found, k = [], 0
    for leaf_name, leaf in SPACES[name].items():
        if leaf.kind == "discrete":
            for head, size in enumerate(leaf.sizes):
                found.append((leaf_name, head, torch.distributions.Categorical(logits=params[..., k : k + size])))
                k += size
        else:
            (d,) = leaf.sizes
            normal = torch.distributions.Normal(params[..., k : k + d], params[..., k + d : k + 2 * d].exp())
            found.append((leaf_name, None, torch.distributions.Independent(normal, 1)))
            k += 2 * d
    return found


def piece(name: str, action: dict[str, Tensor], leaf: str, head: int | None, lead: tuple[int, ...]) -> Tensor:
    flat = action[leaf].reshape(*lead, -1)
    return flat if head is None else flat[..., head]


@pytest.mark.parametrize("name", SPACES)
def test_action_distribution_sizes_follow_the_leaves(name: str) -> None:
    distribution = ActionDistribution(SPACES[name])
    assert (distribution.num_params, distribution.num_noise) == (PARAMS[name], NOISE[name])


@pytest.mark.parametrize("lead", LEAD)
@pytest.mark.parametrize("name", SPACES)
def test_log_prob_entropy_and_kl_agree_with_torch(name: str, lead: tuple[int, ...]) -> None:
    distribution, params, noise = draw(name, 0, lead)
    other = draw(name, 1, lead)[1]
    action, sampled = distribution.sample_and_log_prob(params, noise)
    for leaf_name, leaf in SPACES[name].items():
        assert action[leaf_name].shape == (*lead, *leaf.shape)
        assert action[leaf_name].dtype == (torch.int64 if leaf.kind == "discrete" else torch.float32)
    twins, others = torch_distributions(name, params), torch_distributions(name, other)
    log_prob = sum(twin.log_prob(piece(name, action, leaf, head, lead)) for leaf, head, twin in twins)
    entropy = sum(twin.entropy() for _, _, twin in twins)
    kl = sum(
        torch.distributions.kl_divergence(a, b) for (_, _, a), (_, _, b) in zip(twins, others, strict=True)
    )  # fmt: skip
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sampled, log_prob, **close)
    torch.testing.assert_close(distribution.log_prob(params, action), log_prob, **close)
    torch.testing.assert_close(distribution.entropy(params), entropy, **close)
    torch.testing.assert_close(distribution.log_prob_entropy(params, action), (log_prob, entropy), **close)
    torch.testing.assert_close(distribution.kl(params, other), kl, **close)
    assert distribution.kl(params, params).abs().max() < 1e-6
    assert sampled.shape == lead


@pytest.mark.parametrize("name", SPACES)
def test_log_prob_of_a_sample_is_reproducible(name: str) -> None:
    """Inference and learner must agree: at lag 0 the ratio is 1 to 1e-6."""
    distribution, params, noise = draw(name, 2, (200,))
    action, log_prob = distribution.sample_and_log_prob(params, noise)
    torch.testing.assert_close(distribution.log_prob(params, action), log_prob, rtol=0, atol=1e-6)
    again = distribution.sample(params, noise)
    assert all(torch.equal(again[leaf], action[leaf]) for leaf in action)


def test_sample_frequencies_equal_the_probabilities() -> None:
    n = 20000
    distribution = ActionDistribution(SPACES["multi_discrete"])
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -0.5, 1.0, -3.0, 0.0, 1.0])
    noise = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    action = distribution.sample(logits.expand(n, -1), noise)["action"]
    for head, (logit, size) in enumerate(zip(logits.split([2, 4, 3]), (2, 4, 3), strict=True)):
        frequency = torch.bincount(action[:, head], minlength=size) / n
        assert (frequency - logit.softmax(-1)).abs().max() < 0.015


def test_box_samples_have_the_given_mean_and_std() -> None:
    n = 20000
    distribution = ActionDistribution(SPACES["box"])
    params = torch.tensor([1.0, -2.0, 0.5, -1.0]).expand(n, -1)
    x = distribution.sample(params, torch.rand(n, 2, generator=torch.Generator().manual_seed(0)))["action"]
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(x.std(0), torch.tensor([0.5, -1.0]).exp(), rtol=0.03, atol=0)
    assert torch.corrcoef(x.T)[0, 1].abs() < 0.03


@given(
    zeros=st.lists(st.booleans(), min_size=2, max_size=8).filter(lambda z: not all(z)),
    noise=st.sampled_from([0.0, 2.0**-24, 0.25, 0.5, 0.999, UNIFORM_MAX, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=120, deadline=None)
def test_sample_never_selects_a_category_of_probability_zero(zeros: list[bool], noise: float, scale: float) -> None:
    k = len(zeros)
    distribution = ActionDistribution({"action": Leaf((), "discrete", (k,))})
    logits = scale * torch.randn(50, k, generator=torch.Generator().manual_seed(k))
    allowed = ~torch.tensor(zeros).expand(50, k)
    logits = logits.masked_fill(~allowed, MASKED_LOGIT)
    action, log_prob = distribution.sample_and_log_prob(logits, torch.full((50, 1), noise))
    assert allowed.gather(-1, action["action"].unsqueeze(-1)).all()
    assert (log_prob > -100).all()
    assert log_prob.isfinite().all()


def test_masked_logit_has_probability_zero_and_finite_gradients_in_every_function() -> None:
    distribution, raw, noise = draw("dict", 0, (50,))
    raw.requires_grad_()
    allowed = torch.ones(50, raw.shape[-1], dtype=torch.bool)
    move, buttons = (next(part.params for part in distribution.parts if part.name == n) for n in ("move", "buttons"))
    allowed[:, move.start] = allowed[:, buttons.start + 1] = False  # the first move; the second choice of a button
    params = torch.where(allowed, raw, MASKED_LOGIT)
    action, log_prob = distribution.sample_and_log_prob(params, noise)
    assert (action["move"] != 0).all()
    assert (action["buttons"][:, 0] != 1).all()
    torch.testing.assert_close(distribution.log_prob(params, action), log_prob)
    both = distribution.log_prob_entropy(params, action)
    torch.testing.assert_close(both[1], distribution.entropy(params))
    other = torch.where(allowed, raw.detach() + torch.randn_like(raw), MASKED_LOGIT)
    (both[0].sum() + both[1].sum() + distribution.kl(params, other).sum()).backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert not raw.grad[~allowed].any()
    assert (distribution.mode(params)["move"] != 0).all()


def test_box_actions_are_finite_at_the_ends_of_the_noise() -> None:
    distribution = ActionDistribution(SPACES["box"])
    params = torch.zeros(3, 4)
    noise = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, UNIFORM_MAX]])
    x, log_prob = distribution.sample_and_log_prob(params, noise)
    assert x["action"].isfinite().all()
    assert log_prob.isfinite().all()
    assert x["action"].abs().max() < 6.0
    assert (x["action"][0] < -5).all()
    assert x["action"][1].abs().max() < 1e-6


def test_mode_is_the_most_likely_action() -> None:
    for name in SPACES:
        distribution, params, noise = draw(name, 3, (30,))
        best = distribution.log_prob(params, distribution.mode(params))
        assert (best >= distribution.sample_and_log_prob(params, noise)[1]).all()


def test_log_prob_of_bf16_parameters_is_computed_in_float32() -> None:
    for name in SPACES:
        distribution, params, noise = draw(name, 4, (6,))
        action, log_prob = distribution.sample_and_log_prob(params.bfloat16(), noise)
        assert log_prob.dtype == torch.float32
        expected = distribution.log_prob(params.bfloat16().float(), action)
        torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-6)


def test_action_distribution_rejects_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="expected discrete or box"):
        ActionDistribution({"action": Leaf((), "text", (3,))})
