"""Generator networks: z [B, Z] -> images [B, C, H, W] in the teacher's normalised input space.

`upsample` follows the generator of DAFL and DFAD for classification, `dcgan` that of DFAD for segmentation; how they
depart from them is in docs/method.md. Neither has a bias before a batch norm.
"""

from __future__ import annotations

from torch import Tensor, nn


class Upsample(nn.Module):
    """Linear -> 2W channels at H/4, two times (upsample, conv, BN, LeakyReLU .2), conv, tanh, BN without affine."""

    multiple = 4
    usual_width = 64

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
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, z: Tensor) -> Tensor:
        """z [B, Z] -> [B, C, H, W], each channel with mean 0 and variance 1 over the batch."""
        images: Tensor = self.body(self.linear(z).view(-1, *self.start))
        return images


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


GENERATORS: dict[str, type[Upsample] | type[DCGAN]] = {"upsample": Upsample, "dcgan": DCGAN}


def build(name: str, latent_size: int, shape: tuple[int, int, int], width: int = 0) -> nn.Module:
    """A generator of images of `shape` (C, H, W); `width` 0 is the usual one. ValueError where the sides don't fit."""
    kind = GENERATORS[name]
    for side in shape[1:]:
        if side % kind.multiple or side == 0:
            nearest = max(kind.multiple, round(side / kind.multiple) * kind.multiple)
            raise ValueError(
                f"input.size: the generator {name!r} makes sides divisible by {kind.multiple}, not {side}; "
                f"the nearest is {nearest}"
            )
    return kind(latent_size, shape, width or kind.usual_width)
