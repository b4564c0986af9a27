"""Optimisers and learning-rate schedules, from a player's settings."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

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


def update(optimizer: torch.optim.Optimizer, learning_rate: float, skip: Tensor) -> None:
    """One update of all parameter groups at one rate, unless `skip` is 1; the gradients are freed."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    step(optimizer, skip)


def step(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """One update at the rates that the groups have, unless `skip` is 1; the gradients are freed."""
    optimizer.found_inf = skip  # type: ignore[attr-defined]  # torch.amp's hook, which fused optimisers read
    optimizer.step()
    optimizer.zero_grad()


def skips(ended: Tensor, norm: Tensor) -> Tensor:
    """1.0 where `ended` is 1 or a gradient norm is not finite, else 0.0; the host does not wait for the device."""
    return ended.maximum((~norm.isfinite()).to(ended))


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm over all gradients that the parameters have, a scalar; 0 where none has one."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
