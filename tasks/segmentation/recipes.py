"""Recipes: functions that return what a run sets beyond the field defaults.

Published figures are mean IoU, fractions of 1, from the README of each method's public code (docs/method.md); "here" is
what this project measured, with the command above it.
"""

from __future__ import annotations

from harness.config.parse import Overlay, merge
from harness.task import Recipe

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
"""As DFAD normalises: the generator's tanh then spans exactly what pixels span."""

DATA: dict[str, Overlay] = {
    "camvid": {"classes": 11, "input": {"size": 128}, "teacher": HALF},
    "nyuv2": {"classes": 13, "input": {"size": 128}, "teacher": HALF},
    "nyuv2_40": {"classes": 40, "input": {"size": 128}, "teacher": HALF},
}
"""What each data set asks of a run: classes, the size of a training image, and normalisation."""

Colours = dict[str, tuple[int, int, int]]

PALETTES: list[Colours] = [
    {
        "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128), "road": (128, 64, 128),
        "pavement": (60, 40, 222), "tree": (128, 128, 0), "sign": (192, 128, 128), "fence": (64, 64, 128),
        "car": (64, 0, 128), "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192),
    },
    {
        "bed": (0, 0, 255), "books": (232, 88, 47), "ceiling": (0, 217, 0), "chair": (148, 0, 240),
        "floor": (222, 241, 23), "furniture": (255, 205, 205), "objects": (0, 223, 228), "picture": (106, 135, 204),
        "sofa": (116, 28, 41), "table": (240, 35, 235), "tv": (0, 166, 156), "wall": (249, 139, 0),
        "window": (225, 228, 194),
    },
]  # fmt: skip
"""The colours in which CamVid (SegNet's) and NYUv2's 13 classes (SceneNet's) are usually shown, by name, in order."""

BASE: Overlay = {"adversarial_transform": "log1p", "generator": {"network": "dcgan"}, "input": {"size": 128}}
"""DFAD's choices for segmentation, on which DDAD stands."""


def _on(data: str, over: Overlay) -> Overlay:
    return merge(merge(BASE, {**DATA[data], "data": {"name": data}}), over)


def _paper(data: str, weight_decay: float) -> Overlay:
    """DFAD's schedule: 300 epochs of 50 rounds, both rates x0.1 after every 100.

    Images are scaled to 256 pixels of height, as DFAD's are; they are scored against labels at full frame.
    """
    falls = {"schedule": "multistep", "milestones": [1 / 3, 2 / 3]}
    over = {
        "rounds": 15_000,
        "batch_size": 64,
        "teacher": {"network": "smp:DeepLabV3/resnet50"},
        "student": {"network": "smp:DeepLabV3/mobilenet_v2", "weight_decay": weight_decay, **falls},
        "generator": falls,
        "data": {"size": [256, 341]},
        "teach": {"epochs": 300, "batch_size": 16},
        "checkpoint": {"every": 250},
        "log_every": 50,
    }
    return _on(data, over)


def _small(data: str) -> Overlay:
    """A pair and a size that a CPU can do: crops of 96x128 from images of 180x240, at which they are scored too."""
    over = {
        "rounds": 100,
        "batch_size": 8,
        "input": {"size": [96, 128]},
        "data": {"size": [180, 240]},
        "teacher": {"network": "smp:DeepLabV3Plus/resnet18"},
        "student": {"network": "smp:DeepLabV3Plus/mobilenet_v2"},
        "generator": {"width": 16},
        "teach": {"epochs": 40, "batch_size": 8, "lr": 0.05},
        "checkpoint": {"every": 20},
    }
    return _on(data, over)


def _smoke(data: str) -> Overlay:
    """Seconds, a teacher of random weights, no data at all."""
    over = {
        "rounds": 4,
        "batch_size": 4,
        "input": {"size": 32},
        "teacher": {"network": "unet8", "checkpoint": "untrained"},
        "student": {"network": "unet4"},
        "generator": {"width": 4, "latent_size": 16},
        "data": {"name": "none"},
    }
    return _on(data, over)


def segmentation() -> Overlay:
    """Your own teacher, no data at all: name both networks, the checkpoint, classes and input.size.

    ddad distill segmentation teacher.network=smp:Unet/resnet18 teacher.checkpoint=my.pth student.network=unet16 classes=7
    """  # noqa: E501 - a command to copy
    return BASE


def camvid_smoke() -> Overlay:
    """CamVid's classes and no CamVid: shows in seconds that the machinery works.

    ddad distill camvid-smoke
    """
    return _smoke("camvid")


def nyuv2_smoke() -> Overlay:
    """NYUv2's classes and no NYUv2: shows in seconds that the machinery works.

    ddad distill nyuv2-smoke
    """
    return _smoke("nyuv2")


def camvid_resnet18_mobilenetv2() -> Overlay:
    """CamVid at 180x240, DeepLabV3+ with ResNet-18 into MobileNetV2: the pair that a CPU can do.

    ddad teach camvid-resnet18-mobilenetv2 && ddad distill camvid-resnet18-mobilenetv2
    Here, one thread of a 2-core VM, seeds 0-2: teacher .378 (21 minutes), student .191 +- .035 (6 minutes), with
    method=dfad .043 +- .005, with method=kd .231 +- .013; 0.08 % of the images of the papers' schedule.
    """
    return _small("camvid")


def nyuv2_resnet18_mobilenetv2() -> Overlay:
    """NYUv2 (13 classes) at 180x240, DeepLabV3+ with ResNet-18 into MobileNetV2: the pair that a CPU can do.

    ddad teach nyuv2-resnet18-mobilenetv2 && ddad distill nyuv2-resnet18-mobilenetv2
    Here, as above: teacher .163, student .061 +- .008 over seeds 0-2 (5 minutes each); 0.05 % of the papers' images.
    """
    return merge(_small("nyuv2"), {"rounds": 60, "teach": {"epochs": 20}})


def camvid_resnet50_mobilenetv2() -> Overlay:
    """CamVid, DeepLabV3 with ResNet-50 into MobileNetV2.

    ddad teach camvid-resnet50-mobilenetv2 && ddad distill camvid-resnet50-mobilenetv2
    Published: teacher .594, student on real data .535; DAFL .010, DFAD .535. Here: not yet measured.
    """
    return _paper("camvid", 5e-4)


def nyuv2_resnet50_mobilenetv2() -> Overlay:
    """NYUv2 (13 classes), DeepLabV3 with ResNet-50 into MobileNetV2.

    ddad teach nyuv2-resnet50-mobilenetv2 && ddad distill nyuv2-resnet50-mobilenetv2
    Published: teacher .517, student on real data .380; DAFL .105, DFAD .364. Here: not yet measured.
    """
    return _paper("nyuv2", 5e-5)


RECIPES: dict[str, Recipe] = {
    "segmentation": segmentation,
    "camvid-smoke": camvid_smoke,
    "nyuv2-smoke": nyuv2_smoke,
    "camvid-resnet18-mobilenetv2": camvid_resnet18_mobilenetv2,
    "nyuv2-resnet18-mobilenetv2": nyuv2_resnet18_mobilenetv2,
    "camvid-resnet50-mobilenetv2": camvid_resnet50_mobilenetv2,
    "nyuv2-resnet50-mobilenetv2": nyuv2_resnet50_mobilenetv2,
}
