"""Label images as people have them: a row for each kind, with the classes that are right or the refusal.

A new kind is a new row of RIGHT or REFUSED: the file, the configuration, what comes of it. (Images are in
test_image_files.py.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import build, flat, identity, to_dict
from harness.config.parse import merge
from harness.errors import UserError
from harness.resolve import read_overrides
from tasks.classification import task as classification
from tasks.segmentation import task
from tasks.segmentation.metrics import VOID

Array = np.ndarray[Any, Any]

CLASSES = np.array([[0, 1, 2], [2, 0, 1]], np.uint8).repeat(2, 0).repeat(2, 1)
"""[4, 6], classes 0 to 2."""

MASK = np.array([[0, 1, 1], [1, 0, 0]], np.uint8).repeat(2, 0).repeat(2, 1)
"""[4, 6], classes 0 and 1."""

ONE_VOID = np.where(CLASSES == 1, VOID, CLASSES)

PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)

Make = Callable[[Path], object]


def label(values: Array, mode: str | None = None, **options: Any) -> Make:
    image = Image.fromarray(values)
    return lambda path: (image.convert(mode) if mode else image).save(path, **options)


def palette(values: Array) -> Make:
    def make(path: Path) -> None:
        image = Image.fromarray(values).convert("P")
        image.putpalette(PALETTE.ravel().tolist())
        image.save(path)

    return make


def turned(values: Array, orientation: int) -> Make:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return label(values, exif=exif)


def packed(values: Array, bits: int) -> Make:
    """A grey PNG of 2 or 4 bits, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    unpacked = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def pgm(values: Array, maximum: int) -> Make:
    height, width = values.shape
    wide = values.astype(">u2" if maximum > 255 else "u1")
    return lambda path: path.write_bytes(b"P5 %d %d %d\n" % (width, height, maximum) + wide.tobytes())


BINARY = "data.labels={0: 0, 255: 1}"
COLOURS = 'data.labels={"#000000": 0, "#800000": 1, "#008000": 2}'

RIGHT: dict[str, tuple[str, Make, list[str], Array]] = {
    "grey": ("png", label(CLASSES), [], CLASSES),
    "grey with void": ("png", label(np.where(CLASSES == 2, 255, CLASSES)), [], np.where(CLASSES == 2, VOID, CLASSES)),
    "palette": ("png", palette(CLASSES), [], CLASSES),
    "one bit": ("png", label(MASK.astype(bool)), ["classes=2"], MASK),
    "2 bits": ("png", packed(CLASSES, 2), [], CLASSES),
    "4 bits": ("png", packed(9 * CLASSES.clip(0, 1), 4), ["classes=10"], 9 * CLASSES.clip(0, 1)),
    "PGM of 20 levels": ("pgm", pgm(20 * CLASSES.clip(0, 1), 20), ["classes=21"], 20 * CLASSES.clip(0, 1)),
    "PGM of two levels": ("pgm", pgm(MASK, 1), ["classes=2"], MASK),
    "PGM of 300 levels": ("pgm", pgm(CLASSES, 300), [], CLASSES),
    "16 bits": ("png", label(CLASSES.astype(np.uint16)), [], CLASSES),
    "32 bits": ("tif", label(CLASSES.astype(np.int32)), [], CLASSES),
    "GIF": ("gif", palette(CLASSES), [], CLASSES),
    "a mask of 0 and 255": ("png", label(255 * MASK), ["classes=2", BINARY], MASK),
    "one bit, the other way round": ("png", label(MASK.astype(bool)), ["data.labels={0: 1, 1: 0}"], 1 - MASK),
    "from 1, 0 for void": ("png", label(CLASSES + 1), ["data.labels={0: 255, 1: 0, 2: 1, 3: 2}"], CLASSES),
    "values that are void": ("png", label(CLASSES), ["data.labels={0: 0, 1: 255, 2: 2}"], ONE_VOID),
    "two values of one class": ("png", label(CLASSES), ["data.labels={0: 0, 1: 1, 2: 1}"], np.minimum(CLASSES, 1)),
    "16-bit values": ("png", label(CLASSES * np.uint16(7000)), ["data.labels={0: 0, 7000: 1, 14000: 2}"], CLASSES),
    "colours": ("png", label(PALETTE[CLASSES]), [COLOURS], CLASSES),
    "colours in capitals": ("png", label(PALETTE[MASK] + 10), ['data.labels={"#0A0A0A": 0, "#8A0A0A": 1}'], MASK),
    "colours of a palette": ("png", palette(CLASSES), [COLOURS], CLASSES),
    "colours with opaque alpha": ("png", label(PALETTE[CLASSES], "RGBA"), [COLOURS], CLASSES),
}
"""By kind: ending, how it is made, words of the configuration (classes=3 unless they say so), the classes."""

