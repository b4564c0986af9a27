"""Class embeddings: one fixed vector for each class, from a file or drawn from the seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from harness.algorithm.latents import latents
from harness.config import Config
from harness.errors import UserError
from harness.networks import checkpoints
from harness.networks.weights import FLOATS

SIZE = 512
"""Length of the embeddings that are drawn: that of CLIP's text embeddings in NAYER's public code."""


def embeddings(config: Config) -> Tensor:
    """Embeddings [K, E], fp32, on the CPU; UserError where the file does not hold one for each class."""
    if config.generator.embeddings is None:
        return latents(range(config.classes), config.classes, SIZE, config.seed, "embeddings")
    path = Path(config.generator.embeddings)
    found = _tensor(path)
    expected = f"numbers [{config.classes}, E], a row for each class"
    if found.dim() != 2 or len(found) != config.classes or not found.shape[1]:
        raise _refusal(path, f"holds {list(found.shape)}, expected {expected}")
    if found.dtype not in FLOATS or found.layout != torch.strided or found.is_meta:
        kind = f"{found.layout} {found.dtype} on {found.device}".replace("torch.", "")
        raise _refusal(path, f"holds {kind}, expected strided floating-point {expected}")
    found = found.float()
    if not found.isfinite().all():
        raise _refusal(path, "holds values that are NaN or infinite, expected finite ones")
    if len(found.unique(dim=0)) < len(found):
        raise _refusal(path, "holds the same row for two classes, expected different rows")
    return found


def _tensor(path: Path) -> Tensor:
    """The one tensor of a file."""
    content = checkpoints.load(path)
    tensors = [content] if isinstance(content, Tensor) else []
    if isinstance(content, Mapping):
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if len(tensors) != 1:
        raise _refusal(path, f"holds {len(tensors)} tensors, expected one")
    return tensors[0]


def _refusal(path: Path, problem: str) -> UserError:
    return UserError(f"generator.embeddings={path}: the file {problem}: give another, or null for random ones")
