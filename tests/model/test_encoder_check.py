"""Encoders that compute something else in training than in acting are refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import sfactory
from sfactory.errors import SettingError
from sfactory.learning.network import build_model
from sfactory.learning.update import Update
from sfactory.model.encoders import ENCODERS, Encoder, check_encoders, make_encoder


class Around(nn.Module):
    """An encoder with a module hidden two levels below it."""

    def __init__(self, inner, size=6):
        super().__init__()
        self.deep = nn.ModuleDict({"first": nn.Sequential(nn.Linear(size, size), inner)})
        self.out_size = size


def attention(dropout):
    return nn.MultiheadAttention(6, 2, dropout=dropout)


REFUSED = {
    "Dropout": nn.Dropout(0.1),
    "Dropout2d": nn.Dropout2d(),
    "AlphaDropout": nn.AlphaDropout(0.5),
    "BatchNorm1d": nn.BatchNorm1d(6),
    "BatchNorm2d": nn.BatchNorm2d(6, track_running_stats=False),
    "LazyBatchNorm1d": nn.LazyBatchNorm1d(),
    "SyncBatchNorm": nn.SyncBatchNorm(6),
    "InstanceNorm2d": nn.InstanceNorm2d(6, track_running_stats=True),
    "MultiheadAttention": attention(0.1),
    "TransformerEncoderLayer": nn.TransformerEncoderLayer(6, 2, 8),
    "GRU": nn.GRU(6, 6, num_layers=2, dropout=0.1),
    "RReLU": nn.RReLU(),
    "_SpectralNorm": nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "Linear": nn.utils.spectral_norm(nn.Linear(6, 6)),
}
ALLOWED = {
    "LayerNorm": nn.LayerNorm(6),
    "GroupNorm": nn.GroupNorm(2, 6),
    "RMSNorm": nn.RMSNorm(6),
    "InstanceNorm2d": nn.InstanceNorm2d(6),
    "LocalResponseNorm": nn.LocalResponseNorm(2),
    "Dropout of 0": nn.Dropout(0.0),
    "attention": attention(0.0),
    "TransformerEncoderLayer": nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0),
    "LSTM": nn.LSTM(6, 6),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_check_encoders_refuses_what_differs_in_training_wherever_it_is(name):
    with pytest.raises(SettingError) as caught:
        check_encoders("my:Net", nn.ModuleList([Around(REFUSED[name])]))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("model.encoder my:Net contains ")
    assert "0.deep.first.1" in line


@pytest.mark.parametrize("name", ALLOWED)
def test_check_encoders_allows_what_computes_the_same(name):
    check_encoders("my:Net", Around(ALLOWED[name]))


@pytest.mark.parametrize("name", ENCODERS)
def test_check_encoders_allows_the_encoders_of_sfactory(name):
    shape = (10, 10, 4) if name == "minatar" else (3, 40, 40)
    check_encoders(name, make_encoder(name, shape, hidden=(8,), activation="relu"))


class Noisy(Encoder):
    """A user's encoder."""

    def __init__(self, shape, *, hidden, activation):
        super().__init__()
        self.out_size = 8
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.Dropout(0.5))

    def forward(self, obs):
        return self.net(obs.float())


def test_update_refuses_an_encoder_that_policies_that_only_act_may_have():
    config = sfactory.make_config("classic/cartpole", model={"encoder": f"{__name__}:Noisy"})
    obs = {"obs": SimpleNamespace(shape=(4,), dtype="float32", low=(), high=())}
    actions = {"action": SimpleNamespace(kind="discrete", sizes=(2,), shape=(), dtype="int64")}
    spec = SimpleNamespace(obs=obs, actions=actions, mask="", acting="")
    model = build_model(config, spec)  # eval and load_policy of an older run build it too
    with pytest.raises(SettingError, match=r"contains Dropout \(trunk.encoders.0.net.2\)"):
        Update(config, model, torch.device("cpu"))
