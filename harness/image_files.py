"""Image files as people have them: one reader for scoring, teaching and predicting.

An image is read as it is meant to be seen: turned as its EXIF orientation says, in RGB, each value a fraction of the
full scale. Where a file does not say what is meant (what is behind a transparent pixel, what is white), it is refused.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from harness.errors import UserError, one_line

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".tga", ".gif", ".ppm", ".pgm",
    ".jp2", ".j2k", ".jpx", ".avif",
)  # fmt: skip
"""Endings of the files that are read in a folder of images."""

UNREAD = (
    ".heic", ".heics", ".heif", ".hif", ".jxl", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef",
    ".svg", ".psd", ".pbm", ".pnm",
)  # fmt: skip
"""Endings of images which are not read; a folder with one is refused rather than read in part.

Pillow knows none of them but the last three: it reads a part of what .psd holds, and turns 0 and 1 of .pbm around.
"""

LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
"""Pillow's names of the formats that may change values."""

UPRIGHT = 1
"""The EXIF orientation of an image that is shown as it is stored; the others are 2 to 8, sides swapped from 5 on."""


class Picture(NamedTuple):
    """A picture, upright."""

    image: Image.Image
    format: str
    """Pillow's name of the file's format."""
    orientation: int
    """The EXIF orientation that it was stored with."""
    deep: bool
    """Whether the file has 16 bits a channel."""
    stretched: int | None
    """The largest number that a value of the file can be, where Pillow stretches 0 to it over 8 or 16 bits; or None."""

    @property
    def one_channel(self) -> bool:
        """Whether it is grey with more than 8 bits, which Pillow does not convert."""
        return self.image.mode == "F" or self.image.mode.startswith("I")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as it is shown."""
        return self.image.size

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) as it is stored."""
        width, height = self.image.size
        return (height, width) if self.orientation >= 5 else (width, height)


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is not a user's own: hidden, or put there by an archiver or a file server."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir")


def entries(folder: Path) -> list[Path]:
    """What a folder holds, by name, without what is hidden; UserError where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path))
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror})") from None


def is_image(path: Path) -> bool:
    """Whether a file of a folder of images is one to read; UserError for an image of a kind that is not read."""
    suffix = path.suffix.lower()
    if suffix in UNREAD:
        raise UserError(f"{path}: {suffix} is not read; convert such images to PNG or JPEG")
    return suffix in SUFFIXES


def read(path: Path, background: Sequence[int] | None = None) -> Tensor:
    """An image file as RGB [3, h, w]: bytes, or fp32 in 0..1 where it is grey of more than 8 bits.

    Transparent pixels show `background`, [red, green, blue] in 0..255. Raises UserError where the file is missing or no
    image, holds several, is transparent without a background, or has values whose full scale is not known.
    """
    with opened(path) as picture:
        return rgb(path, picture, background)


def fractions(image: Tensor) -> Tensor:
    """An image that `read` gave -> fp32 in 0..1."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


@contextmanager
def opened(path: Path) -> Iterator[Picture]:
    """The one picture in a file, upright, as long as the block lasts; UserError for whatever is wrong with it."""
    try:
        with warnings.catch_warnings(category=UserWarning, action="ignore"), Image.open(path) as file:
            # What Pillow warns of is damage to what surrounds the pixels, such as an EXIF block that is cut short.
            frames = getattr(file, "n_frames", 1)
            if frames > 1 and file.format != "MPO":  # a telephone's JPEG, a smaller copy or a depth map after it
                raise UserError(f"{path}: holds {frames} pictures (frames or pages), expected one; save each as a file")
            tiles = getattr(file, "tile", [])
            deep, stretched = any(";16" in str(tile.args) for tile in tiles), _stretched(tiles)
            orientation = _orientation(file)
            if orientation == UPRIGHT:
                file.load()
            else:
                ImageOps.exif_transpose(file, in_place=True)
            yield Picture(file, file.format or "", orientation, deep, stretched)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable image (of no format and layout that Pillow knows)") from None
    except FAULTS as error:
        reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        raise UserError(f"{path}: not a readable image ({reason})") from None


