"""Sums over all processes, and the two ways in which gradients go back through them.

Every process computes the whole loss L from the sums, so dL/dsum is the same everywhere, and engines average gradients
over the W processes. So the backward of a loss's sum returns W dL/dsum and needs no communication. A sum inside a layer
is used differently by each process, so that its gradients differ and have to be summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def total(values: Tensor) -> Tensor:
    """The sum over processes of a tensor of one shape; equal to the bit on all of them. No gradient flows."""
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def from_first(value: Tensor) -> Tensor:
    """A tensor as rank 0 has it, on all processes: buffers of a batch norm that is not synchronised differ."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    sent = value.detach().clone()
    dist.broadcast(sent, src=0)
    return sent


def loss_sum(values: Tensor) -> Tensor:
    """The sum over processes of what a loss is made of; gradients come back multiplied by the number of processes."""
    summed: Tensor = _LossSum.apply(values)
    return summed


class _LossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        return total(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * dist.get_world_size()
