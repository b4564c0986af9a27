"""Recipes: functions that return what a run sets beyond the field defaults.

Published figures are top-1 accuracies in percent from the README of each method's public code (docs/method.md);
"here" is what this project measured, with the command above it.
"""

from __future__ import annotations

from harness.config.parse import Overlay, merge
from harness.task import Recipe

DATA: dict[str, Overlay] = {
    "digits": {
        "classes": 10,
        "input": {"size": 8, "mirror": False},
        "teacher": {"channels": "gray", "mean": [0.3053], "std": [0.3758]},
    },
    "fashion_mnist": {
        "classes": 10,
        "input": {"size": 28},
        "teacher": {"channels": "gray", "mean": [0.2860], "std": [0.3530]},
    },
    "cifar10": {
        "classes": 10,
        "input": {"size": 32},
        "teacher": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]},
    },
    "cifar100": {
        "classes": 100,
        "input": {"size": 32},
        "teacher": {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]},
    },
    "caltech101": {
        "classes": 101,
        "input": {"size": 128},
        "teacher": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    },
}
"""What each data set asks of a run: classes, size, and the mean and deviation of its training pixels (ImageNet's for
Caltech101, as its users do)."""


def _on(data: str, over: Overlay) -> Overlay:
    return merge({**DATA[data], "data": {"name": data}}, over)


def _paper(data: str, teacher: str, student: str) -> Overlay:
    """DFAD's schedule, on which DDAD stands: 500 epochs of 50 rounds, both rates x0.1 at epochs 100 and 200."""
    falls = {"schedule": "multistep", "milestones": [0.2, 0.4]}
    over = {
        "rounds": 25_000,
        "batch_size": 256,
        "teacher": {"network": teacher},
        "student": {"network": student, **falls},
        "generator": falls,
        "checkpoint": {"every": 250},
        "log_every": 50,
    }
    return _on(data, over)


def classification() -> Overlay:
    """Your own teacher, no data at all: name both networks, the checkpoint, classes and input.size.

    ddad distill classification teacher.network=resnet34 teacher.checkpoint=my.pth student.network=resnet18 classes=17
    """
    return {}


def digits() -> Overlay:
    """Handwritten digits, 8x8: a 10-class batch-norm CNN into one of a seventh of its parameters.

    ddad distill digits
    2 CPU cores, under a minute: teacher 99.17, student 98.61 with standard deviation 0.44 over seeds 0-4.
    """
    over = {
        "rounds": 240,
        "batch_size": 128,
        "teacher": {"network": "cnn32"},
        "student": {"network": "cnn12"},
        "generator": {"latent_size": 64, "width": 32},
        "teach": {"epochs": 20, "batch_size": 64, "automatic": True},
    }
    return _on("digits", over)


def cifar10_resnet20_resnet20() -> Overlay:
    """CIFAR-10, ResNet-20 into a ResNet-20 from scratch: the pair that a CPU can do in about an hour.

    ddad distill cifar10-resnet20-resnet20 teacher.checkpoint=resnet20.th
    With akamaster's checkpoint (91.73; its mean and std are ImageNet's), 2 CPU cores, one thread, about an hour:
    35.55 by `ddad`, 26.16 by `method=dfad`, one seed (benchmarks/RESULTS-cpu-2026-11-22.md).
    """
    over = {
        "rounds": 400,
        "batch_size": 128,
        "teacher": {"network": "resnet20"},
        "student": {"network": "resnet20"},
        "generator": {"width": 32},
        "evaluate_every": 50,
    }
    return _on("cifar10", over)


def cifar10_resnet34_resnet18() -> Overlay:
    """CIFAR-10, ResNet-34 into ResNet-18.

    ddad teach cifar10-resnet34-resnet18 && ddad distill cifar10-resnet34-resnet18
    Published: teacher 95.70, student on real data 95.20;
    DAFL 92.22, ZSKT 93.32, DeepInversion 93.26, DFQ 94.61, CMI 94.84, Fast-10 94.05, DFAD 93.3. Here: not yet measured.
    """
    return _paper("cifar10", "resnet34", "resnet18")


