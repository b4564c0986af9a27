"""A student that waits in mid-trial where a file asks for it, so that a test ends processes when it likes.

The file `hold` in the folder of the command names the trial: 1 is the sweep's first. Who waits writes its process to
`held`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

CALLS = 40
"""Batches of training before the wait: in the seventh round, after the first checkpoint."""


class Held(nn.Module):
    """[B, C, 8, 8] -> [B, K]."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.layers(torch.zeros(1, channels, 8, 8))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            while self.calls > CALLS and _is_asked_for():
                own = Path(f"held.{os.getpid()}")
                own.write_text(str(os.getpid()))
                own.replace(
                    "held"
                )  # whole at every moment: who reads an empty file would kill process 0, its own group
                time.sleep(0.02)
        logits: Tensor = self.layers(x)
        return logits


def _is_asked_for() -> bool:
    hold = Path("hold")
    return hold.exists() and hold.read_text() == str(len(list(Path("sweep/trials").glob("*"))))


def student(classes: int, channels: int) -> nn.Module:
    """What `student.network` names."""
    return Held(classes, channels)
