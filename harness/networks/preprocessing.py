"""From pixels to a network's input and back: part of the teacher, and saved with the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.config import Config, image_shape

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601, as Pillow's mode L)."""


@dataclass(frozen=True)
class Preprocessing:
    """Size, channel order and normalisation of a network's input."""

    height: int
    width: int
    channels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, rgb: Tensor) -> Tensor:
        """RGB images [..., 3, H, W] in 0..1 -> network input [..., C, H, W]."""
        return (self._reorder(rgb) - self._column(self.mean, rgb)) / self._column(self.std, rgb)

    def denormalise(self, x: Tensor) -> Tensor:
        """Network input [..., C, H, W] -> RGB images [..., 3, H, W], clamped to 0..1."""
        pixels = (x * self._column(self.std, x) + self._column(self.mean, x)).clamp(0, 1)
        if self.channels == "gray":
            return pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])
        return pixels.flip(-3) if self.channels == "bgr" else pixels

    def _reorder(self, rgb: Tensor) -> Tensor:
        if self.channels == "gray":
            return (rgb * self._column(LUMA, rgb)).sum(-3, keepdim=True)
        return rgb.flip(-3) if self.channels == "bgr" else rgb

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def fit(image: Tensor, height: int, width: int) -> Tensor:
    """Scaled to cover height x width (bilinear, antialiased), the overhang cropped evenly: [3, height, width]."""
    from torchvision.transforms.v2 import functional

    scale = max(height / image.shape[-2], width / image.shape[-1])
    size = [max(height, round(image.shape[-2] * scale)), max(width, round(image.shape[-1] * scale))]
    cropped: Tensor = functional.center_crop(functional.resize(image, size, antialias=True), [height, width])
    return cropped


def preprocessing(config: Config) -> Preprocessing:
    """The preprocessing a configuration names."""
    num_channels, height, width = image_shape(config)
    mean = tuple(config.teacher.mean or [0.0] * num_channels)
    std = tuple(config.teacher.std or [1.0] * num_channels)
    return Preprocessing(height, width, config.teacher.channels, mean, std)


def black(config: Config) -> Tensor:
    """The network input of a black pixel, [C, 1, 1]."""
    spec = preprocessing(config)
    return (-torch.tensor(spec.mean) / torch.tensor(spec.std))[:, None, None]


def from_record(record: dict[str, Any]) -> Preprocessing:
    """The preprocessing that `dataclasses.asdict` wrote into student.json."""
    return Preprocessing(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])})
