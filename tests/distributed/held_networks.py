"""A student that waits in mid-run while a file `hold` in the current folder asks for it: a test ends processes when it
likes, however fast the machine is. Its weights are those of `cnn4`."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from torch import nn

from harness import task
from harness.networks import build

CALLS = 36
"""Batches of training before the wait: twelve rounds of two student turns and one of the generator."""


def cnn4(classes: int, channels: int) -> nn.Module:
    """What `student.network` names."""
    module = build.network(task.load("classification"), "cnn4", classes, channels)
    calls = itertools.count(1)

    def wait(module: nn.Module, inputs: object) -> None:
        if module.training and next(calls) > CALLS:
            while Path("hold").exists():
                time.sleep(0.01)

    module.register_forward_pre_hook(wait)
    return module
