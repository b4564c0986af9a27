"""Segmentation networks: images [B, C, H, W] -> logits [B, K, H, W]. The large ones are `smp:` and `torchvision:`.

Only a small U-Net is built in, for trying things out in seconds. No convolution before a batch norm has a bias.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import UserError, nearest

NAMES = ["unet4", "unet8", "unet16", "unet32"]
"""The usual names; `network` also builds any other unetWIDTH."""


def network(name: str, classes: int, channels: int, **arguments: Any) -> nn.Module:
    """The network of that name with fresh weights: [B, channels, H, W] -> logits [B, classes, H, W].

    Raises UserError for an unknown name, or any keyword argument: none of these takes one.
    """
    found = re.fullmatch(r"unet([1-9]\d*)", name)
    if not found:
        raise UserError(f"unknown network {name!r}{nearest(name, NAMES)}; see also smp:ARCH/ENCODER")
    if arguments:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(f"network {name!r} takes no arguments, got {given}: remove them, or use a file of your own")
    return UNet(int(found[1]), classes, channels)


class UNet(nn.Module):
    """A U-Net (Ronneberger et al., 2015) of three levels with batch norm, for sides of at least 4 pixels."""

    def __init__(self, width: int, classes: int, channels: int) -> None:
        """`width`: channels at full size; they double at each level down."""
        super().__init__()
        self.down1 = _block(channels, width)
        self.down2 = _block(width, 2 * width)
        self.bottom = _block(2 * width, 4 * width)
        self.up2 = _block(4 * width + 2 * width, 2 * width)
        self.up1 = _block(2 * width + width, width)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K, H, W]."""
        full = self.down1(x)
        half = self.down2(F.max_pool2d(full, 2))
        y = self.bottom(F.max_pool2d(half, 2))
        y = self.up2(_join(y, half))
        logits: Tensor = self.classifier(self.up1(_join(y, full)))
        return logits


def _join(below: Tensor, beside: Tensor) -> Tensor:
    """The map from below, enlarged, with the one beside it."""
    return torch.cat([F.interpolate(below, beside.shape[2:], mode="nearest"), beside], 1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
