"""How labels lie on disk: image files of class numbers or colours, and the MATLAB files of NYUv2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags
from torch import Tensor

from harness import image_files
from harness.errors import UserError
from harness.image_files import SUFFIXES, Picture, entries, is_image
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
    own: bool = False
    """Whether they are a user's, who may name others in `data.labels`."""


@dataclass(frozen=True)
class Named:
    """What a user says in `data.labels` that values or colours mean."""

    classes: Mapping[int, int]
    """Class index or VOID by value, or by colour as 65536 red + 256 green + blue."""
    colours: bool


def named(labels: Mapping[str, int], count: int) -> Named:
    """`data.labels`, whose keys are values, or colours as "#rrggbb"; UserError for more than so many classes."""
    if wrong := [key for key, index in labels.items() if index >= count and index != VOID]:
        raise UserError(f"data.labels={dict(labels)}: {wrong[0]} is none of the {count} classes, 0 to {count - 1}")
    colours = any(key.startswith("#") for key in labels)
    return Named({int(key.removeprefix("#"), 16 if colours else 10): index for key, index in labels.items()}, colours)


def decode(raw: Tensor, codes: Codes | Named, where: object) -> Tensor:
    """Numbers on disk [h, w] -> class indices and VOID [h, w]; UserError for a number that means nothing."""
    if isinstance(codes, Named):
        return _looked_up(raw, codes, where)
    void, labels = raw == codes.void, raw - codes.first
    wrong = raw[~void & ((labels < 0) | (labels >= codes.count))]
    if len(wrong):
        last = codes.first + codes.count - 1
        expected = f"expected {codes.first} to {last}, or {codes.void} for void"
        raise UserError(f"{where}: label {int(wrong[0])}, {expected}{_advice(raw, codes) if codes.own else ''}")
    return labels.masked_fill(void, VOID)


def _looked_up(raw: Tensor, codes: Named, where: object) -> Tensor:
    known = sorted(codes.classes)
    keys, indices = torch.tensor(known), torch.tensor([codes.classes[key] for key in known])
    found = torch.searchsorted(keys, raw).clamp(max=len(known) - 1)
    wrong = raw[keys[found] != raw]
    if len(wrong):
        number = int(wrong[0])
        what = f"colour #{number:06x}" if codes.colours else f"value {number}"
        raise UserError(f"{where}: {what} is not in data.labels, which has to name every one there is (255 is void)")
    return indices[found]


def _advice(raw: Tensor, codes: Codes) -> str:
    """What a user may have meant by numbers that are not the expected ones, from 0."""
    found = set(raw.unique().tolist()) - {codes.void}
    if max(found) == codes.count and min(found) >= 0:
        pairs = [f"{number}: {number - 1}" for number in range(1, codes.count + 1)]
        rest = ", ".join(pairs if codes.count < 4 else [*pairs[:2], "...", pairs[-1]])
        if 0 not in found:
            return f"; where they count from 1, set data.labels={{{rest}}}"
        more = f"classes={codes.count + 1}, and as many names in classes.txt where there is one"
        return f"; where it is a class, {more}; where 0 is void, set data.labels={{0: {VOID}, {rest}}}"
    return f"; data.labels, such as {{0: 0, {max(found)}: 1}}, says what other values mean"


