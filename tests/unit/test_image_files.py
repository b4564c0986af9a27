"""Image files as people have them: a row for each kind, with the pixels that are right or the refusal.

A new kind is a new row of RIGHT, COMPOSITED or REFUSED: how its file is made of PIXELS, or of something else. (Labels
are in test_label_files.py.)
"""

from __future__ import annotations

import dataclasses
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from harness import image_files
from harness.commands import predict
from harness.config import build
from harness.errors import UserError
from harness.networks.preprocessing import Preprocessing
from tasks.classification import task as classification
from tasks.segmentation import task as segmentation

Array = np.ndarray[Any, Any]

COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40], [0, 0, 0], [90, 60, 250]]
PIXELS = np.array(COLOURS, np.uint8).reshape(2, 3, 3).repeat(8, 0).repeat(8, 1)
"""[16, 24, 3] in blocks of 8x8, as JPEG has them; no turn or mirror image of it is like another."""

GREY = np.array([[0, 60, 120], [180, 240, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
"""[16, 24]."""

RGB = Image.fromarray(PIXELS)


# Files that Pillow does not write -------------------------------------------------------------------------------------


def png(values: Array, colour: int, transparent: bytes = b"") -> bytes:
    """A PNG of 16 bits a channel; `colour`: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA; `transparent`: its tRNS chunk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    clear = chunk(b"tRNS", transparent) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + clear
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(content: bytes, bits: int, order: str = "<", kind: int = 1, white: int = 1) -> bytes:
    """A grey TIFF of GREY's size; `kind`: 1 whole numbers, 2 signed, 3 floating point; `white`: 0 where 0 is white."""
    height, width = GREY.shape
    values = {256: width, 257: height, 258: bits, 259: 1, 262: white, 273: 8, 277: 1, 278: height, 279: len(content)}
    entries = sorted({**values, 339: kind}.items())
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    directory = struct.pack(f"{order}H", len(entries)) + table + bytes(4)
    return mark + struct.pack(f"{order}I", 8 + len(content)) + content + directory


def deep(values: Array) -> Array:
    """0..255 -> 0..65535."""
    return values.astype(np.uint16) * 257


def twelve_bits() -> bytes:
    """GREY in 0..4095, two pixels in three bytes."""
    values = np.round(GREY.astype(float) * 4095 / 255).astype(int)
    text = "".join(f"{value:012b}" for value in values.ravel())
    return int(text, 2).to_bytes(len(text) // 8, "big")


# How files are made ---------------------------------------------------------------------------------------------------

Make = Callable[[Path], object]


def saved(image: Image.Image, **options: Any) -> Make:
    return lambda path: image.save(path, **options)


def written(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def turned(orientation: int, **options: Any) -> Make:
    """PIXELS, stored in another way, with the EXIF orientation that tells how (EXIF 2.3, section 4.6.4, A)."""
    undo: dict[int, Callable[[Array], Array]] = {
        2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
        6: np.rot90, 7: lambda a: np.rot90(a.swapaxes(0, 1), 2), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(np.ascontiguousarray(undo[orientation](PIXELS))), exif=exif, **options)


def with_alpha(alpha: int, mode: str = "RGBA") -> Image.Image:
    """The upper half opaque, the lower half of an alpha."""
    image = (RGB if mode == "RGBA" else Image.fromarray(GREY)).convert(mode)
    mask = np.full(GREY.shape, 255, np.uint8)
    mask[8:] = alpha
    image.putalpha(Image.fromarray(mask))
    return image


def palette(**options: Any) -> Make:
    """PIXELS with a palette, the colour of the last block at index 5."""
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(8, 0).repeat(8, 1)).convert("P")
    image.putpalette([level for colour in [*COLOURS, [1, 2, 3]] for level in colour])
    return saved(image, **options)


def frames(**options: Any) -> Make:
    return saved(RGB, save_all=True, append_images=[Image.fromarray(255 - PIXELS)], **options)


JPEG = {"quality": 100, "subsampling": 0}

RIGHT: dict[str, tuple[str, Make, Array]] = {
    "PNG": ("png", saved(RGB), PIXELS),
    "PNG, grey": ("png", saved(Image.fromarray(GREY)), GREY),
    "PNG, palette": ("png", palette(), PIXELS),
    "PNG, palette with an unused transparent colour": ("png", palette(transparency=6), PIXELS),
    "PNG, one bit": ("png", saved(Image.fromarray(GREY > 100)), 255 * (GREY > 100)),
    "PNG, opaque alpha": ("png", saved(with_alpha(255)), PIXELS),
    "PNG, grey and opaque alpha": ("png", saved(with_alpha(255, "LA")), GREY),
    "PNG, 16 bits": ("png", written(png(deep(GREY), 0)), GREY),
    "PNG, 16 bits RGB": ("png", written(png(deep(PIXELS), 2)), PIXELS),
    "PNG, 16 bits opaque": ("png", written(png(deep(np.dstack([PIXELS, np.full_like(GREY, 255)])), 6)), PIXELS),
    "PNG, 16 bits grey, opaque": ("png", written(png(deep(np.dstack([GREY, np.full_like(GREY, 255)])), 4)), GREY),
    "JPEG": ("jpg", saved(RGB, **JPEG), PIXELS),
    "JPEG, progressive": ("jfif", saved(RGB, progressive=True, **JPEG), PIXELS),
    "JPEG, grey": ("jpeg", saved(Image.fromarray(GREY), **JPEG), GREY),
    "JPEG, CMYK": ("jpg", saved(RGB.convert("CMYK"), **JPEG), PIXELS),
    "JPEG with another after it": ("jpg", frames(format="MPO", **JPEG), PIXELS),
    "JPEG with an EXIF block that is broken": ("jpg", saved(RGB, exif=b"Exif\0\0nonsense", **JPEG), PIXELS),
    "PNG with an EXIF block that is broken": ("png", saved(RGB, exif=b"Exif\0\0nonsense"), PIXELS),
    "WebP with an EXIF block cut short": ("webp", saved(RGB, exif=b"Exif\0\0II*\0", lossless=True), PIXELS),
    "WebP, lossless": ("webp", saved(RGB, lossless=True), PIXELS),
    "GIF": ("gif", saved(RGB), PIXELS),
    "BMP": ("bmp", saved(RGB), PIXELS),
    "PPM": ("ppm", saved(RGB), PIXELS),
    "PGM, 16 bits": ("pgm", written(b"P5 24 16 65535\n" + deep(GREY).astype(">u2").tobytes()), GREY),
    "JPEG 2000, lossless": ("jp2", saved(RGB), PIXELS),
    "TIFF": ("tif", saved(RGB), PIXELS),
    "TIFF, compressed": ("tif", saved(RGB, compression="tiff_lzw"), PIXELS),
    "TIFF, CMYK": ("tiff", saved(RGB.convert("CMYK")), PIXELS),
    "TIFF, 16 bits": ("tif", written(tiff(deep(GREY).astype("<u2").tobytes(), 16)), GREY),
    "TIFF, 16 bits compressed": ("tif", saved(Image.fromarray(deep(GREY)), compression="tiff_deflate"), GREY),
    "TIFF, 16 bits big-endian": ("tif", written(tiff(deep(GREY).astype(">u2").tobytes(), 16, ">")), GREY),
    "TIFF, 16 bits, 0 is white": ("tif", written(tiff(deep(255 - GREY).tobytes(), 16, white=0)), GREY),
    "TIFF, 12 bits": ("tif", written(tiff(twelve_bits(), 12)), GREY),
    "TIFF, floats": ("tif", written(tiff((GREY / 255).astype("<f4").tobytes(), 32, kind=3)), GREY),
    "TIFF, floats big-endian": ("tif", written(tiff((GREY / 255).astype(">f4").tobytes(), 32, ">", 3)), GREY),
    **{f"JPEG, EXIF orientation {number}": ("jpg", turned(number, **JPEG), PIXELS) for number in range(2, 9)},
    **{f"TIFF, EXIF orientation {number}": ("tif", turned(number), PIXELS) for number in range(2, 9)},
    "PNG, EXIF orientation 6": ("png", turned(6), PIXELS),
    "WebP, EXIF orientation 6": ("webp", turned(6, lossless=True), PIXELS),
    "TIFF, compressed, EXIF orientation 6": ("tif", turned(6, compression="tiff_lzw"), PIXELS),
}
"""By kind: the file's ending, how it is made, the pixels that are right, 0..255."""

BEHIND = np.array([10, 250, 130])
HALF = np.concatenate([PIXELS[:8], (PIXELS[8:] * (128 / 255) + BEHIND * (127 / 255))])
GREY_HALF = np.concatenate([GREY[:8, :, None].repeat(3, 2), GREY[8:, :, None] * (128 / 255) + BEHIND * (127 / 255)])


def without(pixels: Array, colour: Any) -> Array:
    """RGB pixels with the background in place of a colour."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, 2)
    return np.where((pixels == colour).all(2, keepdims=True), BEHIND, pixels)


COMPOSITED: dict[str, tuple[str, Make, Array]] = {
    "PNG, RGBA": ("png", saved(with_alpha(128)), HALF),
    "PNG, grey and alpha": ("png", saved(with_alpha(128, "LA")), GREY_HALF),
    "PNG, clear palette colour": ("png", palette(transparency=5), without(PIXELS, COLOURS[5])),
    "PNG, half-clear palette colours": ("png", palette(transparency=bytes([255] * 3 + [128] * 3)), HALF),
    "PNG, clear RGB colour": ("png", saved(RGB, transparency=(0, 0, 0)), without(PIXELS, [0, 0, 0])),
    "PNG, clear grey": ("png", saved(Image.fromarray(GREY), transparency=60), without(GREY, 60)),
    "PNG, clear grey of 16 bits": ("png", written(png(deep(GREY), 0, struct.pack(">H", 60 * 257))), without(GREY, 60)),
    "PNG, 16 bits RGBA": ("png", written(png(deep(np.array(with_alpha(128))), 6)), HALF),
    "WebP, RGBA": ("webp", saved(with_alpha(128), lossless=True), HALF),
    "TIFF, RGBA": ("tif", saved(with_alpha(128)), HALF),
    "GIF, clear colour": ("gif", palette(transparency=5), without(PIXELS, COLOURS[5])),
}
"""By kind: ending, how it is made, what is right over BEHIND. Without a background it is refused."""

NAN = (GREY / 255).astype("<f4")
NAN[3, 5:7] = np.nan

REFUSED: dict[str, tuple[str, Make, str]] = {
    "PNG, 16 bits that were never scaled": ("png", written(png(GREY, 0)), "16-bit values from 0 to 255 of 65535"),
    "PNG, 16 bits RGB, never scaled": ("png", written(png(PIXELS, 2)), "no value above 255 of 65535"),
    "PNG, clear colour of 16 bits": ("png", written(png(deep(PIXELS), 2, bytes(6))), "stands for transparent"),
    "TIFF, signed": ("tif", written(tiff((GREY * 64 - 99).astype("<i2").tobytes(), 16, kind=2)), "full scale is not"),
    "TIFF, 32 bits": ("tif", saved(Image.fromarray(GREY.astype(np.int32))), "from 0 to 255, whose full scale is not"),
    "TIFF, floats to 255": ("tif", saved(Image.fromarray(GREY.astype(np.float32))), "values from 0 to 255, expected 0"),
    "TIFF, floats below 0": (
        "tif",
        saved(Image.fromarray(GREY / np.float32(255) - 1)),
        "values from -1 to 0, ",
    ),
    "TIFF, floats with NaN": ("tif", written(tiff(NAN.tobytes(), 32, kind=3)), "2 of its 384 values are NaN or inf"),
    "TIFF, 64-bit floats": ("tif", written(tiff((GREY / 255).tobytes(), 64, kind=3)), "of no format and layout that"),
    "TIFF, two pages": ("tif", frames(), "holds 2 pictures (frames or pages), expected one"),
    "GIF, animated": ("gif", frames(), "holds 2 pictures"),
    "PNG, animated": ("png", frames(), "holds 2 pictures"),
    "WebP, animated": ("webp", frames(lossless=True), "holds 2 pictures"),
    "no image": ("png", written(b"no image"), "of no format and layout that Pillow knows"),
    "empty": ("jpg", written(b""), "of no format and layout that Pillow knows"),
    "torn": ("png", written(png(deep(PIXELS), 2)[:-60]), "not a readable image ("),
    "a folder": ("png", lambda path: path.mkdir(), "not a readable image (Is a directory)"),
    "absent": ("png", lambda path: None, "there is no such file"),
}
"""By kind: ending, how it is made, what the refusal says."""


def made(folder: Path, kind: tuple[str, Make, Any]) -> Path:
    path = folder / f"a.{kind[0]}"
    kind[1](path)
    return path


def check(image: Tensor, right: Array, tolerance: float = 0.0) -> None:
    """An image [3, h, w] as read against values in 0..255 of its pixels, within `tolerance` of these."""
    expected = torch.from_numpy(np.asarray(right, float).reshape(*right.shape[:2], -1)).movedim(-1, 0).expand(3, -1, -1)
    assert image.shape == expected.shape
    assert (255 * image_files.fractions(image).double() - expected).abs().max() <= tolerance + 1e-4


@pytest.mark.parametrize("kind", RIGHT)
def test_the_pixels_are_right(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, RIGHT[kind])
    lossy = 0.04 if "12 bits" in kind else 3.0 if kind.startswith("JPEG") and "2000" not in kind else 0.0
    for background in (None, BEHIND.tolist()):
        check(image_files.read(path, background), RIGHT[kind][2], lossy)


@pytest.mark.parametrize("kind", COMPOSITED)
def test_a_transparent_image_is_refused_or_laid_over_the_background(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, COMPOSITED[kind])
    with pytest.raises(UserError, match=r"of its pixels are transparent; say .* data\.background=") as caught:
        image_files.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    check(image_files.read(path, BEHIND.tolist()), COMPOSITED[kind][2], 1.0)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_sure_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, REFUSED[kind])
    for background in (None, [0, 0, 0]):
        with pytest.raises(UserError) as caught:
            image_files.read(path, background)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and REFUSED[kind][2] in message and "\n" not in message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP, lossless", "GIF", "TIFF, compressed", "PNG, 16 bits", "BMP"])
def test_a_damaged_file_is_read_or_refused_and_no_more(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, RIGHT[kind])
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(3):
            content[draw.randrange(min(len(content), 400))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            image_files.read(path)
        except UserError:
            refused += 1
    assert refused


# The same for everyone who reads --------------------------------------------------------------------------------------

EVERYWHERE = {
    "JPEG, EXIF orientation 6": RIGHT, "PNG, 16 bits": RIGHT, "TIFF, floats": RIGHT, "PNG, RGBA": COMPOSITED,
}  # fmt: skip


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_every_reader_reads_alike(tmp_path: Path, kind: str) -> None:
    """image_folder, for scoring and teaching, folders, and predict; each at the image's own size."""
    paths = {folder: tmp_path / folder for folder in ("own/test/ant", "own/train/ant", "pairs/images", "pairs/labels")}
    for path in paths.values():
        path.mkdir(parents=True)
    (tmp_path / "own/test/bee").mkdir()
    for folder in list(paths)[:3]:
        made(paths[folder], EVERYWHERE[kind][kind])
    Image.new("L", (24, 16), 1).save(paths["pairs/labels"] / "a.png")
    behind = BEHIND.tolist()
    base = {"classes": 2, "input": {"size": [16, 24]}}
    own = {"name": "image_folder", "root": str(tmp_path / "own"), "background": behind}
    pairs = {"name": "folders", "root": str(tmp_path / "pairs"), "background": behind}
    found = [
        classification.dataset(build({"task": "classification", "data": own, **base}), split)[0][0]
        for split in ("train", "test")
    ]
    found.append(segmentation.dataset(build({"task": "segmentation", "data": pairs, **base}), "test")[0][0])
    found.append(predict.load_image(next(paths["own/test/ant"].iterdir()), SPEC, behind))
    for image in found:
        assert image.dtype == torch.float32
        check(image, EVERYWHERE[kind][kind][2], 3.0)
        assert torch.allclose(image, found[0], rtol=0, atol=1e-6)


SPEC = Preprocessing(16, 24, "rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_grey_of_16_bits_keeps_its_fine_steps(tmp_path: Path) -> None:
    steps = np.arange(30000, 30000 + GREY.size, dtype=np.uint16).reshape(GREY.shape)
    (tmp_path / "a.png").write_bytes(png(steps, 0))
    small = dataclasses.replace(SPEC, height=8, width=12)
    assert len(predict.load_image(tmp_path / "a.png", SPEC).unique()) == GREY.size
    assert len(predict.load_image(tmp_path / "a.png", small).unique()) > 90, "also where it is scaled"


def test_files_of_a_folder_that_are_images(tmp_path: Path) -> None:
    names = {"a.JPG": True, "b.tif": True, "._a.jpg": False, "notes.txt": False, "c.png.part": False, "d.jpe": True}
    for name in names:
        (tmp_path / name).touch()
    found = [path.name for path in image_files.entries(tmp_path) if image_files.is_image(path)]
    assert found == [name for name, expected in names.items() if expected]
    with pytest.raises(UserError, match=r"mask\.pbm: \.pbm is not read"):
        image_files.is_image(tmp_path / "mask.pbm")
    with pytest.raises(UserError, match=r"IMG_1\.HEIC: \.heic is not read; convert such images to PNG or JPEG"):
        image_files.is_image(tmp_path / "IMG_1.HEIC")
