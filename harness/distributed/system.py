"""What a node is doing: its processors, its memory, its devices."""

from __future__ import annotations

import os

import psutil
import torch

MEGABYTE = 1e6
"""Bytes, as MLflow counts them."""


def sample() -> dict[str, float]:
    """Load of this host since the last call, under the names that MLflow gives its system metrics."""
    memory = psutil.virtual_memory()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
    }
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / MEGABYTE
        found[f"gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
    return found


def node() -> int | None:
    """The index of this process's host where it speaks for the host: the first of its processes does."""
    return int(os.environ.get("GROUP_RANK", "0")) if os.environ.get("LOCAL_RANK", "0") == "0" else None
