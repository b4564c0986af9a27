"""What a node is doing: its processors, its memory, its devices."""

from __future__ import annotations

import os

import psutil
import torch

GIB = 2**30


def sample() -> dict[str, float]:
    """Load of this host since the last call: cpu_percent, memory_gib, and gpu<k>_memory_gib where there are GPUs."""
    found = {"cpu_percent": psutil.cpu_percent(), "memory_gib": psutil.virtual_memory().used / GIB}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"gpu{index}_memory_gib"] = (total - free) / GIB
    return found


def node() -> int | None:
    """The index of this process's host where it speaks for the host: the first of its processes does."""
    return int(os.environ.get("GROUP_RANK", "0")) if os.environ.get("LOCAL_RANK", "0") == "0" else None
