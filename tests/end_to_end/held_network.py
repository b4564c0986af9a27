"""A student that waits in the middle of a trial, so that a test can end its process at a known point.

A `student` waits while the file `hold` in the folder of the command has the number of its trial: 1 is the first. Of two
`companion`s the first to train leads. The other one is scored by its least likely classes, and gets to each evaluation
after the leader, until one of them continues from the other's checkpoint. Ray's scheduler compares a trial's score with
the last one of the other trial, so without an order the later one often looks better, whichever it is, and no trial
continues from the other. The file `held` has the id of a process that waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
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
        if self.training and torch.is_grad_enabled():  # the pass in which it is tried at the start is none of them
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


class Companion(Held):
    """`Held` for two trials at the same time; alone, as in the sweep's default run, it does not wait."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels, self._is_early)
        self.leads = True

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training or self.leads or _has_branch() else -logits

    def _is_early(self, call: int) -> bool:
        own = (call - 1) // CALLS_OF_AN_EVALUATION
        logs = list(Path("sweep/trials").glob("*/metrics.jsonl"))
        if own == 0 or not logs or _has_branch():
            return False
        evaluations = [log.read_text().count(f'"{PROBE_METRIC}"') for log in logs]
        if len(logs) == 1:
            return True
        self.leads = _is_first()
        return own > min(evaluations) + 1 if self.leads else own >= max(evaluations)


def _is_first() -> bool:
    """Whether no other process asked before this one."""
    name = str(os.getpid())
    with suppress(FileExistsError):
        Path("leader").symlink_to(name)  # one step, so that there is one leader
    return Path("leader").readlink() == Path(name)


def _has_branch() -> bool:
    return any(Path("sweep/trials").glob("*-*"))


def student(classes: int, channels: int) -> nn.Module:
    """For `student.network`."""
    return Held(classes, channels, _is_named)


def companion(classes: int, channels: int) -> nn.Module:
    """For `student.network`, if two trials run at the same time."""
    return Companion(classes, channels)
