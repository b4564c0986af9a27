"""Image sizes that a network takes, found by trying: many take only multiples of 16 or 32, and their errors differ."""

from __future__ import annotations

from torch import Tensor, nn

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Multiples that sides are rounded to, in this order, until the network accepts them."""


def nearest(module: nn.Module, x: Tensor) -> tuple[int, int] | None:
    """(height, width) that the network takes, nearest to those of x [B, C, H, W]; None if no multiple works.

    Runs the network on two black images of each size: call this in eval mode and without gradients.
    """
    for height, width in dict.fromkeys((_round(x.shape[-2], m), _round(x.shape[-1], m)) for m in MULTIPLES):
        try:
            answer: object = module(x.new_zeros(2, x.shape[1], height, width))
        except Exception:  # layers raise many types for a wrong shape
            continue
        # Logits of another size: sides were rounded down by strides and not restored by upsampling.
        if isinstance(answer, Tensor) and (answer.dim() != 4 or answer.shape[2:] == (height, width)):
            return height, width
    return None


def _round(side: int, multiple: int) -> int:
    return max(multiple, (2 * side + multiple) // (2 * multiple) * multiple)
