"""A student that waits in the middle of a trial, so that a test can end its process at a known point.

A `student` waits while the file `hold` in the folder of the command has the number of its trial: 1 is the first. A
`companion` in one of two trials waits for the other one after each evaluation, so that both go on at the same time
until one continues from the other's checkpoint. The file `held` has the id of a process that waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tune.plan import PROBE_METRIC

CALLS = 40
"""Batches of training before the wait of a `student`: in the seventh round, after the first checkpoint."""

CALLS_OF_AN_EVALUATION = 12
"""Batches of training between two evaluations of a `companion`: two rounds."""


class Held(nn.Module):
    """[B, C, 8, 8] -> [B, K]."""

    def __init__(self, classes: int, channels: int, waits: Callable[[int], bool]) -> None:
        """`waits`: whether to wait before the batch of training of this number; 1 is the first."""
        super().__init__()
        self.waits = waits
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.layers(torch.zeros(1, channels, 8, 8))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            while self.waits(self.calls):
                own = Path(f"held.{os.getpid()}")
                own.write_text(str(os.getpid()))
                own.replace("held")  # atomic: an empty file would be read as process 0, the test's own group
                time.sleep(0.02)
        logits: Tensor = self.layers(x)
        return logits


def _is_named(call: int) -> bool:
    hold = Path("hold")
    return call > CALLS and hold.exists() and hold.read_text() == str(len(list(Path("sweep/trials").glob("*"))))


def _is_ahead(call: int) -> bool:
    own = (call - 1) // CALLS_OF_AN_EVALUATION
    trials = Path("sweep/trials")
    evaluations = [log.read_text().count(f'"{PROBE_METRIC}"') for log in trials.glob("*/metrics.jsonl")]
    return own > 0 and sum(number >= own for number in evaluations) == 1 and not any(trials.glob("*-*"))


def student(classes: int, channels: int) -> nn.Module:
    """For `student.network`."""
    return Held(classes, channels, _is_named)


def companion(classes: int, channels: int) -> nn.Module:
    """For `student.network`, if two trials run at the same time."""
    return Held(classes, channels, _is_ahead)
