"""Segmentation: images [B, C, H, W] -> logits [B, K, H, W], scored by mean IoU (see `harness.task.Task`).

Torchvision, which `data` is made of, takes seconds to import: it waits until data are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from harness.config import Config
from harness.config.parse import Overlay
from harness.errors import UserError
from harness.task import Dataset, Metrics, Recipe, Split
from tasks.segmentation import networks
from tasks.segmentation.metrics import VOID, Counts
from tasks.segmentation.recipes import DATA, PALETTES, RECIPES

primary_metric = "miou"
reported_metrics = ("miou", "pixel_accuracy")
ignore_index: int | None = VOID


def recipes() -> Mapping[str, Recipe]:
    """Recipes by name."""
    return RECIPES


def network_names() -> Sequence[str]:
    """The built-in networks."""
    return networks.NAMES


def network(name: str, classes: int, channels: int, **arguments: Any) -> nn.Module:
    """A built-in network with fresh weights: [B, channels, H, W] -> [B, classes, H, W]."""
    return networks.network(name, classes, channels, **arguments)


def answer_shape(classes: int, height: int, width: int) -> tuple[int, ...]:
    """(K, H, W): one answer a pixel."""
    return (classes, height, width)


def data_names() -> Sequence[str]:
    """The data sets that `dataset` reads."""
    from tasks.segmentation import data

    return list(data.SETS)


def dataset(config: Config, split: Split, augment: bool = False) -> Dataset:
    """Real images of `config.data`; see `tasks.segmentation.data.dataset`."""
    from tasks.segmentation import data

    return data.dataset(config, split, augment)


def data_defaults(name: str) -> Overlay:
    """Classes, size, channels and normalisation of a data set; nothing where only its user knows them."""
    return DATA.get(name, {})


def metrics(classes: int) -> Metrics:
    """Fresh, empty counts for K classes."""
    return Counts(classes)


def write(folder: Path, start: int, images: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """Images [B, 1 or 3, H, W] in bytes and labels [B, H, W] as images/NUMBER.png and labels/NUMBER.png: `folders`.

    classes.txt holds the names. UserError for more classes than a byte has numbers beside void.
    """
    if len(names) > VOID:
        raise UserError(f"{len(names)} classes: a label image has numbers for {VOID}, and one for void: use arrays")
    for part in ("images", "labels"):
        (folder / part).mkdir(exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for index, (image, label) in enumerate(zip(images.cpu(), labels.cpu().byte(), strict=True), start):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{index:06}.png")
        Image.fromarray(label.numpy()).save(folder / "labels" / f"{index:06}.png")
    return "folders"


CELL, GAP = 160, 4
"""Pixels: the least width of an image in a picture, and between two."""

MAX_ROWS, PER_COLUMN = 16, 8
"""Images in a picture at most, and of these below one another."""

OTHER = "void"
"""What is no class of the data: pixels that are not scored, and outputs beyond the classes."""


def picture(
    images: Tensor, teacher: Tensor, student: Tensor | None, names: Sequence[str], truth: Tensor | None = None
) -> Image.Image:
    """RGB images [B, 3, H, W] in 0..1, a row each: the image, the labels, the teacher's map, the student's.

    Labels `truth` are [B, h, w], logits [B, K, h, w]. Below are the colours of the classes that occur. At most MAX_ROWS
    images are shown. A class without a name in `names`, like void, is black.
    """
    maps = {"truth": truth, "teacher": teacher.argmax(1), "student": None if student is None else student.argmax(1)}
    shown = {who: labels[:MAX_ROWS].cpu().numpy() for who, labels in maps.items() if labels is not None}
    palette = _palette(names)
    pixels = (images[:MAX_ROWS].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    factor = math.ceil(CELL / images.shape[3])
    size = (factor * images.shape[3], factor * images.shape[2])
    font = ImageFont.load_default()
    line = math.ceil(font.getbbox("Ag")[3]) + 4
    columns, rows = math.ceil(len(pixels) / PER_COLUMN), min(len(pixels), PER_COLUMN)
    block = ((size[0] + GAP) * (1 + len(shown)), (size[1] + GAP) * rows + line)
    width = columns * block[0] + (columns - 1) * 3 * GAP + GAP
    legend = _legend(sorted({int(label) for labels in shown.values() for label in np.unique(labels)}), names, width)
    page = Image.new("RGB", (width, block[1] + legend.height), "white")
    draw = ImageDraw.Draw(page)
    for index, array in enumerate(pixels):
        left = index // PER_COLUMN * (block[0] + 3 * GAP) + GAP
        top = index % PER_COLUMN * (size[1] + GAP) + line
        cells = {"image": Image.fromarray(array).resize(size, Image.Resampling.BILINEAR)}
        for who, labels in shown.items():
            coloured = Image.fromarray(palette[np.minimum(labels[index], len(names))])
            cells[who] = coloured.resize(size, Image.Resampling.NEAREST)
        for column, (who, cell) in enumerate(cells.items()):
            x = left + column * (size[0] + GAP)
            page.paste(cell, (x, top))
            if index % PER_COLUMN == 0:
                draw.text((x, 0), who, "black", font)
    page.paste(legend, (0, block[1]))
    return page


def _palette(names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[K + 1, 3]: the data set's own colours, or the PASCAL VOC ones from its first class on; black comes last."""
    known = next((colours for colours in PALETTES if tuple(colours) == tuple(names)), None)
    colours = list(known.values()) if known else [_voc(index + 1) for index in range(len(names))]
    return np.array([*colours, (0, 0, 0)], dtype=np.uint8)


def _voc(index: int) -> tuple[int, int, int]:
    """PASCAL VOC's colour of a number: its bits, three by three, are the highest bits of red, green and blue."""
    red, green, blue = (
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)
    )
    return red, green, blue


def _legend(labels: Sequence[int], names: Sequence[str], width: int) -> Image.Image:
    """A square of its colour and its name for each label, in as many lines as the width asks for."""
    font, palette = ImageFont.load_default(), _palette(names)
    square = math.ceil(font.getbbox("Ag")[3])
    entries: dict[str, int] = {}
    for label in labels:
        entries.setdefault(names[label] if label < len(names) else OTHER, min(label, len(names)))
    positions, x, y = [], GAP, GAP
    for name, label in entries.items():
        wide = square + 4 + math.ceil(font.getlength(name)) + 12
        if x > GAP and x + wide > width:
            x, y = GAP, y + square + GAP
        positions.append((x, y, name, label))
        x += wide
    page = Image.new("RGB", (width, y + square + GAP), "white")
    draw = ImageDraw.Draw(page)
    for left, top, name, label in positions:
        red, green, blue = (int(value) for value in palette[label])
        draw.rectangle((left, top, left + square, top + square), (red, green, blue), "grey")
        draw.text((left + square + 4, top), name, "black", font)
    return page
