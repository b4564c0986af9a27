"""What a network takes to keep and to run: the figures beside its accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from harness.config import Config, image_shape
from harness.networks import layers
from harness.networks.layers import evaluating

WARM_UP, TIMES = 2, 20
"""Passes before the time is taken, and of how many the quickest counts."""


def quickest(
    run: Callable[[], object], clock: Callable[[], float] = time.perf_counter, enough: float = math.inf
) -> float:
    """Seconds of the quickest of TIMES calls, fewer where they took `enough` seconds; those to warm up do not count."""
    for _ in range(WARM_UP):
        run()
    seconds: list[float] = []
    while len(seconds) < TIMES and sum(seconds) < enough:
        began = clock()
        run()
        seconds.append(clock() - began)
    return min(seconds)


def of(config: Config, module: nn.Module | None) -> dict[str, Any]:
    """{parameters, macs and milliseconds of one image of the run's size, bytes of the weights}, on its own device."""
    if module is None:
        return {}
    first = next(module.parameters())
    x = torch.zeros(1, *image_shape(config), device=first.device, dtype=first.dtype)
    with evaluating([module]):
        seconds = quickest(lambda: module(x).sum().item())  # which waits for the device
    return {
        "parameters": layers.num_parameters(module),
        "macs": layers.macs(module, x),
        "bytes": layers.num_bytes(module),
        "milliseconds": round(1000 * seconds, 3),
    }
