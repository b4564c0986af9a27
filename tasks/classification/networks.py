"""The classifiers of the literature, by its names: [B, C, H, W] -> logits [B, K].

All end in a global average pool (except where said), so that any image size works that survives the strides.
No convolution or linear layer before a batch norm has a bias.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UserError, nearest

NAMES = [
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet18", "resnet34",
    "wrn16_1", "wrn16_2", "wrn28_1", "wrn40_1", "wrn40_2",
    "vgg11_bn", "vgg13_bn", "vgg16_bn", "mobilenetv2", "shufflenetv2", "lenet5", "cnn12", "cnn32",
]  # fmt: skip
"""The usual names; `network` also builds any wrnDEPTH_WIDTH and any cnnWIDTH."""

Builder = Callable[[int, int], nn.Module]
"""(number of classes K, number of input channels C) -> a network."""


def network(name: str, classes: int, channels: int, **arguments: Any) -> nn.Module:
    """The network of that name with fresh weights: [B, channels, H, W] -> logits [B, classes].

    Raises UserError for an unknown name, an impossible depth, or any keyword argument: none of these takes one.
    """
    builder = _builder(name)
    if arguments:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(f"network {name!r} takes no arguments, got {given}: remove them, or use a file of your own")
    return builder(classes, channels)


def _builder(name: str) -> Builder:
    if name in _FIXED:
        return _FIXED[name]
    if wide := re.fullmatch(r"wrn(\d{1,4})_(\d{1,3})", name):
        depth, width = int(wide[1]), int(wide[2])
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise UserError(
                f"network {name!r}: expected wrnDEPTH_WIDTH with DEPTH 6n + 4 (10, 16, ... 40) and WIDTH >= 1"
            )
        return partial(WideResNet, depth, width)
    if (plain := re.fullmatch(r"cnn(\d{1,4})", name)) and int(plain[1]) > 0:
        return partial(_cnn, int(plain[1]))
    raise UserError(f"unknown network {name!r}{nearest(name, NAMES)}")


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _initialise(module: nn.Module) -> None:
    """He initialisation of the convolutions (arXiv 1502.01852, fan-out form)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _pooled(x: Tensor) -> Tensor:
    """Global average pool: [B, C, H, W] -> [B, C]."""
    return x.mean((2, 3))


