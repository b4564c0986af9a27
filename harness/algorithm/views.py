"""Views of images: a shift, crop and mirroring for each image, as matrices over rows and columns; mixtures of two.

    x' = R x C^T,  x [C, H, W], R [H, H], C [W, W]

so that a view is differentiable and bit-identical on every device. The draws u [b, 4] in [0, 1) of an image choose its
vertical and horizontal position, whether it is mirrored, and its size.
"""

from __future__ import annotations

import torch
from torch import Tensor

JITTER, PADDING = 16, 8
"""Largest shift and padding, as a share of the side: 2 and 4 pixels of 32."""

MIN_AREA = 0.25
"""Smallest share of an image in a local view (CMI's public code)."""


def of(name: str, x: Tensor, draws: Tensor, mirror: bool, black: Tensor) -> Tensor:
    """The view `name` of images x [b, C, H, W]: "jitter" or "crop"."""
    return jitter(x, draws, mirror) if name == "jitter" else crop(x, draws, mirror, black)


def jitter(x: Tensor, draws: Tensor, mirror: bool) -> Tensor:
    """Shifts around the edges by up to a sixteenth of the side, x [b, C, H, W] (DeepInversion)."""
    reach = [-(-side // JITTER) for side in x.shape[2:]]
    starts = [_whole(draws[:, axis], 2 * r + 1) - r for axis, r in enumerate(reach)]
    positions = [_positions(start, side) % side for start, side in zip(starts, x.shape[2:], strict=True)]
    return _resample(x, positions, draws, mirror)


def crop(x: Tensor, draws: Tensor, mirror: bool, black: Tensor) -> Tensor:
    """Crops after padding by an eighth of the side with `black` [C, 1, 1], x [b, C, H, W]."""
    reach = [-(-side // PADDING) for side in x.shape[2:]]
    starts = [_whole(draws[:, axis], 2 * r + 1) - r for axis, r in enumerate(reach)]
    positions = [_positions(start, side) for start, side in zip(starts, x.shape[2:], strict=True)]
    return _resample(x - black, positions, draws, mirror) + black


def local(x: Tensor, draws: Tensor, mirror: bool) -> Tensor:
    """A part of each image, a quarter of its area up to all of it, scaled to the size of the whole, x [b, C, H, W]."""
    scale = (MIN_AREA + (1 - MIN_AREA) * draws[:, 3]).sqrt()
    positions = []
    for axis, side in enumerate(x.shape[2:]):
        start = draws[:, axis] * (1 - scale) * side
        centres = start[:, None] + scale[:, None] * (torch.arange(side, device=x.device) + 0.5) - 0.5
        positions.append(centres.clamp(0, side - 1))
    return _resample(x, positions, draws, mirror)


def mixup(x: Tensor, other: Tensor, draws: Tensor) -> Tensor:
    """u x + (1 - u) x', a draw u [b] in [0, 1) for each image; x and x' [b, C, H, W] (mixup, arXiv 1710.09412)."""
    share = draws[:, None, None, None]
    return share * x + (1 - share) * other


def _whole(draw: Tensor, count: int) -> Tensor:
    """Draws in [0, 1) -> integers 0 .. count - 1; in fp32 a draw just below 1 may round up."""
    return (draw * count).floor().clamp(max=count - 1)


def _positions(start: Tensor, side: int) -> Tensor:
    """Source position of each of `side` pixels, [b, side]."""
    return start[:, None] + torch.arange(side, device=start.device)


def _resample(x: Tensor, positions: list[Tensor], draws: Tensor, mirror: bool) -> Tensor:
    """Pixels [b, C, H, W] from (row, column) positions [b, H], [b, W]; 0 outside; half of the images mirrored."""
    rows, columns = positions
    if mirror:
        columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
    return _interpolation(rows, x.shape[2])[:, None] @ x @ _interpolation(columns, x.shape[3])[:, None].transpose(2, 3)


def _interpolation(positions: Tensor, side: int) -> Tensor:
    """Weights [b, n, side] of the two pixels next to each position [b, n]: linear interpolation."""
    return (1 - (positions[:, :, None] - torch.arange(side, device=positions.device)).abs()).clamp_min(0)
