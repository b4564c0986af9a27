"""The pairs that `benchmarks.gpu` measures, at sizes that fill a card."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.methods import DATA_FREE
from harness.config.parse import Overlay, merge

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Suite:
    """A teacher and student pair on a data set."""

    recipe: str
    over: Overlay
    weights: str | None = None
    """The third-party teacher under $DDAD_DATA/weights; None: one is taught."""
    methods: tuple[str, ...] = (*DATA_FREE, "kd")
    """What is compared."""


def _dense(epochs: int) -> Overlay:
    networks = {"teacher": "torchvision:deeplabv3_resnet50", "student": "torchvision:deeplabv3_mobilenet_v3_large"}
    return {
        "batch_size": 32, "input": {"size": 128}, "generator": {"width": 64},
        "teach": {"epochs": epochs, "batch_size": 16, "lr": 0.05},
        **{role: {"network": name} for role, name in networks.items()},
    }  # fmt: skip


_RESNET32: Overlay = {"batch_size": 256, "teacher": {"network": "resnet32", **IMAGENET}, "generator": {"width": 64}}
_RESNET32_FILE = "cifar10/akamaster/resnet32-d509ac18.th"
_RESNET26: Overlay = {
    "teacher": {
        "network": "examples/karanchahal_resnet.py:resnet26",
        "mean": [0.507, 0.487, 0.441],
        "std": [0.267, 0.256, 0.276],
    },
    "student": {"network": "resnet20"},
}
_RESNET26_FILE = "cifar100/karanchahal/resnet26_cifar100.pth"
_WARM = ("ddad:warm", "dfad")
_BLOCKS = ("ddad:blocks", *DATA_FREE, "kd")
_ON_MAPS = ("ddad:fresh", "ddad:swift", "ddad", "dfad", "dafl", "dfq", "kd")
"""Methods that make no image for one class."""
_FROM_TEACHER: Overlay = {
    "student": {"start": "teacher", "lr": 0.02, "schedule": "cosine", "features": 100.0, "clip": 5.0}
}
"""The student's settings of `warm`, for the baselines too."""
_HALF: Overlay = merge(_FROM_TEACHER, {"student": {"network": "pruned", "start": "fresh", "arguments": {"macs": 0.5}}})

SUITES: dict[str, Suite] = {
    "cifar10": Suite("cifar10-resnet20-resnet20", _RESNET32, _RESNET32_FILE, _BLOCKS),
    "cifar10-inherited": Suite("cifar10-resnet20-resnet20", merge(_RESNET32, _FROM_TEACHER), _RESNET32_FILE, _WARM),
    "cifar10-half": Suite("cifar10-resnet20-resnet20", merge(_RESNET32, _HALF), _RESNET32_FILE, _WARM),
    "cifar100": Suite("cifar100-resnet34-resnet18", _RESNET26, _RESNET26_FILE, _BLOCKS),
    "cifar100-half": Suite("cifar100-resnet34-resnet18", merge(_RESNET26, _HALF), _RESNET26_FILE, _WARM),
    "caltech101": Suite("caltech101-resnet18-resnet10t", {"batch_size": 256, "generator": {"width": 64}}),
    "camvid": Suite("camvid-resnet18-mobilenetv2", _dense(60), methods=_ON_MAPS),
    "nyuv2": Suite("nyuv2-resnet18-mobilenetv2", _dense(30), methods=_ON_MAPS),
    "paper-cifar10": Suite("cifar10-resnet34-resnet18", {}),
    "paper-cifar100": Suite("cifar100-resnet34-resnet18", {}),
}

STEPS: dict[str, int] = {
    "resnet34-resnet18": 256, "resnet56-resnet20": 256, "wrn40_2-wrn16_1": 256, "deeplabv3": 32, "digits": 1024,
}  # fmt: skip
"""Pairs of benchmarks.step and the batch that fills a card."""
