"""Data sets of a few images, in the layouts of the real ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets


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