REFUSED: dict[str, tuple[str, Make, list[str], str]] = {
    "a mask of 0 and 255, classes=2": (
        "png", label(255 * MASK), ["classes=2"],
        "hold class 0 and void (not scored), and no other class; 255 is void, so a mask of 0 and 255",
    ),
    "a mask of 0 and 255, classes=3": ("png", label(255 * MASK), [], "needs data.labels={0: 0, 255: 1}"),
    "void alone": ("png", label(np.full_like(MASK, 255)), [], "hold nothing but void (not scored); 255 is void, so a"),
    "void alone, by data.labels": ("png", label(MASK), ["data.labels={0: 255, 1: 255}"], "hold nothing but void"),
    "0 and void, by data.labels": ("png", label(MASK), ["data.labels={0: 0, 1: 255}"], "hold class 0 and void (not"),
    "from 1, none of 0": (
        "png", label(CLASSES + 1), [],
        "label 3, expected 0 to 2, or 255 for void; where they count from 1, set data.labels={1: 0, 2: 1, 3: 2}",
    ),
    "from 1, 0 for void": (
        "png", label(np.where(MASK, CLASSES + 1, 0).astype(np.uint8)), [],
        "where it is a class, classes=4, and as many names in classes.txt where there is one; where 0 is void, set ",
    ),
    "other values": ("png", label(100 * MASK), [], "label 100, expected 0 to 2, or 255 for void; data.labels, such as"),
    "a value not in data.labels": (
        "png", label(254 * MASK), ["data.labels={0: 0, 255: 1}"], "value 254 is not in data.labels",
    ),
    "a colour not in data.labels": ("png", label(PALETTE[CLASSES]), ['data.labels={"#000000": 0}'], "colour #800000"),
    "half a colour": ("png", label(PALETTE[CLASSES] // 2), [COLOURS], "colour #400000 is not in data.labels"),
    "colours": ("png", label(PALETTE[CLASSES]), [], "has colours (mode RGB); data.labels may name colours"),
    "transparent colours": (
        "png", label(np.dstack([PALETTE[CLASSES], np.where(MASK, 0, 255).astype(np.uint8)])), [COLOURS],
        "a label with transparent pixels; give them a colour that data.labels names",
    ),
    "a TIFF in which 0 is white": ("tif", label(CLASSES, tiffinfo={262: 0}), [], "a TIFF in which 0 is white"),
    "values where colours are named": ("png", label(CLASSES.astype(np.uint16)), [COLOURS], "data.labels names colours"),
    "floats": ("tif", label(CLASSES.astype(np.float32)), [], "this one has fractions (mode F)"),
    "JPEG": ("jpg", label(CLASSES), [], "a label in JPEG, which changes values; save labels as PNG"),
    "JPEG 2000": ("jp2", label(CLASSES), [], "a label in JPEG2000, which changes values"),
    "another size": ("png", label(CLASSES[:2]), [], "is 6x2 pixels, its image a.png 6x4: no pair"),
    "turned by EXIF, its image is not": ("png", turned(CLASSES, 6), [], "is 4x6 pixels, its image a.png 6x4 as EXIF"),
    "turned upside down by EXIF": ("png", turned(CLASSES, 3), [], "EXIF orientation is 1, that of its label a.png 3"),
    "two pages": ("tif", label(CLASSES, save_all=True, append_images=[Image.fromarray(MASK)]), [], "holds 2 pictures"),
    "no image": ("png", lambda path: path.write_bytes(b"no image"), [], "not a readable image"),
}  # fmt: skip
"""By kind: ending, how it is made, words of the configuration, what the refusal says."""


def folders(root: Path, ending: str, make: Make, words: list[str], image: Make | None = None) -> task.Dataset:
    """A set of one pair."""
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    (image or label(np.full((4, 6, 3), 90, np.uint8)))(root / "images" / "a.png")
    make(root / "labels" / f"a.{ending}")
    return opened(root, words)


def opened(root: Path, words: list[str]) -> task.Dataset:
    base = {"task": "segmentation", "classes": 3, "data": {"name": "folders", "root": str(root)}, "input": {"size": 4}}
    return task.dataset(build(merge(base, read_overrides(words))), "test")


@pytest.mark.parametrize("kind", RIGHT)
def test_the_classes_are_right(tmp_path: Path, kind: str) -> None:
    ending, make, words, right = RIGHT[kind]
    _, labels = folders(tmp_path, ending, make, words)[0]
    assert torch.equal(labels, torch.from_numpy(right.astype(np.int64)))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_sure_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    ending, make, words, message = REFUSED[kind]
    with pytest.raises(UserError) as caught:
        folders(tmp_path, ending, make, words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Pairs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "ending"), [("labels", "tif"), ("images", "jpg")])
def test_two_files_of_one_name_are_refused(tmp_path: Path, folder: str, ending: str) -> None:
    folders(tmp_path, "png", label(CLASSES), [])
    label(CLASSES)(tmp_path / folder / f"a.{ending}")
    names = sorted(["a.png", f"a.{ending}"])
    with pytest.raises(UserError, match=f"{folder}: {names[0]} and {names[1]} have one name; keep the one"):
        opened(tmp_path, [])


def test_an_image_and_its_label_are_turned_alike(tmp_path: Path) -> None:
    """The photograph is stored lying; its label was drawn on what is seen, or was stored as the photograph was."""
    seen = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    stored = np.ascontiguousarray(np.rot90(seen))
    photograph = turned(stored, 6)
    for number, drawn in enumerate((label(CLASSES), turned(np.ascontiguousarray(np.rot90(CLASSES)), 6))):
        (tmp_path / str(number)).mkdir()
        image, labels = folders(tmp_path / str(number), "png", drawn, [], photograph)[0]
        assert torch.equal((image[0] * 255).round().byte(), torch.from_numpy(seen))
        assert torch.equal(labels.byte(), torch.from_numpy(CLASSES))
    (tmp_path / "stored").mkdir()
    with pytest.raises(UserError, match=r"is 4x6 pixels, its image a\.png 6x4 as EXIF turns it: no pair"):
        folders(tmp_path / "stored", "png", label(np.ascontiguousarray(np.rot90(CLASSES))), [], photograph)


@pytest.mark.parametrize(("orientation", "size"), [(3, (4, 6)), (2, (4, 6)), (6, (5, 5))])
def test_a_turn_that_sizes_do_not_show_is_refused(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    photograph = turned(np.zeros(size, np.uint8), orientation)
    with pytest.raises(
        UserError, match=f"EXIF orientation is {orientation}, that of its label a.png 1, .* both upright"
    ):
        folders(tmp_path, "png", label(np.ones(size, np.uint8)), [], photograph)


# What all labels of a set hold ----------------------------------------------------------------------------------------


def test_one_label_with_another_class_is_enough(tmp_path: Path) -> None:
    """Where the few that are looked at first hold class 0 and void alone, all are."""
    folders(tmp_path, "png", label(CLASSES), [])
    names = [f"{number:03}.png" for number in range(20)]
    for name in names:
        label(np.zeros((4, 6, 3), np.uint8))(tmp_path / "images" / name)
        label(255 * MASK)(tmp_path / "labels" / name)
    assert len(opened(tmp_path, [])) == 21  # a.png, the last, has classes 1 and 2
    for folder in ("images", "labels"):
        (tmp_path / folder / "a.png").unlink()
    with pytest.raises(
        UserError, match=f"the 20 test labels in {tmp_path} hold class 0 and void .not scored., and no "
    ):
        opened(tmp_path, [])
    for name in names:
        label(0 * MASK)(tmp_path / "labels" / name)
    assert len(opened(tmp_path, [])) == 20, "class 0 alone is a class"


def test_what_is_wrong_later_in_a_set_is_said_when_it_is_read(tmp_path: Path) -> None:
    folders(tmp_path, "png", label(CLASSES), [])
    for number in range(20):
        label(np.zeros((4, 6, 3), np.uint8))(tmp_path / "images" / f"{number:03}.png")
        label(CLASSES)(tmp_path / "labels" / f"{number:03}.png")
    label(CLASSES + 7)(tmp_path / "labels" / "001.png")
    data = opened(tmp_path, [])
    with pytest.raises(UserError, match=r"001\.png: label 7, expected"):
        list(data)


# data.labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.labels={0:0,255:1}", "a map with a space after each colon, such as {0: 0, 255: 1}"),
        ("data.labels=[0, 1]", "expected a map to whole numbers"),
        ("data.labels={0: 0, 255: white}", "expected a map to whole numbers"),
        ("data.labels={red: 1}", "expected values, such as {0: 0, 255: 1}, or colours, such as"),
        ('data.labels={0: 0, "#800000": 1}', "expected values, such as"),
        ('data.labels={"#80000": 1}', "expected values, such as"),
        ('data.labels={"#ff0000": 1, "#FF0000": 0}', "each once"),
        ("data.labels={-1: 0}", "expected values, such as"),
        ("data.labels={0: 0, 255: 3}", "255 is class 3, expected 0 to 2, or 255 for void"),
        ("data.background=white", "data.background='white': expected a list of whole numbers, such as [64,48] or null"),
        ("data.background=[0, 0]", "data.background=[0, 0]: expected [red, green, blue], each 0 to 255"),
        ("data.background=[0, 0, 256]", "expected [red, green, blue], each 0 to 255"),
    ],
)
def test_mistakes_in_the_options_are_one_line(tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(tmp_path, [word])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_labels_are_one_field_that_replays_to_itself(tmp_path: Path) -> None:
    config = build({"classes": 3, **read_overrides(["data.labels={0: 0, 255: 1}"])})
    assert config.data.labels == {"0": 0, "255": 1} == flat(config)["data.labels"]
    again = build(to_dict(config))
    assert again == config and identity(again) == identity(config) != identity(build({"classes": 3}))


def test_labels_go_with_a_users_own_label_images(tmp_path: Path) -> None:
    words = read_overrides(["data.labels={0: 0, 255: 1}"])
    camvid = {"task": "segmentation", "classes": 11, "data": {"name": "camvid", "root": str(tmp_path)}}
    with pytest.raises(UserError, match=r"data\.labels: goes with data\.name=folders, data\.name=camvid has labels of"):
        task.dataset(build(merge(camvid, words)), "test")
    digits = {"task": "classification", "classes": 10, "data": {"name": "digits"}}
    with pytest.raises(UserError, match=r"data\.labels: says what label images hold, and classification has none"):
        classification.dataset(build(merge(digits, words)), "test")
    (tmp_path / "classes.txt").write_text("ground\nroof\n")
    with pytest.raises(UserError, match="255 is none of the 2 classes, 0 to 1"):  # classes=3: two and one for void
        folders(tmp_path, "png", label(MASK), ["data.labels={0: 0, 255: 2}"])
