"""A network of one's own in a file of one's own: the CIFAR ResNet of the karanchahal distillation checkpoints.

    ddad distill classification classes=10 data.name=cifar10 student.network=resnet20 \
        teacher.network=examples/karanchahal_resnet.py:resnet14 teacher.checkpoint=resnet14_cifar10.pth \
        teacher.mean=[0.4914,0.4822,0.4465] teacher.std=[0.2023,0.1994,0.2010]

It differs from He et al.'s ResNet: the stem has 64 channels, a 1x1 convolution with batch norm shortcuts every change
of shape, blocks end without ReLU (each stage ends with one), and 2x2 pooled positions stay apart before `linear`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """bn(conv(relu(bn(conv(x))))) + shortcut(x), with no ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x)
        return out


class ResNet(nn.Module):
    """depth = 6 n + 2 layers: three stages of n blocks with 16, 32 and 64 channels, for 32x32 images."""

    def __init__(self, depth: int, classes: int, channels: int) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 16, 1, count)
        self.layer2 = _stage(16, 32, 2, count)
        self.layer3 = _stage(32, 64, 2, count)
        self.linear = nn.Linear(64 * 2 * 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, 32, 32] -> logits [B, K]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = F.relu(stage(x))
        logits: Tensor = self.linear(F.avg_pool2d(x, 4).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, stride: int, count: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(count - 1)))


def resnet8(classes: int, channels: int = 3) -> nn.Module:
    """One block a stage."""
    return ResNet(8, classes, channels)


def resnet14(classes: int, channels: int = 3) -> nn.Module:
    """Two blocks a stage."""
    return ResNet(14, classes, channels)


def resnet26(classes: int, channels: int = 3) -> nn.Module:
    """Four blocks a stage."""
    return ResNet(26, classes, channels)
