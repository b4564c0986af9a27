"""Batch norm over the global batch: the statistics of all processes' samples, forward and backward.

PyTorch's own SyncBatchNorm does not run on CPUs, and replaces layers by its own type. Here every layer keeps its code;
only its call of `F.batch_norm` is intercepted, in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from harness.algorithm.moments import NormLayer, wide
from harness.distributed.collectives import total


def synchronise(module: nn.Module) -> None:
    """From here on every batch-norm layer of the network normalises by the global batch; parameters stay as they are.

    Every process has to call the network at the same time.
    """
    for layer in module.modules():
        if isinstance(layer, NormLayer) and not isinstance(layer, nn.SyncBatchNorm):
            layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]


def _forward(layer: NormLayer, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with _Global(layer):
        return forward(x)


class _Global(TorchFunctionMode):
    """Inside, `F.batch_norm` over a batch's own statistics takes those of the global batch."""

    def __init__(self, layer: NormLayer) -> None:
        super().__init__()
        self.layer = layer

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function is F.batch_norm and named.get("training"):
            return _batch_norm(self.layer, *args, **named)
        return function(*args, **named)


def _batch_norm(
    layer: NormLayer,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    **rest: Any,
) -> Tensor:
    """`F.batch_norm` in training, with the statistics of the global batch."""
    weight, bias, eps = rest["weight"], rest["bias"], rest["eps"]
    y, mean, var, count = _GlobalBatchNorm.apply(wide(x), weight, bias, layer.running_mean, eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), rest["momentum"])
        unbiased = var * (count / (count - 1))  # as torch keeps it
        running_var.lerp_(unbiased.to(running_var.dtype), rest["momentum"])
    result: Tensor = y.to(x.dtype)
    return result


class _GlobalBatchNorm(torch.autograd.Function):
    """(x [B, C, ...], weight [C], bias [C], centre [C], eps) -> (y like x, mean [C], biased var [C], values a channel).

    One reduction each way. Sums are taken about `centre`, the running mean, which all processes share: E[x^2] - E[x]^2
    about 0 would lose the variance of a channel whose mean is large.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, centre: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        centre = torch.zeros_like(mean) if centre is None else centre.to(mean.dtype)
        count, shift = mean.new_full((1,), x.numel() / x.shape[1]), mean - centre
        sums = total(torch.cat([count, count * shift, count * (var + shift.square())]))
        count, (first, second) = sums[0], (sums[1:] / sums[0]).chunk(2)
        mean, var = centre + first, second - first.square()
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        gain = torch.ones_like(mean) if weight is None else weight
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, gain, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        # dx = w / sd (dy - mean(dy) - x^ mean(dy x^)), x^ = (x - mean) / sd; the means are over the global batch.
        mean_dy, mean_dy_x = (total(torch.cat([dbias, dweight])) / count).chunk(2)
        inverse = (var + ctx.eps).rsqrt()
        slope = gain * inverse.square() * mean_dy_x
        shift = gain * inverse * mean_dy - slope * mean
        column = partial(torch.reshape, shape=(1, -1, *[1] * (x.dim() - 2)))
        dx -= torch.addcmul(column(shift), column(slope), x)
        return dx, (None if weight is None else dweight), (None if weight is None else dbias), None, None