@dataclass(frozen=True)
class Files:
    """Images and labels in files of their own, opened when asked for; UserError for those that cannot be used."""

    images: Sequence[Path]
    labels: Sequence[Path]
    codes: Codes | Named
    background: Sequence[int] | None = None
    """What transparent pixels show, [red, green, blue] in 0..255."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image [3, h, w], as `image_files.read` gives it, and class indices [h, w]."""
        path, label_path = self.images[index], self.labels[index]
        with image_files.opened(path) as picture, image_files.opened(label_path) as label:
            image = image_files.rgb(path, picture, self.background)
            labels = decode(self._numbers(label_path, label), self.codes, label_path)
            _check_pair(path, picture, label_path, label)
        return image, labels

    def _numbers(self, path: Path, picture: Picture) -> Tensor:
        """The numbers in a label image, [h, w]: grey values, or the indices of a palette, or its colours."""
        image = picture.image
        if picture.format in image_files.LOSSY:
            raise UserError(f"{path}: a label in {picture.format}, which changes values; save labels as PNG")
        if isinstance(self.codes, Named) and self.codes.colours:
            if picture.one_channel:
                raise UserError(f"{path}: data.labels names colours, this label has values (mode {image.mode})")
            if image.has_transparency_data and any(image.convert("RGBA").getchannel("A").histogram()[:255]):
                raise UserError(f"{path}: a label with transparent pixels; give them a colour that data.labels names")
            pixels = image_files.rgb(path, picture, None)
            return (pixels.long() * torch.tensor([65536, 256, 1])[:, None, None]).sum(0)
        values = np.asarray(image)
        if values.ndim != 2 or image.mode == "F":
            advice = "" if isinstance(self.codes, Codes) and not self.codes.own else "; data.labels may name colours"
            what = "has fractions" if image.mode == "F" else "has colours"
            raise UserError(
                f"{path}: a label image has one class number a pixel, this one {what} (mode {image.mode}){advice}"
            )
        if getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0:
            raise UserError(
                f"{path}: a TIFF in which 0 is white, so that its numbers may be turned around; save labels as PNG"
            )
        if picture.stretched is not None:
            values = np.rint(values * (picture.stretched / (2**16 - 1 if picture.one_channel else 2**8 - 1)))
        return torch.from_numpy(values.astype(np.int64))


def _check_pair(path: Path, picture: Picture, label_path: Path, label: Picture) -> None:
    """UserError unless the label belongs to the image as it is shown, by its size and by what it is turned."""
    if picture.size != label.size:
        sizes = [f"{width}x{height}" for width, height in (label.size, picture.size)]
        turned = " as EXIF turns it" if picture.orientation != label.orientation else ""
        raise UserError(f"{label_path} is {sizes[0]} pixels, its image {path.name} {sizes[1]}{turned}: no pair")
    if picture.orientation != label.orientation and picture.stored_size == label.stored_size:
        raise UserError(
            f"{path}: its EXIF orientation is {picture.orientation}, that of its label {label_path.name} "
            f"{label.orientation}, so that one may be turned against the other; save both upright, without orientation"
        )


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder by name; UserError where there is none, or others in folders below."""
    found = entries(folder)
    paths = [path for path in found if is_image(path)]
    deeper = [path for path in found if path.is_dir() and any(map(is_image, entries(path)))]
    if deeper:
        raise UserError(f"{deeper[0]}: images in a folder of their own, which are not read; put them into {folder}")
    if not paths:
        raise UserError(f"{folder}: no images; expected files ending in {', '.join(SUFFIXES)}")
    return paths


def paired(
    images: Sequence[Path],
    folder: Path,
    codes: Codes | Named,
    background: Sequence[int] | None,
    by: Callable[[Path], str] = lambda path: path.stem,
    listed: bool = False,
) -> Files:
    """Every image with the label of the same name, or the same `by`; UserError naming one without, or with several.

    UserError, too, for a label without an image, unless a list chose the images.
    """
    labels, named_images = _unique(images_in(folder), by), _unique(images, by)
    missing = [path.name for path in images if by(path) not in labels]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images have no label in {folder}, the first is {missing[0]}: "
            "a label has the name of its image"
        )
    spare = [path.name for name, path in labels.items() if name not in named_images]
    if spare and not listed:
        raise UserError(
            f"{len(spare)} of {len(labels)} labels in {folder} have no image, the first is {spare[0]}: are all images "
            "there? Take away the labels that are not meant"
        )
    return Files(images, [labels[by(path)] for path in images], codes, background)


def _unique(paths: Sequence[Path], by: Callable[[Path], str]) -> dict[str, Path]:
    """The paths by name; UserError where two have the same."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(by(path), path)
        if other != path:
            raise UserError(f"{path.parent}: {other.name} and {path.name} have one name; keep the one that is meant")
    return found


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
