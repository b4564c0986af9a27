"""Classification: images [B, C, H, W] -> logits [B, K], scored by top-1 accuracy (see `harness.task.Task`).

Torchvision, which `data` is made of, takes seconds to import: it waits until data are asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from harness.config import Config
from harness.config.parse import Overlay
from harness.task import Dataset, Metrics, Recipe, Split
from tasks.classification import networks
from tasks.classification.metrics import Counts
from tasks.classification.recipes import DATA, RECIPES

primary_metric = "accuracy"
reported_metrics = ("accuracy",)
ignore_index: int | None = None


def recipes() -> Mapping[str, Recipe]:
    """Recipes by name."""
    return RECIPES


def network_names() -> Sequence[str]:
    """The built-in networks."""
    return networks.NAMES


def network(name: str, classes: int, channels: int, **arguments: Any) -> nn.Module:
    """A built-in network with fresh weights: [B, channels, H, W] -> [B, classes]."""
    return networks.network(name, classes, channels, **arguments)


def answer_shape(classes: int, height: int, width: int) -> tuple[int, ...]:
    """(K,): one answer an image."""
    return (classes,)


def data_names() -> Sequence[str]:
    """The data sets that `dataset` reads."""
    from tasks.classification import data

    return list(data.SETS)


def dataset(config: Config, split: Split, augment: bool = False) -> Dataset:
    """Real images of `config.data`; see `tasks.classification.data.dataset`."""
    from tasks.classification import data

    return data.dataset(config, split, augment)


def data_defaults(name: str) -> Overlay:
    """Classes, size, channels and normalisation of a data set; nothing where only its user knows them."""
    return DATA.get(name, {})


def metrics(classes: int) -> Metrics:
    """Fresh, empty counts for K classes."""
    return Counts(classes)


def write(folder: Path, start: int, images: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """Images [B, 1 or 3, H, W] in bytes as NUMBER.png in a folder a class, `image_folder`'s layout.

    The folders are numbered, so that class k is the k-th by name; a class without an image has one too.
    """
    digits = len(str(len(names) - 1))
    folders = []
    for index, name in enumerate(names):
        plain = re.sub(r"[^\w.-]+", "_", name)
        number = f"{index:0{digits}}"
        folders.append(folder / (number if name == str(index) else f"{number}-{plain}"))
        folders[-1].mkdir(exist_ok=True)
    for index, (image, label) in enumerate(zip(images.cpu(), labels.tolist(), strict=True), start):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folders[label] / f"{index:06}.png")
    return "image_folder"


CELL = 64
"""Least width of an image in a picture: smaller ones are enlarged by a whole factor, pixel by pixel."""

INK = {"teacher": (20, 20, 20), "student": (200, 30, 30), "truth": (30, 90, 200)}
"""Colours of the lines under an image."""


def picture(
    images: Tensor, teacher: Tensor, student: Tensor | None, names: Sequence[str], truth: Tensor | None = None
) -> Image.Image:
    """A grid of RGB images [B, 3, H, W] in 0..1, the teacher's class under each.

    Logits [B, K] of the student add its class in red where it differs; class indices `truth` [B] add the true one in
    blue where the teacher's is another. A class without a name in `names` is shown by its number.
    """
    said = {"teacher": teacher.argmax(1).tolist()}
    if student is not None:
        said["student"] = student.argmax(1).tolist()
    if truth is not None:
        said["truth"] = truth.tolist()
    font = ImageFont.load_default()
    line = math.ceil(font.getbbox("Ag")[3]) + 2
    factor = math.ceil(CELL / images.shape[3])
    width, height = factor * images.shape[3], factor * images.shape[2]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    margin, step = 4, (width + 8, height + line * len(said) + 8)
    page = Image.new("RGB", (columns * step[0], rows * step[1] + line), "white")
    draw = ImageDraw.Draw(page)

    def write(x: float, y: float, text: str, who: str, room: float) -> float:
        while draw.textlength(text, font) > room:
            text = text[:-1]
        draw.text((x, y), text, INK[who], font)
        return draw.textlength(text, font)

    x = float(margin)
    for who in said:  # the key to the colours
        x += write(x, 0, who, who, page.width - x) + 6
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for index, array in enumerate(pixels):
        left, top = index % columns * step[0] + margin, index // columns * step[1] + line + margin
        page.paste(Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST), (left, top))
        lines = {who: classes[index] for who, classes in said.items()}
        for row, (who, number) in enumerate(lines.items()):
            if who == "teacher" or number != lines["teacher"]:
                text = names[number] if number < len(names) else str(number)
                write(left, top + height + row * line, text, who, width)
    return page
