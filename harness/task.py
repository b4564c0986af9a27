"""What a task must supply: each folder of `tasks/` holds a module `task.py` with exactly these names."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from harness.config import Config
from harness.config.parse import Overlay
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor, nn

Recipe = Callable[[], Overlay]
"""Returns the fields of a Config that a recipe sets; its docstring gives command, hardware, time and metric."""

Split = Literal["train", "test"]


class Dataset(Protocol):
    """A map-style data set of (input [C, H, W] ready for the network, label), with the names of its classes."""

    classes: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...


class Metrics(Protocol):
    """Counts over a whole test set; never a mean of batches."""

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits [B, K] or [B, K, H, W] and labels [B] or [B, H, W]."""

    def compute(self) -> dict[str, Any]:
        """Every metric by name; fractions of 1, per-class values as lists."""


class Task(Protocol):
    """A module `tasks/<name>/task.py`."""

    primary_metric: str
    """The metric a run is judged by, a key of `Metrics.compute()`."""

    reported_metrics: tuple[str, ...]
    """The scalar metrics that go into result.json, keys of `Metrics.compute()`; the primary one is among them."""

    ignore_index: int | None
    """The label that is not scored, or None."""

    def recipes(self) -> Mapping[str, Recipe]:
        """Recipes by name; one has the task's own name and needs no data."""

    def network_names(self) -> Sequence[str]:
        """The names `network` knows."""

    def network(self, name: str, classes: int, channels: int, **arguments: Any) -> nn.Module:
        """A built-in network with fresh weights: [B, channels, H, W] -> logits."""

    def answer_shape(self, classes: int, height: int, width: int) -> tuple[int, ...]:
        """The logits of one image of that size: (K,) or (K, H, W)."""

    def data_names(self) -> Sequence[str]:
        """The names `dataset` knows."""

    def dataset(self, config: Config, split: Split, augment: bool = False) -> Dataset:
        """Real images of `config.data`, resized, normalised for the teacher; UserError where there are none.

        With `augment` all have `config.input.size`; else `config.data.size`, or what the task takes where that is null.
        """

    def data_defaults(self, name: str) -> Overlay:
        """What a data set asks of a run: classes, input size, channels, normalisation."""

    def metrics(self, classes: int) -> Metrics:
        """Fresh, empty counts for data of so many classes; a network may answer with more."""

    def picture(
        self, images: Tensor, teacher: Tensor, student: Tensor | None, names: Sequence[str], truth: Tensor | None = None
    ) -> Image:
        """RGB images [B, 3, H, W] in 0..1 beside what the networks' logits say of them, and the labels `truth`."""

    def write(self, folder: Path, start: int, images: Tensor, labels: Tensor, names: Sequence[str]) -> str:
        """Images [B, 1 or 3, H, W] in bytes with labels, as PNG files numbered from `start`.

        Returns the `data.name` that reads them, with `data.root` set to the folder.
        """


@functools.cache
def names() -> list[str]:
    """The tasks of this installation: the folders of `tasks/`."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module("tasks").__path__))


def load(name: str) -> Task:
    """The task of that name; UserError where there is none."""
    if name not in names():
        raise UserError(f"task={name!r}: no such task{nearest(name, names())}")
    return cast(Task, importlib.import_module(f"tasks.{name}.task"))


def is_dense(name: str) -> bool:
    """Whether the task of that name asks for a class for each pixel."""
    return len(load(name).answer_shape(1, 1, 1)) > 1


def find_recipe(name: str) -> tuple[str, Recipe]:
    """(task name, recipe) of a recipe's name; UserError naming the nearest where there is none."""
    known = {recipe: (task, function) for task in names() for recipe, function in load(task).recipes().items()}
    if name not in known:
        raise UserError(f"unknown recipe {name!r}{nearest(name, known)}")
    return known[name]
