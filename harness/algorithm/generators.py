"""Generator networks: z [B, Z] -> images [B, C, H, W] in the teacher's normalised input space.

`upsample` follows the generator of DAFL and DFAD for classification, `affine` that of ZSKT, `pixels` that of DFQ,
`dcgan` that of DFAD for segmentation; docs/method.md lists the differences. No layer before a batch norm has a
bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Upsample(nn.Module):
    """Linear -> 2W channels at H/4, two times (upsample, conv, BN, LeakyReLU .2), conv, tanh, BN without affine."""

    multiple = 4
    usual_width = 64
    last_bias = True

    def __init__(self, latent_size: int, shape: tuple[int, int, int], width: int) -> None:
        """`width` W: channels of the last hidden layer."""
        super().__init__()
        channels, height, width_px = shape
        self.start = (2 * width, height // 4, width_px // 4)
        self.linear = nn.Linear(latent_size, self.start[0] * self.start[1] * self.start[2], bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, channels, 3, padding=1, bias=self.last_bias),
            *self.end(channels),
        )

    def end(self, channels: int) -> list[nn.Module]:
        """The layers after the last convolution."""
        return [nn.Tanh(), nn.BatchNorm2d(channels, affine=False)]

    def forward(self, z: Tensor) -> Tensor:
        """z [B, Z] -> [B, C, H, W], each channel with mean 0 and variance 1 over the batch."""
        images: Tensor = self.body(self.linear(z).view(-1, *self.start))
        return images


class Affine(Upsample):
    """`Upsample` that ends in a batch norm with scale and shift, and no tanh."""

    last_bias = False

    def end(self, channels: int) -> list[nn.Module]:
        """A batch norm that learns each channel's mean and deviation."""
        return [nn.BatchNorm2d(channels)]


class Pixels(Upsample):
    """`Upsample` that ends in a sigmoid: pixels in 0..1."""

    def end(self, channels: int) -> list[nn.Module]:
        """A sigmoid."""
        return [nn.Sigmoid()]


class Normalise(nn.Module):
    """Pixels [B, C, H, W] in 0..1 -> (x - mean) / std by channel; no parameters, nothing in the state_dict."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


class DCGAN(nn.Module):
    """Linear -> 8W channels at H/16, four transposed convolutions, tanh; weights start at N(0, .02)."""

    multiple = 16
    usual_width = 64

    def __init__(self, latent_size: int, shape: tuple[int, int, int], width: int) -> None:
        """`width` W: channels of the last hidden layer."""
        super().__init__()
        channels, height, width_px = shape
        self.start = (8 * width, height // 16, width_px // 16)
        self.linear = nn.Linear(latent_size, self.start[0] * self.start[1] * self.start[2], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(8 * width), nn.LeakyReLU(0.2, inplace=True)]
        for factor in (4, 2, 1):
            layers += [
                nn.ConvTranspose2d(2 * factor * width, factor * width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(factor * width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.body = nn.Sequential(*layers, nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh())
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, z: Tensor) -> Tensor:
        """z [B, Z] -> [B, C, H, W] in [-1, 1]."""
        images: Tensor = self.body(self.linear(z).view(-1, *self.start))
        return images


class Noisy(nn.Module):
    """Class embeddings e [b, E] -> images: batch norm, noisy layers E -> Z, and a generator of what they give (NAYER).

    Each K rows of the global batch share a noisy layer. All layers are on every process, `rows` are those of this one.
    """

    def __init__(self, generator: nn.Module, sizes: tuple[int, int], rows: range, total: int, classes: int) -> None:
        """`sizes`: E and Z; `total`: rows of the global batch; `classes`: K."""
        super().__init__()
        embedding_size, latent_size = sizes
        num_layers = -(-total // classes)
        self.rows, self.classes = rows, classes
        self.norm = nn.BatchNorm1d(embedding_size)
        self.weight = nn.Parameter(torch.zeros(num_layers, latent_size, embedding_size))
        self.bias = nn.Parameter(torch.zeros(num_layers, 1, latent_size))
        self.generator = generator

    @torch.no_grad()
    def draw(self, weights: Tensor) -> None:
        """Draws the noisy layers anew: `weights` ~ N(0, 1) [layers, Z * E], biases 0."""
        self.weight.copy_(weights.view_as(self.weight))
        self.bias.zero_()

    def forward(self, e: Tensor) -> Tensor:
        """[b, E] -> [b, C, H, W]."""
        num_layers, _, size = self.weight.shape
        after = num_layers * self.classes - self.rows.stop
        grouped = F.pad(self.norm(e), (0, 0, self.rows.start, after)).view(num_layers, self.classes, size)
        z = torch.baddbmm(self.bias, grouped, self.weight.transpose(1, 2)).flatten(0, 1)
        images: Tensor = self.generator(z[self.rows.start : self.rows.stop])
        return images


GENERATORS: dict[str, type[Upsample] | type[DCGAN]] = {
    "upsample": Upsample,
    "affine": Affine,
    "pixels": Pixels,
    "dcgan": DCGAN,
}

Normalisation = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation by channel, of pixels in 0..1."""


def build(
    name: str, latent_size: int, shape: tuple[int, int, int], width: int = 0, normalisation: Normalisation | None = None
) -> nn.Module:
    """A generator of images of `shape` (C, H, W); `width` 0: the usual one. Raises ValueError if a side does not fit.

    `normalisation`: applied to the images of the generator `pixels`; None: they stay pixels in 0..1.
    """
    kind = GENERATORS[name]
    for side in shape[1:]:
        if side % kind.multiple or side == 0:
            nearest = max(kind.multiple, round(side / kind.multiple) * kind.multiple)
            raise ValueError(
                f"input.size: the generator {name!r} makes sides divisible by {kind.multiple}, not {side}; "
                f"the nearest is {nearest}"
            )
    generator = kind(latent_size, shape, width or kind.usual_width)
    if normalisation is None or not isinstance(generator, Pixels):
        return generator
    return nn.Sequential(generator, Normalise(*normalisation))
