"""Times, the machine's peaks, and peak memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

REPEATS = 5
"""How often a part or a round is measured after one warm-up; fewer times where it takes long."""

TIME_LIMIT = 20.0
"""Seconds after which a measurement is not repeated again."""

MATRIX = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices whose product measures the peak of operations a second."""

COPY_MIB = {"cpu": 256, "cuda": 2048}
"""Size of the copy that measures the peak of bytes a second: far larger than the caches."""


def seconds(
    work: Callable[[Any], object],
    device: torch.device,
    prepare: Callable[[], Any] = lambda: None,
    statistic: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Seconds of `work` on what `prepare` returns, until the device has finished it.

    `statistic` of several measurements after one warm-up. The time of `prepare` does not count.
    """
    found: list[float] = []
    began = time.perf_counter()
    while len(found) <= REPEATS and (len(found) < 2 or time.perf_counter() - began < TIME_LIMIT):
        given = prepare()
        _wait(device)
        start = time.perf_counter()
        work(given)
        _wait(device)
        found.append(time.perf_counter() - start)
    return statistic(found[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peaks(device: torch.device, dtype: torch.dtype, precision: str) -> tuple[float, float]:
    """(operations, bytes) a second: the best of a large matrix product in the run's precision, and of a large copy."""
    side = MATRIX[device.type]
    kind = torch.bfloat16 if precision == "bf16" else dtype
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    source = torch.randn(COPY_MIB[device.type] * 2**18, device=device)
    target = torch.empty_like(source)
    product = seconds(lambda _: a @ b, device, statistic=min)
    copy = seconds(lambda _: target.copy_(source), device, statistic=min)
    return 2 * side**3 / product, 2 * source.numel() * source.element_size() / copy


def peak_memory(device: torch.device) -> float:
    """Peak bytes: of the device where it is a GPU, else of this process since it was started."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
