"""An encoder for float64: fully connected, the parameters named like those of `mlp`."""

from torch import nn


class Encoder(nn.Module):
    def __init__(self, shape, *, hidden, activation):
        super().__init__()
        assert activation == "tanh"
        self.layers = nn.Sequential(nn.Linear(shape[0], hidden[0]), nn.Tanh())
        self.out_size = hidden[0]

    def forward(self, obs):
        return self.layers(obs.to(self.layers[0].weight.dtype))