class PadShortcut(nn.Module):
    """Option A of arXiv 1512.03385: every second pixel, new channels zero, half of them on either side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / 2), ceil(W / 2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def _conv_shortcut(inputs: int, outputs: int) -> nn.Module:
    """Option B of arXiv 1512.03385: a 1x1 convolution of stride 2 and a batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network with a 3x3 stem (arXiv 1512.03385, section 4.2); each stage after the first halves the image.

    The parameter names (conv1, bn1, layerN.I.conv1, ..., shortcut.0, linear) are those of the public CIFAR checkpoints.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        shortcut: Callable[[int, int], nn.Module],
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{number}" for number in range(1, len(blocks) + 1)]
        inputs = widths[0]
        for stage, count, width in zip(self.stages, blocks, widths, strict=True):
            first = (
                BasicBlock(inputs, width, 1, nn.Identity())
                if inputs == width
                else BasicBlock(inputs, width, 2, shortcut(inputs, width))
            )
            rest = [BasicBlock(width, width, 1, nn.Identity()) for _ in range(count - 1)]
            self.add_module(stage, nn.Sequential(first, *rest))
            inputs = width
        self.linear = nn.Linear(inputs, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.linear(_pooled(x))
        return logits


class WideBlock(nn.Module):
    """Pre-activation block of arXiv 1605.07146: bn, relu, conv, twice; a change of shape acts on the first relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        # The name is that of the public checkpoints.
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.convShortcut is None else self.convShortcut(active))


class WideResNet(nn.Module):
    """Wide residual network WRN-depth-width (arXiv 1605.07146): three stages of (depth - 4) / 6 blocks.

    The parameter names (conv1, layerN.layer.I.bn1, ..., bn1, linear) are those of the public CIFAR checkpoints.
    """

    def __init__(self, depth: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = _conv3x3(channels, 16)
        self.layer1 = self._stage(16, 16 * width, 1, count)
        self.layer2 = self._stage(16 * width, 32 * width, 2, count)
        self.layer3 = self._stage(32 * width, 64 * width, 2, count)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.linear = nn.Linear(64 * width, classes)
        _initialise(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, count: int) -> nn.Module:
        blocks = [WideBlock(inputs, outputs, stride)] + [WideBlock(outputs, outputs, 1) for _ in range(count - 1)]
        return nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(_pooled(F.relu(self.bn1(x))))
        return logits


def _conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _pool_and_classify(features: list[nn.Module], width: int, classes: int) -> nn.Sequential:
    """features -> global average pool -> one linear layer."""
    layers = OrderedDict[str, nn.Module](
        features=nn.Sequential(*features),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(width, classes),
    )
    return nn.Sequential(layers)


def _vgg_bn(blocks: Sequence[int], classes: int, channels: int) -> nn.Module:
    """VGG with batch norm (arXiv 1409.1556) in its CIFAR form: one linear layer after a global average pool.

    The pool takes the place of the fifth maximum pool, so that images from 16 pixels up work.
    """
    features: list[nn.Module] = []
    inputs = channels
    for count, width in zip(blocks, (64, 128, 256, 512, 512), strict=True):
        if features:
            features.append(nn.MaxPool2d(2))
        for _ in range(count):
            features += _conv_bn_relu(inputs, width)
            inputs = width
    net = _pool_and_classify(features, inputs, classes)
    _initialise(net)
    return net


def _mobilenetv2(classes: int, channels: int) -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381), torchvision's, with stride 1 in the stem and the first two groups: 32x32 -> 4x4.

    Without dropout, as usual on CIFAR.
    """
    from torchvision.models.mobilenetv2 import MobileNetV2

    settings = [  # expansion, channels, repeats, stride: the paper's table 2, the second stride lowered to 1
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
    ]  # fmt: skip
    net: nn.Module = MobileNetV2(num_classes=classes, inverted_residual_setting=settings, dropout=0.0)
    stem = net.get_submodule("features.0")
    assert isinstance(stem, nn.Sequential)
    stem[0] = _conv3x3(channels, 32)
    _initialise(stem)
    return net


def _shufflenetv2(classes: int, channels: int) -> nn.Module:
    """ShuffleNetV2 1x (arXiv 1807.11164), torchvision's, with a stem of stride 1 and no maximum pool: 32x32 -> 4x4."""
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    net: nn.Module = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=classes)
    stem = net.get_submodule("conv1")
    assert isinstance(stem, nn.Sequential)
    stem[0] = _conv3x3(channels, 24)
    net.add_module("maxpool", nn.Identity())
    return net


def _lenet5(classes: int, channels: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with batch norm and ReLU, for images of 28 pixels and more.

    The first convolution pads 28x28 to the original's 32x32; what is left of a larger image is averaged.
    """
    features = [
        *_conv_bn_relu(channels, 6, 5, padding=2), nn.MaxPool2d(2),
        *_conv_bn_relu(6, 16, 5, padding=0), nn.MaxPool2d(2),
        *_conv_bn_relu(16, 120, 5, padding=0),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(120, 84, bias=False), nn.BatchNorm1d(84), nn.ReLU(),
    ]  # fmt: skip
    return nn.Sequential(
        OrderedDict[str, nn.Module](features=nn.Sequential(*features), classifier=nn.Linear(84, classes))
    )


def _cnn(width: int, classes: int, channels: int) -> nn.Module:
    """A small network for 8x8 digits: three 3x3 convolutions, one maximum pool, global average pool, linear."""
    features = [
        *_conv_bn_relu(channels, width),
        *_conv_bn_relu(width, 2 * width), nn.MaxPool2d(2),
        *_conv_bn_relu(2 * width, 2 * width),
    ]  # fmt: skip
    return _pool_and_classify(features, 2 * width, classes)


_CIFAR_WIDTHS, _IMAGENET_WIDTHS = (16, 32, 64), (64, 128, 256, 512)

_FIXED: dict[str, Builder] = {
    **{f"resnet{6 * n + 2}": partial(ResNet, [n] * 3, _CIFAR_WIDTHS, PadShortcut) for n in (3, 5, 7, 9, 18)},
    "resnet18": partial(ResNet, [2, 2, 2, 2], _IMAGENET_WIDTHS, _conv_shortcut),
    "resnet34": partial(ResNet, [3, 4, 6, 3], _IMAGENET_WIDTHS, _conv_shortcut),
    "vgg11_bn": partial(_vgg_bn, [1, 1, 2, 2, 2]),
    "vgg13_bn": partial(_vgg_bn, [2, 2, 2, 2, 2]),
    "vgg16_bn": partial(_vgg_bn, [2, 2, 3, 3, 3]),
    "mobilenetv2": _mobilenetv2,
    "shufflenetv2": _shufflenetv2,
    "lenet5": _lenet5,
}
