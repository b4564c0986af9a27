"""Students with which something goes wrong on rank 1 alone."""

import os

import torch
from torch import Tensor, nn


class Fails(nn.Module):
    """Raises at its 30th batch on rank 1."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.layers(torch.zeros(1, channels, 8, 8))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 30 and os.environ.get("RANK") == "1":
            raise RuntimeError("out of luck")
        logits: Tensor = self.layers(x)
        return logits


def unbuildable(classes: int, channels: int) -> nn.Module:
    """Cannot be built on rank 1."""
    if os.environ.get("RANK") == "1":
        raise RuntimeError("not on this host")
    return Fails(classes, channels)