def cifar10_vgg11_bn_resnet18() -> Overlay:
    """CIFAR-10, VGG-11 into ResNet-18.

    ddad teach cifar10-vgg11_bn-resnet18 && ddad distill cifar10-vgg11_bn-resnet18
    Published: teacher 92.25, student on real data 95.20;
    DAFL 81.10, ZSKT 89.46, DeepInversion 90.36, DFQ 90.84, CMI 91.13, Fast-10 90.53. Here: not yet measured.
    """
    return _paper("cifar10", "vgg11_bn", "resnet18")


def cifar10_wrn40_2_wrn16_1() -> Overlay:
    """CIFAR-10, WRN-40-2 into WRN-16-1.

    ddad teach cifar10-wrn40_2-wrn16_1 && ddad distill cifar10-wrn40_2-wrn16_1
    Published: teacher 94.87, student on real data 91.12;
    DAFL 65.71, ZSKT 83.74, DeepInversion 83.04, DFQ 86.14, CMI 90.01, Fast-10 89.29. Here: not yet measured.
    """
    return _paper("cifar10", "wrn40_2", "wrn16_1")


def cifar10_wrn40_2_wrn40_1() -> Overlay:
    """CIFAR-10, WRN-40-2 into WRN-40-1.

    ddad teach cifar10-wrn40_2-wrn40_1 && ddad distill cifar10-wrn40_2-wrn40_1
    Published: teacher 94.87, student on real data 93.94;
    DAFL 81.33, ZSKT 86.07, DeepInversion 86.85, DFQ 91.69, CMI 92.78, Fast-10 92.51. Here: not yet measured.
    """
    return _paper("cifar10", "wrn40_2", "wrn40_1")


def cifar10_wrn40_2_wrn16_2() -> Overlay:
    """CIFAR-10, WRN-40-2 into WRN-16-2.

    ddad teach cifar10-wrn40_2-wrn16_2 && ddad distill cifar10-wrn40_2-wrn16_2
    Published: teacher 94.87, student on real data 93.95;
    DAFL 81.55, ZSKT 89.66, DeepInversion 89.72, DFQ 92.01, CMI 92.52, Fast-10 92.45. Here: not yet measured.
    """
    return _paper("cifar10", "wrn40_2", "wrn16_2")


def cifar100_resnet34_resnet18() -> Overlay:
    """CIFAR-100, ResNet-34 into ResNet-18.

    ddad teach cifar100-resnet34-resnet18 && ddad distill cifar100-resnet34-resnet18
    Published: teacher 78.05;
    DAFL 74.47, ZSKT 67.74, DeepInversion 61.32, DFQ 77.01, CMI 77.04, Fast-10 74.34, DFAD 67.7. Here: not yet measured.
    """
    return _paper("cifar100", "resnet34", "resnet18")


def cifar100_vgg11_bn_resnet18() -> Overlay:
    """CIFAR-100, VGG-11 into ResNet-18.

    ddad teach cifar100-vgg11_bn-resnet18 && ddad distill cifar100-vgg11_bn-resnet18
    Published: teacher 71.32;
    DAFL 57.29, ZSKT 34.72, DeepInversion 54.13, DFQ 68.32, CMI 70.56, Fast-10 67.44. Here: not yet measured.
    """
    return _paper("cifar100", "vgg11_bn", "resnet18")


def cifar100_wrn40_2_wrn16_1() -> Overlay:
    """CIFAR-100, WRN-40-2 into WRN-16-1.

    ddad teach cifar100-wrn40_2-wrn16_1 && ddad distill cifar100-wrn40_2-wrn16_1
    Published: teacher 75.83;
    DAFL 22.50, ZSKT 30.15, DeepInversion 53.77, DFQ 54.77, CMI 57.91, Fast-10 54.02. Here: not yet measured.
    """
    return _paper("cifar100", "wrn40_2", "wrn16_1")


