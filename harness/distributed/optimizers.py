"""Optimisers and learning-rate schedules, from a player's settings."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from harness.config import Optimizer


def build(parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], settings: Optimizer) -> torch.optim.Optimizer:
    """The torch optimiser that settings name; fused, because only those can skip an update on the device."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    betas = (settings.betas[0], settings.betas[1])
    return torch.optim.Adam(parameters, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=True)


def learning_rate(settings: Optimizer, progress: float) -> float:
    """The learning rate at a fraction of the run in [0, 1)."""
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2
    if settings.schedule == "multistep":
        return settings.lr * settings.gamma ** bisect_right(settings.milestones, progress)
    return settings.lr
