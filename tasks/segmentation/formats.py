"""How labels lie on disk: image files of class numbers, and the MATLAB files of NYUv2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.Image import DecompressionBombError
from torch import Tensor
from torchvision.datasets.folder import pil_loader
from torchvision.transforms.v2 import functional

from harness.errors import UserError
from tasks.segmentation.metrics import VOID


@dataclass(frozen=True)
class Codes:
    """What the numbers in a set's label files mean."""

    first: int
    """The number of class 0; the others follow."""
    count: int
    """Number of classes."""
    void: int
    """The number of pixels that are not scored."""


def decode(raw: Tensor, codes: Codes, where: object) -> Tensor:
    """Numbers on disk [h, w] -> class indices and VOID [h, w]; UserError for a number that means nothing."""
    void, labels = raw == codes.void, raw - codes.first
    wrong = raw[~void & ((labels < 0) | (labels >= codes.count))]
    if len(wrong):
        last = codes.first + codes.count - 1
        raise UserError(f"{where}: label {int(wrong[0])}, expected {codes.first} to {last}, or {codes.void} for void")
    return labels.masked_fill(void, VOID)


@dataclass(frozen=True)
class Files:
    """Images and labels in files of their own, opened when asked for; UserError for those that cannot be used."""

    images: Sequence[Path]
    labels: Sequence[Path]
    codes: Codes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image [3, h, w], bytes, and class indices [h, w]."""
        image, path = read_image(self.images[index]), self.labels[index]
        labels = decode(_read_labels(path), self.codes, path)
        if image.shape[1:] != labels.shape:
            sizes = [f"{shape[-1]}x{shape[-2]}" for shape in (labels.shape, image.shape)]
            raise UserError(f"{path} is {sizes[0]} pixels, its image {self.images[index].name} {sizes[1]}: no pair")
        return image, labels


def read_image(path: Path) -> Tensor:
    """An image file as RGB, [3, h, w], bytes."""
    try:
        pixels: Tensor = functional.pil_to_tensor(pil_loader(str(path)))
        return pixels
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:  # Pillow's ways of saying no
        raise UserError(f"{path}: not a readable image ({error})") from None


def _read_labels(path: Path) -> Tensor:
    """The numbers of a label image, [h, w]: grey values, or the indices of a palette."""
    try:
        with Image.open(path) as file:
            mode, values = file.mode, np.asarray(file)
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from None
    if values.ndim != 2 or mode == "F":
        raise UserError(f"{path}: a label image has one class number a pixel, this one has colours (mode {mode})")
    return torch.from_numpy(values.astype(np.int64))


@dataclass(frozen=True)
class NyuMat:
    """Images of the official nyu_depth_v2_labeled.mat, an HDF5 file of 2.8 GB: arrays with their axes reversed."""

    path: Path
    numbers: Sequence[int]
    """Which images, counted from 1."""
    mapping: np.ndarray[Any, np.dtype[np.int64]]
    """From the file's numbers, 0 for unlabelled and 894 kinds of things, to the numbers of `codes`."""
    codes: Codes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image [3, 480, 640], bytes, and class indices [480, 640]."""
        import h5py

        number = self.numbers[index]
        try:
            with h5py.File(self.path) as file:  # opened anew: an open file does not survive in worker processes
                image, kinds = file["images"][number - 1], file["labels"][number - 1]
            raw = self.mapping[kinds.astype(np.int64).T]
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise UserError(f"{self.path}: image {number} cannot be read ({error})") from None
        where = f"{self.path}: image {number}"
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(0, 2, 1)))
        return pixels, decode(torch.from_numpy(raw), self.codes, where)


def read_mat(path: Path, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The numbers of a variable, or of the first field of a structure, in a MATLAB 5 file; UserError without it."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise UserError(
            f"{path} cannot be read without SciPy: install it; a set in folders of pictures can do without"
        ) from None
    try:
        value = loadmat(path)[name]
        if value.dtype.names:
            value = value[0, 0][0]
        numbers: np.ndarray[Any, np.dtype[np.int64]] = value.astype(np.int64).ravel()
    except Exception as error:  # scipy answers damage with errors of every kind
        raise UserError(f"{path} is not the official file with {name} in it ({error})") from None
    return numbers
