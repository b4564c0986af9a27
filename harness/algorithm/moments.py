"""The teacher as discriminator: batch statistics at its batch-norm layers against the running ones.

    R_bn(x) = sum_l ||mu_l(x) - mu^_l||_2 + ||var_l(x) - var^_l||_2      (`norm`, DeepInversion, arXiv 1912.08795)
    R_bn(x) = sum_l mean_c [ ((mu - mu^)^2 + var) / (2 var^) - ln(var / var^) / 2 - 1/2 ]    (`kl`, DFQ, 2005.04136)

mu_l, var_l (biased) are taken at the layer's input. Each layer gives (n, sum (x - mu^), sum (x - mu^)^2): sums
about the running mean add up over ranks and stay accurate where E[x^2] - E[x]^2 would turn negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

NormLayer = _BatchNorm
"""1d, 2d, 3d and synchronised batch norm, and timm's variants, which derive from BatchNorm2d."""


@dataclass(frozen=True)
class LayerMoments:
    """Statistics of a batch at one batch-norm layer of C channels, as sums over this process's samples."""

    sums: Tensor
    """[1 + 2C]: number of values a channel, sum (x - mu^), sum (x - mu^)^2."""
    running_var: Tensor
    """var^ [C]."""
    eps: float
    """The layer's `eps`: the least variance that is used."""
    past: Tensor | None = None
    """mu - mu^ and var of earlier batches [2, C], which are averaged with those of this batch; None: no average."""
    momentum: float = 0.0
    """The share of `past`."""


class _SumsAboutMean(torch.autograd.Function):
    """x [B, C, ...], mean [C] -> (sum (x - mean), sum (x - mean)^2), each [C].

    A custom backward, because autograd would store x - mean of every layer; x itself is stored in any case.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, mean)
        centred = wide(x) - _column(mean, x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        return centred.sum(axes), centred.square_().sum(axes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        slope = 2 * grads[1]
        return torch.addcmul(_column(grads[0] - slope * mean, x), wide(x), _column(slope, x)).to(x.dtype), None


@contextmanager
def observe(module: nn.Module) -> Iterator[list[LayerMoments]]:
    """Collects the moments of every batch-norm layer that is called inside the context, in the order of the calls.

    A layer that is called twice counts twice. The hooks are removed at the end of the context.
    """
    found: list[LayerMoments] = []
    handles = watch(module, lambda layer, x: found.append(layer_moments(layer, x)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def watch(module: nn.Module, take: Callable[[NormLayer, Tensor], None]) -> list[RemovableHandle]:
    """Registers hooks that call `take` with each batch-norm layer that is called and its input x [B, C, ...]."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        take(cast(NormLayer, layer), inputs[0])

    return [layer.register_forward_pre_hook(hook) for layer in _layers(module)]


def layer_moments(layer: NormLayer, x: Tensor) -> LayerMoments:
    """Moments of a layer's input x [B, C, ...], in fp32 or wider."""
    assert layer.running_mean is not None and layer.running_var is not None
    mean = wide(layer.running_mean)
    first, second = cast(tuple[Tensor, Tensor], _SumsAboutMean.apply(x, mean))
    count = first.new_full((1,), x.numel() / x.shape[1])
    return LayerMoments(torch.cat([count, first, second]), wide(layer.running_var), layer.eps)


def norm_distance(sums: Tensor, layer: LayerMoments) -> Tensor:
    """||mu - mu^||_2 + ||var - var^||_2 from a layer's global sums; the gradient at distance 0 is 0."""
    shift, var = shift_and_var(sums, layer)
    distance: Tensor = torch.linalg.vector_norm(shift) + torch.linalg.vector_norm(var - layer.running_var)
    return distance


def kl_distance(sums: Tensor, layer: LayerMoments) -> Tensor:
    """Mean over channels of KL(N(mu, var) || N(mu^, var^)), both variances floored at the layer's eps."""
    shift, var = shift_and_var(sums, layer)
    var, var_hat = var.clamp_min(layer.eps), layer.running_var.clamp_min(layer.eps)
    return ((shift.square() + var) / (2 * var_hat) - (var / var_hat).log() / 2 - 0.5).mean()


def shift_and_var(sums: Tensor, layer: LayerMoments) -> tuple[Tensor, Tensor]:
    """(mu - mu^, var), each [C], averaged with those of the past: var = E[(x - mu^)^2] - (mu - mu^)^2."""
    first, second = (sums[1:] / sums[0]).chunk(2)
    shift, var = first, second - first.square()
    if layer.past is None:
        return shift, var
    return torch.lerp(shift, layer.past[0], layer.momentum), torch.lerp(var, layer.past[1], layer.momentum)


def _layers(module: nn.Module) -> Iterator[NormLayer]:
    for layer in module.modules():
        if isinstance(layer, NormLayer) and layer.running_mean is not None:
            yield layer


def wide(x: Tensor) -> Tensor:
    """fp16 and bf16 as fp32, since statistics need more than their 8 to 11 bits; other types as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _column(values: Tensor, like: Tensor) -> Tensor:
    """[C] -> [1, C, 1, ...], to broadcast over `like` [B, C, ...]."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
