"""What a batch of images that is made by many steps consists of (`harness.training.inversion`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.algorithm.generators import Noisy

HEAD_SIZE = 256
"""Size of the projected features (CMI's public code)."""


class Batch(nn.Module):
    """Images of this process's rows: pixels [b, C, H, W]; or G(z) of latents [b, Z], or of class embeddings [b, E]."""

    def __init__(self, start: Tensor, generator: nn.Module | None, view: Callable[[Tensor, Tensor], Tensor]) -> None:
        """`view`: maps images and draws [b, 4] to a view of the images. Embeddings do not learn, the rest does."""
        super().__init__()
        self.start, self.generator, self.view = nn.Parameter(start, not isinstance(generator, Noisy)), generator, view
        self.images = start

    def forward(self, draws: Tensor) -> Tensor:
        """The view of the images for these draws, [b, C, H, W]; sets `images` to the images themselves."""
        self.images = self.start.clone() if self.generator is None else self.generator(self.start)
        return self.view(self.images, draws)


class Head(nn.Module):
    """Projection head of the contrastive term: features [b, F] -> [b, D] of norm 1."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        hidden = nn.Linear(num_features, num_features)
        self.layers = nn.Sequential(hidden, nn.ReLU(), nn.Linear(num_features, HEAD_SIZE))

    def forward(self, features: Tensor) -> Tensor:
        """[..., F] -> [..., D]."""
        return F.normalize(self.layers(features), dim=-1)


class Best:
    """The images with the lowest loss among the steps of a batch, and their features for the bank."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.full((), math.inf, device=device)
        self.images = self.features = torch.zeros((), device=device)

    def take(self, loss: Tensor, images: Tensor, features: Tensor) -> None:
        """Keeps the images and features of a step if its loss is lower than all before."""
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.images = torch.where(better, images, self.images)
        self.features = torch.where(better, features, self.features)
