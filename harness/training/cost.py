"""What a network takes to keep and to run: the figures beside its accuracy."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from harness.config import Config, image_shape
from harness.networks import layers
from harness.networks.layers import evaluating

WARM_UP, TIMES = 2, 20
"""Forward passes on one image before its time is taken, and of how many the quickest counts."""


def of(config: Config, module: nn.Module | None) -> dict[str, Any]:
    """{parameters, macs and milliseconds of one image of the run's size, bytes of the weights}, on its own device."""
    if module is None:
        return {}
    first = next(module.parameters())
    x = torch.zeros(1, *image_shape(config), device=first.device, dtype=first.dtype)
    seconds = []
    with evaluating([module]):
        for _ in range(WARM_UP + TIMES):
            began = time.perf_counter()
            module(x).sum().item()  # waits for the device
            seconds.append(time.perf_counter() - began)
    return {
        "parameters": layers.num_parameters(module),
        "macs": layers.macs(module, x),
        "bytes": layers.num_bytes(module),
        "milliseconds": round(1000 * min(seconds[WARM_UP:]), 3),
    }
