"""The fingerprint of a data set."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from harness.networks.preprocessing import Preprocessing
from harness.task import Dataset

NUM_HASHED = 64
"""Images that are hashed, at even distances over the set: a large set is not read twice."""

DIGITS = 16
"""Hexadecimal digits of a digest."""


def digest(data: Dataset, spec: Preprocessing) -> str:
    """Hexadecimal digits over the number of images, the class names, and NUM_HASHED images (8 bits) with their labels.

    The images are those that are scored, brought to the run's size; the normalisation that `spec` describes is undone,
    so that runs with other teachers have the same digest. Raises UserError where an image cannot be read.
    """
    found = hashlib.sha256(f"{len(data)} {list(data.classes)}".encode())
    count = min(NUM_HASHED, len(data))
    for number in range(count):
        image, label = data[number * len(data) // count]
        pixels: Any = (255 * spec.denormalise(image[None])[0]).round().clamp(0, 255).byte()
        found.update(f"{tuple(pixels.shape)} {np.shape(label)}".encode())
        found.update(pixels.cpu().numpy().tobytes())
        found.update(np.asarray(label, dtype=np.int64).tobytes())
    return found.hexdigest()[:DIGITS]
