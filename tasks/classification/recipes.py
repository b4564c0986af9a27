"""Recipes: functions that return what a run sets beyond the field defaults."""

from __future__ import annotations

from harness.config import Overlay
from harness.task import Recipe


def classification() -> Overlay:
    """Your own teacher, no data at all: name teacher.network, teacher.checkpoint, student.network and classes.

    ddad distill classification teacher.network=resnet34 teacher.checkpoint=my.pth student.network=resnet18 classes=17
    """
    return {}


def digits() -> Overlay:
    """Handwritten digits, 8x8: a 10-class batch-norm CNN into one of a seventh of its parameters.

    ddad distill digits
    """
    return {
        "classes": 10,
        "rounds": 240,
        "batch_size": 128,
        "teacher": {"network": "cnn32", "channels": "gray", "mean": [0.3053], "std": [0.3758]},
        "student": {"network": "cnn12", "lr": 0.1},
        "generator": {"latent_size": 64, "width": 32},
        "input": {"size": 8},
        "data": {"name": "digits"},
        "teach": {"epochs": 20, "batch_size": 64, "lr": 0.1, "automatic": True},
    }


RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in (classification, digits)}