def cifar100_wrn40_2_wrn40_1() -> Overlay:
    """CIFAR-100, WRN-40-2 into WRN-40-1.

    ddad teach cifar100-wrn40_2-wrn40_1 && ddad distill cifar100-wrn40_2-wrn40_1
    Published: teacher 75.83;
    DAFL 34.66, ZSKT 29.73, DeepInversion 61.33, DFQ 62.92, CMI 68.88, Fast-10 63.91. Here: not yet measured.
    """
    return _paper("cifar100", "wrn40_2", "wrn40_1")


def cifar100_wrn40_2_wrn16_2() -> Overlay:
    """CIFAR-100, WRN-40-2 into WRN-16-2.

    ddad teach cifar100-wrn40_2-wrn16_2 && ddad distill cifar100-wrn40_2-wrn16_2
    Published: teacher 75.83;
    DAFL 40.00, ZSKT 28.44, DeepInversion 61.34, DFQ 59.01, CMI 68.75, Fast-10 65.12. Here: not yet measured.
    """
    return _paper("cifar100", "wrn40_2", "wrn16_2")


def caltech101_resnet34_resnet18() -> Overlay:
    """Caltech101 at 128x128, ResNet-34 into ResNet-18.

    ddad teach caltech101-resnet34-resnet18 && ddad distill caltech101-resnet34-resnet18
    Published: teacher 76.6, DFAD 73.5, DAFL failed. Here: not yet measured.
    """
    return _paper("caltech101", "resnet34", "resnet18")


def caltech101_resnet18_resnet10t() -> Overlay:
    """Caltech101 at 64x64, ResNet-18 with ImageNet's stem into a ten-layer one: the size that a CPU can do.

    ddad teach caltech101-resnet18-resnet10t && ddad distill caltech101-resnet18-resnet10t
    2 CPU cores, one thread, 73 and 16 minutes: teacher 65.12, student 5.77 (benchmarks/RESULTS-cpu-2026-11-22.md).
    """
    over = {
        "rounds": 150,
        "batch_size": 64,
        "input": {"size": 64},
        "teacher": {"network": "torchvision:resnet18"},
        "student": {"network": "timm:resnet10t"},
        "generator": {"width": 16},
        "teach": {"epochs": 20, "batch_size": 64, "lr": 0.05},
        "evaluate_every": 50,
    }
    return _on("caltech101", over)


RECIPES: dict[str, Recipe] = {
    "classification": classification,
    "digits": digits,
    "cifar10-resnet20-resnet20": cifar10_resnet20_resnet20,
    "cifar10-resnet34-resnet18": cifar10_resnet34_resnet18,
    "cifar10-vgg11_bn-resnet18": cifar10_vgg11_bn_resnet18,
    "cifar10-wrn40_2-wrn16_1": cifar10_wrn40_2_wrn16_1,
    "cifar10-wrn40_2-wrn40_1": cifar10_wrn40_2_wrn40_1,
    "cifar10-wrn40_2-wrn16_2": cifar10_wrn40_2_wrn16_2,
    "cifar100-resnet34-resnet18": cifar100_resnet34_resnet18,
    "cifar100-vgg11_bn-resnet18": cifar100_vgg11_bn_resnet18,
    "cifar100-wrn40_2-wrn16_1": cifar100_wrn40_2_wrn16_1,
    "cifar100-wrn40_2-wrn40_1": cifar100_wrn40_2_wrn40_1,
    "cifar100-wrn40_2-wrn16_2": cifar100_wrn40_2_wrn16_2,
    "caltech101-resnet34-resnet18": caltech101_resnet34_resnet18,
    "caltech101-resnet18-resnet10t": caltech101_resnet18_resnet10t,
}
