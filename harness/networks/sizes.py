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
        if _takes(module, x, height, width):
            return height, width
    return None


def multiple(module: nn.Module, x: Tensor) -> int | None:
    """The least of MULTIPLES by which both sides of images x [B, C, H, W] may vary; None: the network has a fixed size.

    Runs the network as `nearest` does.
    """
    height, width = x.shape[-2:]
    for m in MULTIPLES:
        if height % m == width % m == 0 and all(_takes(module, x, *size) for size in others(height, width, m)):
            return m
    return None


def others(height: int, width: int, step: int) -> list[tuple[int, int]]:
    """Sizes that differ from (height, width) by odd and even multiples of `step`, in one side and in both."""
    return [(height + step, width + 2 * step), (max(step, height - step), width + 3 * step), (height, width + step)]


def _takes(module: nn.Module, x: Tensor, height: int, width: int) -> bool:
    """Whether the network takes images like x of that size; a map has to have it too."""
    try:
        answer: object = module(x.new_zeros(2, x.shape[1], height, width))
    except Exception:  # layers raise many types for a wrong shape
        return False
    # Logits of another size: sides were rounded down by strides and not restored by upsampling.
    return isinstance(answer, Tensor) and (answer.dim() != 4 or answer.shape[2:] == (height, width))


def _round(side: int, multiple: int) -> int:
    return max(multiple, (2 * side + multiple) // (2 * multiple) * multiple)
