"""Normalizers of a learner: what they transform, and the names under which checkpoints hold them."""

import torch
from update_helpers import B, T, make_batch, make_update

torch.set_num_threads(1)


def trained(**settings):
    update = make_update(**settings)
    batch = make_batch(update, 50.0)._replace(discounted_return=torch.randn(T, B) * 7)
    update.run(batch, 0, 0.0)
    return update


def test_state_of_normalizers_keeps_the_tensor_names_of_format_1():
    names = set(trained(normalize=True, value_targets=True).normalizers.state_dict())
    assert names == {
        "obs.obs.mean", "obs.obs.var", "obs.obs.count", "reward.mean", "reward.var", "reward.count",
        "target.sums", "target.mean", "target.std", "advantage.sums",
    }  # fmt: skip
    assert set(trained().normalizers.state_dict()) == {"reward.mean", "reward.var", "reward.count", "advantage.sums"}


def test_normalizers_restore_their_state_in_place():
    one, other = (trained(normalize=True, value_targets=True) for _ in range(2))
    one.run(make_batch(one, 3.0), 1, 0.0)
    tensors = other.normalizers.state_dict()
    other.normalizers.load_state_dict(one.normalizers.state_dict())
    for name, x in one.normalizers.state_dict().items():
        assert torch.equal(tensors[name], x), name  # the tensors that a recorded update reads


def test_value_and_target_of_normalizers_are_inverse():
    normalizers = trained(value_targets=True).normalizers
    x = torch.randn(5)
    torch.testing.assert_close(normalizers.value(normalizers.target(x)), x)
    plain = trained().normalizers
    assert plain.value(x) is plain.target(x) is x


def test_normalizers_initialized_from_a_run_with_normalized_targets_keep_its_values():
    source = trained(value_targets=True)
    batch = make_batch(source)
    with torch.no_grad():
        values = source.normalizers.value(source.model.unroll(batch.obs, batch.first).value)
    for value_targets in (False, True):
        other = make_update(value_targets=value_targets)
        other.initialize_from(source.model.state_dict(), source.normalizers.state_dict())
        with torch.no_grad():
            same = other.normalizers.value(other.model.unroll(batch.obs, batch.first).value)
        torch.testing.assert_close(same, values, rtol=1e-4, atol=1e-4)


def test_advantages_of_normalizers_have_mean_0_and_variance_1_over_valid_rows():
    update = make_update()
    valid = torch.rand(T, B) < 0.7
    scaled = update.normalizers.advantage(torch.randn(T, B) * 5 + 3, valid)
    assert abs(float(scaled[valid].mean())) < 1e-5
    assert abs(float(scaled[valid].var(unbiased=False)) - 1) < 1e-4
    assert (scaled[~valid] == 0).all()
