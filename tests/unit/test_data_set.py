"""The digest of a data set: equal for equal images and labels, whatever the teacher's normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.networks.preprocessing import Preprocessing
from harness.run.data_set import NUM_HASHED, digest

PLAIN = Preprocessing(4, 4, "rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OTHER = Preprocessing(4, 4, "bgr", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


class Made:
    """Images of whole 8-bit values as a network with this preprocessing takes them."""

    def __init__(self, spec: Preprocessing, count: int = 10, labels: list[Any] | None = None, seed: int = 0) -> None:
        source = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (count, 3, 4, 4), generator=source)
        self.images, self.labels = spec.normalise(pixels / 255), labels or list(range(count))
        self.classes = ["a", "b"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.images[index], self.labels[index]


def test_a_digest_is_of_pixels_and_labels() -> None:
    known = digest(Made(PLAIN), PLAIN)
    assert len(known) <= 36, "MLflow takes no more"
    assert digest(Made(OTHER), OTHER) == known
    others = [Made(PLAIN, seed=1), Made(PLAIN, labels=[1] * 10), Made(PLAIN, count=9)]
    assert len({known, *(digest(data, PLAIN) for data in others)}) == 4


def test_a_digest_reads_a_part_of_a_large_set() -> None:
    large = Made(PLAIN, count=3 * NUM_HASHED)
    known = digest(large, PLAIN)
    large.images[1] = 0  # between two that are read
    assert digest(large, PLAIN) == known
    large.images[3] = 0
    assert digest(large, PLAIN) != known


def test_labels_may_be_maps() -> None:
    maps = [torch.full((4, 4), value) for value in range(10)]
    assert digest(Made(PLAIN, labels=maps), PLAIN) != digest(Made(PLAIN, labels=maps[::-1]), PLAIN)
