"""A student that waits in the middle of a trial, so that a test can end its process at a known point.

A `student` waits while the file `hold` in the folder of the command has the number of its trial: 1 is the first. A
`companion` waits in the first of two trials until the other one has reported. The file `held` has the id of a process
that waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

CALLS = 40
"""Batches of training before the wait: in the seventh round, after the first checkpoint."""


class Held(nn.Module):
    """[B, C, 8, 8] -> [B, K]."""

    def __init__(self, classes: int, channels: int, waits: Callable[[], bool]) -> None:
        super().__init__()
        self.waits = waits
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.layers(torch.zeros(1, channels, 8, 8))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            while self.calls > CALLS and self.waits():
                own = Path(f"held.{os.getpid()}")
                own.write_text(str(os.getpid()))
                own.replace("held")  # atomic: an empty file would be read as process 0, the test's own group
                time.sleep(0.02)
        logits: Tensor = self.layers(x)
        return logits


def _is_named() -> bool:
    hold = Path("hold")
    return hold.exists() and hold.read_text() == str(len(list(Path("sweep/trials").glob("*"))))


def _is_first() -> bool:
    return len([log for log in Path("sweep/trials").glob("*/metrics.jsonl") if log.stat().st_size]) == 1


def student(classes: int, channels: int) -> nn.Module:
    """For `student.network`."""
    return Held(classes, channels, _is_named)


def companion(classes: int, channels: int) -> nn.Module:
    """For `student.network`, if two trials run at the same time."""
    return Held(classes, channels, _is_first)
