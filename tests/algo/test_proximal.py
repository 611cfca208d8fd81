"""Providers of the proximal policy: reference averages, identities at lag 0, saved state."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from sfactory.algo.proximal import (
    PROXIMALS,
    Ewma,
    EwmaProximal,
    decay_from_center_of_mass,
    interpolate_log_prob,
)

torch.set_num_threads(1)
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-5)]
T, B, K = 5, 6, 3


class TinyPolicy(nn.Module):
    """obs [T, B, 4] -> logits [T, B, K], with a buffer that scales the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, K)
        self.above = nn.Linear(K, K)  # before `layer` by name, after it by definition
        self.register_buffer("scale", torch.ones(()))

    def forward(self, obs: Tensor) -> Tensor:
        return self.above(self.layer(obs * self.scale))


TAKEN, SKIPPED = torch.zeros(()), torch.ones(())
"""What `after_step` is told about an optimizer step."""


class FakeUpdate:
    """One batch, one policy, and the callback of the learner."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = TinyPolicy()
        self.obs = torch.randn(T, B, 4)
        self.action = torch.randint(K, (T, B, 1))
        self.lanes = torch.tensor([4, 1])
        self.behavior = self.log_prob()[0].detach()[:, self.lanes]
        self.lag = torch.zeros(T, 2, dtype=torch.int64)

    def log_prob(self, weights=None, lanes=slice(None)) -> tuple[Tensor, Tensor]:
        obs = self.obs[:, lanes]
        params = self.model(obs) if weights is None else functional_call(self.model, weights, (obs,))
        return params.log_softmax(-1).gather(-1, self.action[:, lanes]).squeeze(-1), params

    @torch.no_grad()
    def evaluate(self, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.log_prob(weights, self.lanes)

    def begin(self, proximal) -> None:
        with torch.no_grad():
            proximal.begin_update(self.model, *self.log_prob())

    def step(self, proximal, size: float = 0.3) -> None:
        with torch.no_grad():
            for i, p in enumerate(self.model.parameters()):
                p += size * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        proximal.after_step(self.model, TAKEN)

    def proximal_log_prob(self, proximal) -> tuple[Tensor, Tensor | None]:
        current = self.log_prob(lanes=self.lanes)[0]
        log_prob, params = proximal.log_prob(self.evaluate, self.lanes, current, self.behavior, self.lag)
        assert not log_prob.requires_grad
        assert params is None or not params.requires_grad
        return log_prob, params


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("case", VECTORS["ewma_parameters"], ids=lambda c: f"beta={c['beta']:.2f}")
def test_ewma_agrees_with_the_reference(case, dtype, tol) -> None:
    average = Ewma(case["beta"])
    average.reset([torch.tensor([case["thetas"][0]], dtype=dtype)])
    seen, weights = [average.mean[0].item()], [float(average.weight)]
    for theta in case["thetas"][1:]:
        average.update([torch.tensor([theta], dtype=dtype)])
        seen.append(average.mean[0].item())
        weights.append(float(average.weight))
    assert seen == pytest.approx(case["theta_prox"], rel=tol, abs=tol)
    assert weights == pytest.approx(case["total_weight"], rel=1e-10)


@given(decay=st.floats(0.0, 0.99), thetas=st.lists(st.floats(-10, 10), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_ewma_equals_its_explicit_sum(decay: float, thetas: list[float]) -> None:
    average = Ewma(decay)
    average.reset([torch.tensor(thetas[0], dtype=torch.float64)])
    for theta in thetas[1:]:
        average.update([torch.tensor(theta, dtype=torch.float64)])
    weights = [decay ** (len(thetas) - 1 - k) for k in range(len(thetas))]
    expected = sum(w * x for w, x in zip(weights, thetas, strict=True)) / sum(weights)
    assert average.mean[0].item() == pytest.approx(expected, abs=1e-10)


def test_ewma_proximal_with_decay_zero_is_the_current_policy() -> None:
    s, proximal = FakeUpdate(), EwmaProximal(center_of_mass=0.0)
    s.begin(proximal)
    for _ in range(3):
        s.step(proximal)
        assert torch.equal(s.proximal_log_prob(proximal)[0], s.log_prob(lanes=s.lanes)[0].detach())


def test_recompute_proximal_accepts_all_lanes_as_none() -> None:
    s, proximal = FakeUpdate(), PROXIMALS["recompute"]()
    s.begin(proximal)
    start = s.log_prob()
    s.step(proximal)
    now = s.log_prob()[0]
    for lanes in (None, torch.arange(now.shape[1])):
        log_prob, params = proximal.log_prob(s.evaluate, lanes, now, now, torch.zeros_like(now))
        assert torch.equal(log_prob, start[0])
        assert params is not None
        assert torch.equal(params, start[1])


def test_ewma_center_of_mass_is_the_mean_age() -> None:
    assert decay_from_center_of_mass(8.0) == pytest.approx(8.0 / 9.0)
    decay = decay_from_center_of_mass(5.0)
    ages = sum(k * decay**k for k in range(2000)) / sum(decay**k for k in range(2000))
    assert ages == pytest.approx(5.0)
    with pytest.raises(ValueError, match="expected 0 <= decay < 1"):
        Ewma(1.0)


def test_ewma_proximal_uses_the_live_buffers() -> None:
    """A normalizer update changes the inputs of both policies."""
    s, proximal = FakeUpdate(), EwmaProximal()
    s.begin(proximal)
    s.step(proximal)
    assert set(proximal.weights) == {name for name, _ in s.model.named_parameters()}
    before = s.proximal_log_prob(proximal)[0]
    s.model.scale.fill_(2.0)
    assert not torch.allclose(before, s.proximal_log_prob(proximal)[0])


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
def test_interpolate_log_prob_agrees_with_the_reference_in_areals_convention(dtype, tol) -> None:
    for case in VECTORS["a3po"]:
        log_prob = torch.tensor([case["logp"]], dtype=dtype, requires_grad=True)
        behavior, lag = torch.tensor([case["logp_behav"]], dtype=dtype), torch.tensor([case["d"]])
        out = interpolate_log_prob(log_prob, behavior, lag)
        assert not out.requires_grad
        assert out.item() == pytest.approx(case["areal"]["logp_prox"], rel=tol)


def test_interpolate_log_prob_uses_the_lag_of_each_sample() -> None:
    log_prob, behavior = torch.zeros(4), torch.full((4,), -1.0)
    out = interpolate_log_prob(log_prob, behavior, torch.tensor([0, 1, 2, 4]))
    torch.testing.assert_close(out, torch.tensor([-1.0, -1.0, -0.5, -0.25]))


@pytest.mark.parametrize("name", list(PROXIMALS))
def test_every_proximal_policy_is_the_policy_on_fresh_data(name: str) -> None:
    """Lag 0, before the first step: all centers coincide with behavior."""
    s, proximal = FakeUpdate(), PROXIMALS[name](center_of_mass=8.0, age=0)
    s.begin(proximal)
    log_prob, params = s.proximal_log_prob(proximal)
    torch.testing.assert_close(log_prob, s.behavior, rtol=0, atol=1e-6)
    if params is not None:
        torch.testing.assert_close(params, s.log_prob(lanes=s.lanes)[1].detach())


def test_behavior_recompute_and_interpolate_proximal_agree_at_lag_zero() -> None:
    settings = {}
    for name in ("behavior", "recompute", "interpolate"):
        s, proximal = FakeUpdate(), PROXIMALS[name]()
        s.begin(proximal)
        seen = []
        for _ in range(3):
            seen.append(s.proximal_log_prob(proximal)[0])
            s.step(proximal)
        settings[name] = torch.stack(seen)
    torch.testing.assert_close(settings["recompute"], settings["behavior"], rtol=0, atol=1e-6)
    assert torch.equal(settings["interpolate"], settings["behavior"])


def test_ewma_proximal_moves_inside_the_update_and_recompute_does_not() -> None:
    for name, moves in {"recompute": False, "ewma": True}.items():
        s, proximal = FakeUpdate(), PROXIMALS[name]()
        s.begin(proximal)
        before = s.proximal_log_prob(proximal)[0]
        s.step(proximal)
        assert torch.equal(before, s.proximal_log_prob(proximal)[0]) is not moves


def test_snapshot_proximal_is_the_policy_of_age_updates_ago() -> None:
    s, proximal = FakeUpdate(), PROXIMALS["snapshot"](age=2)
    starts = []
    for update in range(6):
        starts.append(s.log_prob(lanes=s.lanes)[0].detach())
        s.begin(proximal)
        torch.testing.assert_close(s.proximal_log_prob(proximal)[0], starts[max(0, update - 2)])
        s.step(proximal)


def test_snapshot_proximal_of_age_0_uses_the_version_of_each_step_with_its_normaliser() -> None:
    s, proximal = FakeUpdate(), PROXIMALS["snapshot"](age=0, kept=3)
    versions = []
    for update in range(5):
        versions.append(s.log_prob(lanes=s.lanes)[0].detach())
        s.begin(proximal)
        if update < 4:
            s.step(proximal)
            s.model.scale.mul_(1.5)
    s.lag = torch.randint(5, (T, 2))
    expected = torch.stack([versions[4 - age] for age in range(3)] + [s.behavior] * 2)
    got, params = s.proximal_log_prob(proximal)
    torch.testing.assert_close(got, expected.gather(0, s.lag[None])[0])
    assert params is None


def test_proximal_reset_forgets_earlier_weights() -> None:
    for name in ("ewma", "snapshot"):
        s, proximal = FakeUpdate(), PROXIMALS[name](center_of_mass=50.0, age=3)
        for _ in range(3):
            s.begin(proximal)
            s.step(proximal)
        proximal.reset(s.model)
        s.begin(proximal)
        torch.testing.assert_close(s.proximal_log_prob(proximal)[0], s.log_prob(lanes=s.lanes)[0].detach())


@pytest.mark.parametrize("name", list(PROXIMALS))
def test_proximal_continues_from_its_saved_state(name: str) -> None:
    s, proximal = FakeUpdate(), PROXIMALS[name](center_of_mass=4.0, age=2)
    for _ in range(3):
        s.begin(proximal)
        s.step(proximal)
    state = copy.deepcopy(proximal.state_dict())
    assert all(isinstance(x, Tensor) for x in state.values())
    restored = PROXIMALS[name](center_of_mass=4.0, age=2)
    restored.load_state_dict(dict(sorted(state.items())))  # the order of a file
    for provider in (proximal, restored):
        s.begin(provider)
    assert torch.equal(s.proximal_log_prob(restored)[0], s.proximal_log_prob(proximal)[0])
    proximal.after_step(s.model, TAKEN)
    restored.after_step(s.model, TAKEN)
    assert torch.equal(s.proximal_log_prob(restored)[0], s.proximal_log_prob(proximal)[0])


def test_ewma_proximal_does_not_step_with_a_skipped_optimizer_step() -> None:
    """Neither its average nor its weight: the next step counts as if the skipped one had not been tried."""
    s, proximal, other = FakeUpdate(), *(PROXIMALS["ewma"](center_of_mass=4.0) for _ in range(2))
    for provider in (proximal, other):
        s.begin(provider)
    proximal.after_step(s.model, SKIPPED)
    s.step(proximal)
    other.after_step(s.model, TAKEN)
    proximal.after_step(s.model, SKIPPED)
    for name, x in other.state_dict().items():
        assert torch.equal(proximal.state_dict()[name], x), name
