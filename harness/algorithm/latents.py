"""Random draws as pure functions of their keys: no random state has to be saved, and all ranks draw the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def mix(*keys: int | str) -> int:
    """A 63-bit seed that depends on every key: mix(seed, "latents", round, turn)."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def latents(rows: range, total: int, size: int, *keys: int | str) -> Tensor:
    """Rows of the global batch z ~ N(0, I) of `total` samples: z [len(rows), size], fp32, on the CPU.

    Every rank draws the whole batch and slices it, because torch's values depend on how many are drawn in one call.
    """
    source = torch.Generator().manual_seed(mix(*keys))
    return torch.randn(total, size, generator=source)[rows.start : rows.stop]


def classes(rows: range, total: int, count: int, *keys: int | str) -> Tensor:
    """Like `latents`: target classes y [len(rows)] in 0 .. count - 1, equally frequent in the global batch.

    Where `total` is no multiple of `count`, some have one image less in it; which, is drawn anew for each batch.
    """
    source = torch.Generator().manual_seed(mix(*keys))
    y = torch.randperm(total, generator=source) % count
    if total % count:
        y = torch.randperm(count, generator=source)[y]
    return y[rows.start : rows.stop]


def classes_in_turn(rows: range, count: int, *keys: int | str) -> Tensor:
    """Like `classes`, in an order in which any `count` rows that follow each other have different classes."""
    source = torch.Generator().manual_seed(mix(*keys))
    return torch.randperm(count, generator=source)[torch.arange(rows.start, rows.stop) % count]


def uniform(rows: range, total: int, size: int, *keys: int | str) -> Tensor:
    """Like `latents`: numbers from the uniform distribution over [0, 1), [len(rows), size]."""
    source = torch.Generator().manual_seed(mix(*keys))
    return torch.rand(total, size, generator=source)[rows.start : rows.stop]


def shard(total: int, rank: int, world_size: int) -> range:
    """The rows of a global batch of `total` that belong to a rank; shards differ by one row at most."""
    return range(rank * total // world_size, (rank + 1) * total // world_size)


def part_shard(size: int, part: int, rank: int, world_size: int) -> range:
    """The rows of a global batch that belong to a rank in micro-batch `part` of `size` rows."""
    own = shard(size, rank, world_size)
    return range(part * size + own.start, part * size + own.stop)


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seeds torch's global generators, on the host and on this device.

    torch.manual_seed also records a call, with its stack, for each kind of device that is not in use. This costs
    milliseconds in every turn, and memory that grows.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor to the device; the host does not wait for the copy."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
