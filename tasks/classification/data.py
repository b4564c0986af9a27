"""Real images with one label each: the data sets of this task, read from files that are already there.

Every set passes through the same transforms. For testing, an image is scaled to cover the input and cropped about its
centre: nothing happens where it has that size already. For training, `augment` adds what the set allows (`SETS`).
Images are RGB in 0..1 until `harness.networks.preprocessing` makes of them what the teacher takes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from harness import image_files
from harness.config import Config, sides
from harness.errors import UserError, nearest
from harness.networks.preprocessing import fit, preprocessing
from harness.task import Split
from harness.training.data import data_root, first_look
from tasks.classification.formats import read_idx, unpickle_arrays

SPLITS = Path(__file__).parent / "splits"

SPLIT_SHA256 = {
    "digits": "f7f82cef4eab64c40aeea54a9549ce5d93acf23aa3be24510804b562e69fcc21",
    "caltech101 train": "2dfd3cadb546361ddab74addc832596672e1a8b28ede07c692f39c9379f40af8",
    "caltech101 test": "ccde3f8ef877780763f0672922eb882e2cda3b2fa40567bdf5304906c8143804",
}
"""SHA-256 over the names in a split, one a line: figures are only comparable on the same images."""


Transform = Callable[[Tensor], Tensor]


class Images(Protocol):
    """Images by index: [3, h, w] or [1, h, w], bytes or floating point in 0..1; a tensor [N, C, h, w] is one."""

    def __getitem__(self, index: int, /) -> Tensor: ...


class Source(NamedTuple):
    """A split as it lies on disk."""

    classes: list[str]
    images: Images
    labels: Sequence[int]


@dataclass
class LabelledImages:
    """A `harness.task.Dataset` of (image [C, H, W] normalised for the teacher, index of its class)."""

    classes: list[str]
    images: Images
    labels: Sequence[int]
    transform: Transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index].expand(3, -1, -1)), self.labels[index]


@dataclass(frozen=True)
class Files:
    """Images in files of their own, opened when asked for; UserError for one that cannot be read."""

    paths: list[str]
    background: Sequence[int] | None = None
    """What transparent pixels show, [red, green, blue] in 0..255."""

    def __getitem__(self, index: int) -> Tensor:
        return image_files.read(Path(self.paths[index]), self.background)


def dataset(config: Config, split: Split, augment: bool = False) -> LabelledImages:
    """The images of `config.data`, at `config.input.size` and normalised for the teacher.

    Without `augment` at `config.data.size`, where that is given.

    Raises UserError where the set is unknown, missing, partial or corrupt, or has not `config.classes` classes.
    """
    name = config.data.name
    if name == "none":
        raise UserError(f"data.name=none: real images are needed here; set data.name to one of {', '.join(SETS)}")
    if name not in SETS:
        raise UserError(f"data.name={name!r}: no such data set{nearest(name, SETS)}")
    if config.data.labels:
        raise UserError("data.labels: says what label images hold, and classification has none; leave it out")
    read, augmented = SETS[name]
    source = read(config, split)
    count = len(source.classes)
    if count != config.classes:
        where = f" in {config.data.root}" if name == "image_folder" else ""
        raise UserError(f"classes={config.classes}: data.name={name} has {count} classes{where}; set classes={count}")
    first_look(source.images, len(source.labels))
    wanted = config.data.size or config.input.size
    height, width = sides(config.input.size if augment else wanted)
    steps = [step(height, width) for step in (augmented if augment else [_fit])]
    steps += [v2.ToDtype(torch.float32, scale=True), preprocessing(config).normalise]
    return LabelledImages(*source, v2.Compose(steps))


# Transforms of [3, h, w] to [3, height, width] ------------------------------------------------------------------------


def _fit(height: int, width: int) -> Transform:
    return functools.partial(fit, height=height, width=width)


def _shift(height: int, width: int) -> Transform:
    """Moves an image that fits by up to an eighth, black coming in: 4 pixels at 32 (He et al., 2016, section 4.2)."""
    shift: Transform = v2.RandomCrop((height, width), padding=[width // 8, height // 8])
    return shift


def _zoom(height: int, width: int) -> Transform:
    """A random part, 3:4 to 4:3 in shape (Szegedy et al., 2015), of at least a quarter of the area.

    Their smallest part, 8 %, is meant for a million photographs; it would often miss the object in a few thousand.
    """
    zoom: Transform = v2.RandomResizedCrop((height, width), scale=(0.25, 1.0))
    return zoom


def _mirror(height: int, width: int) -> Transform:
    mirror: Transform = v2.RandomHorizontalFlip()
    return mirror


# The sets: (config, split) -> Source ----------------------------------------------------------------------------------


def digits(config: Config, split: Split) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: 360 for testing (drawn by class, seed 0, kept in splits/)."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: that would take longer than the first rounds
    if package is None or not package.submodule_search_locations:
        raise UserError("data.name=digits: scikit-learn, which holds it, is missing: install scikit-learn")
    held_out = _verified("digits", (SPLITS / "digits.txt").read_text().split())
    table = np.loadtxt(Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz", delimiter=",")
    test = np.isin(np.arange(len(table)), np.array(held_out, dtype=int))
    chosen = table[test if split == "test" else ~test]  # 64 pixels and the digit; ink is counted 0..16
    pixels = torch.from_numpy(chosen[:, :-1].reshape(-1, 1, 8, 8)).float() / 16
    return Source([str(digit) for digit in range(10)], pixels, chosen[:, -1].astype(int).tolist())


def cifar(files: type[datasets.CIFAR10], config: Config, split: Split) -> Source:
    """CIFAR-10 or CIFAR-100: 50,000 + 10,000 images, 32x32 (Krizhevsky, 2009).

    Torchvision names the files and their md5; its own reader wants every batch, also for the test split, and unpickles
    without restriction. Here the batches of one split are enough.
    """
    base = data_root(config) / files.base_folder
    batches = dict(files.train_list if split == "train" else files.test_list)
    wanted = {**batches, files.meta["filename"]: files.meta["md5"]}
    missing = [name for name in wanted if not (base / name).is_file()]
    if missing:
        raise _absent(files, config, f"{', '.join(missing)} of the {split} split not found in {base}")
    values = {}
    for name, expected in wanted.items():
        content = (base / name).read_bytes()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise _absent(files, config, f"{base / name} is corrupt: md5 {found}, expected {expected}")
        values[name] = unpickle_arrays(content, base / name)
    classes = values[files.meta["filename"]][files.meta["key"]]
    pixels = np.concatenate([values[name]["data"] for name in batches]).reshape(-1, 3, 32, 32)
    labels = [label for name in batches for label in values[name].get("labels") or values[name]["fine_labels"]]
    return Source(classes, torch.from_numpy(pixels), labels)


def caltech101(config: Config, split: Split) -> Source:
    """Caltech-101 without its background class: 5,784 + 2,893 photographs, two thirds and one third of each class.

    The set has no split of its own; this one is part of the project, so that its figures can be compared.
    """
    names: list[str] = []
    classes: list[str] = []
    for line in (SPLITS / "caltech101.txt").read_text().splitlines():
        kind, count, *test = line.split()  # the numbers of its images run from 1 to count
        chosen = [n for n in range(1, int(count) + 1) if (str(n) in test) == (split == "test")]
        names += [f"{kind}/image_{n:04}.jpg" for n in chosen]
        classes.append(kind)
    names = _verified(f"caltech101 {split}", sorted(names))
    base = data_root(config) / "caltech101" / "101_ObjectCategories"
    paths = [base / name for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        what = f"{len(missing)} of {len(names)} images of the {split} split, first {missing[0]}, not found in {base}"
        raise _absent(datasets.Caltech101, config, what)
    images = Files([str(path) for path in paths], config.data.background)
    return Source(classes, images, [classes.index(path.parent.name) for path in paths])


def fashion_mnist(config: Config, split: Split) -> Source:
    """Fashion-MNIST: 60,000 + 10,000 images, 28x28 grey, in its four idx files, compressed or not.

    They are looked for in the root itself and where torchvision and Debian's dataset-fashion-mnist put them
    (data.root=/usr/share/datasets).
    """
    kind = "t10k" if split == "test" else "train"
    root = data_root(config)
    folders = [root, root / "FashionMNIST" / "raw", root / "fashion-mnist"]
    found = []
    for name in (f"{kind}-images-idx3-ubyte", f"{kind}-labels-idx1-ubyte"):
        paths = [base / (name + end) for base in folders for end in ("", ".gz")]
        here = [path for path in paths if path.is_file()]
        if not here:
            what = f"{name} or {name}.gz not found in {', '.join(str(base) for base in folders)}"
            raise _absent(datasets.FashionMNIST, config, what)
        found.append(here[0])
    images, labels = read_idx(found[0]), read_idx(found[1])
    if images.dim() != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"{found[0]} holds {list(images.shape)} and {found[1]} {list(labels.shape)} values: no pair")
    return Source(list(datasets.FashionMNIST.classes), images[:, None], labels.tolist())


def image_folder(config: Config, split: Split) -> Source:
    """A user's images of any size, a folder a class: in data.root/train and /test, or, to test only, in data.root.

    A class has the same number in both, where one may lack images of it. Images may lie in folders below that of their
    class, but not all: such folders look like the classes. Other files and what is hidden are ignored.
    """
    if config.data.root is None:
        raise UserError("data.root=null: data.name=image_folder needs data.root, a folder with one folder a class")
    root = data_root(config)
    parts = [part for part in (root / "train", root / "test") if part.is_dir()]
    base = root / split if parts or split == "train" else root
    if not base.is_dir():
        raise UserError(f"{base}: no such folder; image_folder reads its {split} images there, a folder a class")
    folders = [entry for part in parts or [root] for entry in image_files.entries(part) if entry.is_dir()]
    classes = sorted({folder.name for folder in folders})
    found = {path: number for number, name in enumerate(classes) for path in _below(base / name)}
    if not found and any(map(image_files.is_image, image_files.entries(base))):
        raise UserError(f"{base}: its images are not in folders; image_folder expects a folder a class")
    if not found:
        kinds = ", ".join(image_files.SUFFIXES)
        raise UserError(f"{base}: no images; image_folder expects a folder a class, with files ending in {kinds}")
    if all(path.parent.parent != base for path in found):
        first = next(iter(found)).relative_to(base)
        raise UserError(
            f"{base}: every image lies in a folder below that of its class, such as {first}; image_folder expects a "
            f"folder a class: set data.root deeper, or put the images into {', '.join(classes[:3])} themselves"
        )
    return Source(classes, Files([str(path) for path in found], config.data.background), list(found.values()))


def _below(folder: Path) -> Iterator[Path]:
    """The images in a folder and in those below it; none where it is not there. UserError for one that is not read."""
    for entry in image_files.entries(folder) if folder.is_dir() else []:
        if entry.is_dir():
            if not (entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve())):  # a link to where it is
                yield from _below(entry)
        elif image_files.is_image(entry):
            yield entry


def _absent(files: type, config: Config, what: str) -> UserError:
    name, root = files.__name__, str(data_root(config))
    how = f"from torchvision.datasets import {name}; {name}({root!r}, download=True)"
    return UserError(f'data.name={config.data.name}: {what}; to download it: python -c "{how}"')


def _verified(split: str, names: list[str]) -> list[str]:
    found, expected = hashlib.sha256("\n".join(names).encode()).hexdigest(), SPLIT_SHA256[split]
    if found != expected:
        raise UserError(f"the {split} split in {SPLITS} was changed: sha256 {found}, not {expected}; reinstall ddad")
    return names


SETS: dict[str, tuple[Callable[[Config, Split], Source], list[Callable[[int, int], Transform]]]] = {
    "digits": (digits, [_fit]),  # shifts of a pixel gained nothing over 3 seeds, and a mirrored digit is no digit
    "cifar10": (functools.partial(cifar, datasets.CIFAR10), [_fit, _shift, _mirror]),
    "cifar100": (functools.partial(cifar, datasets.CIFAR100), [_fit, _shift, _mirror]),
    "caltech101": (caltech101, [_zoom, _mirror]),
    "fashion_mnist": (fashion_mnist, [_fit, _shift, _mirror]),
    "image_folder": (image_folder, [_zoom, _mirror]),
}
"""How each data set is read, and how its training images are brought to height x width when augmented."""
