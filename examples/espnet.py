"""A network of one's own in a file of one's own: ESPNet (Mehta et al., 2018, arXiv 1803.06815), for segmentation.

    ddad evaluate --network examples/espnet.py:espnet --checkpoint espnet_p_2_q_8_camvid.pth --data camvid \
        --classes 12 --size 360,480 --channels bgr --mean .43267,.42514,.41188 --std 72.13,72.69,69.90

Its layers are named as in the authors' checkpoint for CamVid, which has 12 outputs for 11 classes: the last is void.
Their input is (BGR in 0..255 - [110.33 108.41 105.03]) / [72.13 72.69 69.90], divided by 255 once more; for pixels in
0..1 that is mean [110.33 108.41 105.03] / 255 and deviation [72.13 72.69 69.90]. Sides are divisible by 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-3
"""Of every batch norm here."""


class Conv(nn.Module):
    """A convolution without bias that keeps the size, or halves it at stride 2."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (size - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y: Tensor = self.conv(x)
        return y


class Norm(nn.Module):
    """Batch norm and PReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width, eps=EPS)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same."""
        y: Tensor = self.act(self.bn(x))
        return y


class ConvNorm(Conv):
    """Convolution, batch norm and PReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride)
        self.bn = nn.BatchNorm2d(outputs, eps=EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Pyramid(nn.Module):
    """An efficient spatial pyramid: reduce to a fifth, five dilated convolutions, summed up from the second on.

    The sums (the paper's hierarchical feature fusion) take away the grid that wide dilations leave.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        width = outputs // 5
        self.c1 = Conv(inputs, width, size, stride)
        self.d1 = Conv(width, outputs - 4 * width, 3)
        self.d2 = Conv(width, width, 3, dilation=2)
        self.d4 = Conv(width, width, 3, dilation=4)
        self.d8 = Conv(width, width, 3, dilation=8)
        self.d16 = Conv(width, width, 3, dilation=16)

    def fused(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        reduced = self.c1(x)
        parts = [self.d1(reduced), self.d2(reduced)]
        for dilated in (self.d4, self.d8, self.d16):
            parts.append(parts[-1] + dilated(reduced))
        return torch.cat(parts, 1)


class Down(Pyramid):
    """A pyramid that halves the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, size=3, stride=2)
        self.bn = nn.BatchNorm2d(outputs, eps=EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / 2, W / 2]."""
        y: Tensor = self.act(self.bn(self.fused(x)))
        return y


class Block(Pyramid):
    """A pyramid at one size, with a shortcut where the widths agree."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, size=1, stride=1)
        self.bn = Norm(outputs)
        self.shortcut = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        y = self.fused(x)
        z: Tensor = self.bn(x + y if self.shortcut else y)
        return z


class Encoder(nn.Module):
    """Maps at a half, a quarter and an eighth of the size; the image itself, made smaller, joins the first two."""

    def __init__(self, classes: int, channels: int, p: int, q: int) -> None:
        super().__init__()
        self.level1 = ConvNorm(channels, 16, 3, stride=2)
        self.b1 = Norm(16 + channels)
        self.level2_0 = Down(16 + channels, 64)
        self.level2 = nn.ModuleList([Block(64, 64) for _ in range(p)])
        self.b2 = Norm(128 + channels)
        self.level3_0 = Down(128 + channels, 128)
        self.level3 = nn.ModuleList([Block(128, 128) for _ in range(q)])
        self.b3 = Norm(256)
        self.classifier = Conv(256, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, H, W] -> [B, 16 + C, H / 2, W / 2], [B, 128 + C, H / 4, W / 4], logits [B, K, H / 8, W / 8]."""
        half_image = F.avg_pool2d(x, 3, 2, 1)
        quarter_image = F.avg_pool2d(half_image, 3, 2, 1)
        half = self.b1(torch.cat([self.level1(x), half_image], 1))
        first = y = self.level2_0(half)
        for block in self.level2:
            y = block(y)
        quarter = self.b2(torch.cat([y, first, quarter_image], 1))
        first = y = self.level3_0(quarter)
        for block in self.level3:
            y = block(y)
        return half, quarter, self.classifier(self.b3(torch.cat([first, y], 1)))


class ESPNet(nn.Module):
    """The encoder, and a light decoder that goes back up one doubling at a time."""

    def __init__(self, classes: int, channels: int, p: int, q: int) -> None:
        """`p`, `q`: blocks at a quarter and at an eighth of the size."""
        super().__init__()
        self.encoder = Encoder(classes, channels, p, q)
        self.level3_C = Conv(128 + channels, classes, 1)
        self.br = nn.BatchNorm2d(classes, eps=EPS)
        self.up_l3 = nn.Sequential(_double(classes))
        self.combine_l2_l3 = nn.Sequential(Norm(2 * classes), Block(2 * classes, classes))
        self.up_l2 = nn.Sequential(_double(classes), Norm(classes))
        self.conv = ConvNorm(16 + channels + classes, classes, 3)
        self.classifier = _double(classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K, H, W], H and W divisible by 8."""
        half, quarter, eighth = self.encoder(x)
        y = torch.cat([self.level3_C(quarter), self.up_l3(self.br(eighth))], 1)
        y = self.up_l2(self.combine_l2_l3(y))
        logits: Tensor = self.classifier(self.conv(torch.cat([y, half], 1)))
        return logits


def _double(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)


def espnet(classes: int, channels: int = 3, p: int = 2, q: int = 8) -> nn.Module:
    """ESPNet of the paper's size for CamVid."""
    return ESPNet(classes, channels, p, q)