FAULTS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError,
    Image.DecompressionBombError,
)  # fmt: skip
"""Pillow's ways of saying no, most of them to damaged files."""


def _stretched(tiles: Sequence[Any]) -> int | None:
    """See Picture.stretched: of a PGM what its header says, of grey values in 2 or 4 bits 3 or 15."""
    for tile in tiles:
        if tile.codec_name.startswith("ppm"):
            return int(tile.args[-1])
        for bits in (2, 4):
            if f"L;{bits}" in str(tile.args):
                return 2**bits - 1
    return None


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation; upright where there is none, or none that can be read."""
    try:
        found = file.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except FAULTS:
        return UPRIGHT
    return found if found in range(1, 9) else UPRIGHT


def rgb(path: Path, picture: Picture, background: Sequence[int] | None) -> Tensor:
    """The pixels of a picture from `path`, as `read` gives them."""
    return (_grey if picture.one_channel else _colours)(path, picture, background)


def _colours(path: Path, picture: Picture, background: Sequence[int] | None) -> Tensor:
    """Of 16 bits a channel Pillow reads the upper 8."""
    image = picture.image
    if picture.deep and not any(image.getchannel(band).getbbox() for band in image.getbands() if band != "A"):
        raise UserError(f"{path}: 16 bits a channel, but no value above 255 of 65535; save it with 8 bits a channel")
    if not image.has_transparency_data:
        return _bytes(image.convert("RGB"))
    if picture.deep and image.mode == "RGB":
        raise UserError(f"{path}: one of its 16-bit colours stands for transparent; save it without transparency")
    rgba = image.convert("RGBA")
    num_clear = sum(rgba.getchannel("A").histogram()[:255])
    if num_clear:
        colour = _background(path, num_clear / (image.width * image.height), background)
        rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, (*colour, 255)), rgba)
    return _bytes(rgba.convert("RGB"))


def _grey(path: Path, picture: Picture, background: Sequence[int] | None) -> Tensor:
    """One channel of more than 8 bits."""
    image, values = picture.image, np.asarray(picture.image)
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not np.isfinite(values).all():
            num = np.count_nonzero(~np.isfinite(values))
            raise UserError(f"{path}: {num} of its {values.size} values are NaN or infinite, expected 0 to 1")
        if low < 0 or high > 1:
            raise UserError(f"{path}: floating-point values from {low:g} to {high:g}, expected 0 to 1; scale them")
        full = 1
    elif image.mode != "I" or picture.format in ("PPM", "PNG"):  # which Pillow scales to 16 bits
        bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
        full = 2**bits - 1
        if 0 < high <= 255:
            raise UserError(f"{path}: {bits}-bit values from {low} to {high} of {full}; save it with 8 bits, or scaled")
    else:
        given = f"32-bit or signed whole numbers, from {low} to {high}"
        raise UserError(f"{path}: {given}, whose full scale is not known; save it with 8 or 16 bits")
    level = (values / full).astype(np.float32)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white
        level = 1 - level
    pixels = torch.from_numpy(level).repeat(3, 1, 1)
    clear = torch.from_numpy(values == image.info.get("transparency"))
    if clear.any():
        colour = _background(path, clear.float().mean().item(), background)
        pixels = torch.where(clear, torch.tensor(colour)[:, None, None] / 255, pixels)
    return pixels


def _background(path: Path, share: float, background: Sequence[int] | None) -> tuple[int, int, int]:
    if background is None:
        raise UserError(
            f"{path}: {share:.1%} of its pixels are transparent; say which colour is behind them, such as "
            "data.background=[255,255,255] (predict: --background 255,255,255), or save it without transparency"
        )
    red, green, blue = background
    return red, green, blue


def _bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
