"""`model.pooling average` of the encoder impala."""

import pytest
import torch

from sfactory.config import Config, with_settings
from sfactory.envs import ActionLeaf, EnvSpec, Leaf
from sfactory.learning.network import build_model
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.encoders import make_encoder

torch.set_num_threads(1)
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (15,))}


def encoder(pooling, hidden=(8,), shape=(3, 64, 64)):
    torch.manual_seed(0)
    return make_encoder("impala", shape, hidden=hidden, activation="relu", pooling=pooling)


def size(module):
    return sum(x.numel() for x in module.parameters())


def test_pooled_features_are_the_means_of_the_channels():
    """With the same convolutions, whose outputs are read before they are flattened."""
    plain, pooled = encoder("none", hidden=()), encoder("average", hidden=())
    pictures = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        channels = plain(pictures).view(5, 32, 8, 8)
        found = pooled(pictures)
    assert pooled.out_size == 32
    assert (channels >= 0).all(), "after the last ReLU"
    for row in range(5):
        for channel in range(32):
            total = sum(float(x) for x in channels[row, channel].flatten())
            assert found[row, channel].item() == pytest.approx(total / 64, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 64, 64), (4, 84, 84), (1, 20, 33)])
def test_pooled_encoder_has_fewer_weights_and_the_same_output(shape):
    plain, pooled = encoder("none", (256,), shape), encoder("average", (256,), shape)
    places = plain.layers[0].in_features // 32
    assert pooled.layers[0].in_features == 32
    assert size(plain) - size(pooled) == 256 * 32 * (places - 1) > 0
    pictures = torch.zeros(2, *shape, dtype=torch.uint8)
    assert pooled(pictures).shape == plain(pictures).shape == (2, 256)


def test_vector_beside_a_pooled_picture_is_read_as_before():
    obs = {"picture": Leaf((3, 64, 64), "uint8"), "vector": Leaf((4,), "float32")}
    model = ActorCritic(obs, ACTIONS, encoder="impala", hidden=(16,), pooling="average", separate=True)
    out = model({"picture": torch.zeros(6, 3, 64, 64, dtype=torch.uint8), "vector": torch.randn(6, 4)})
    assert out.params.shape == (6, 15)
    for trunk in (model.trunk, model.critic):
        assert trunk.encoders[0].layers[0].in_features == 32


@pytest.mark.parametrize("algorithm", ["actor_critic", "pqn", "dae", "ppg"])
def test_network_of_every_algorithm_has_the_pooling_of_the_settings(algorithm):
    config = with_settings(Config(), {"algorithm.name": algorithm, "model.encoder": "impala"})
    spec = EnvSpec("test", {"picture": Leaf((3, 64, 64), "uint8")}, ACTIONS)
    inputs = [
        build_model(with_settings(config, {"model.pooling": pooling}), spec).trunk.encoders[0].layers[0].in_features
        for pooling in ("none", "average")
    ]
    assert inputs == [2048, 32]
