"""The student on a user's own image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import image_files
from harness.errors import UserError
from harness.networks.preprocessing import Preprocessing, fit, from_record
from harness.run import folder
from harness.run.student import load_student

BATCH_SIZE = 64

TOP = 5
"""Classes named for each image, the most probable first."""


def predict(
    run: Path, images: Sequence[Path], device: str = "cpu", background: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """What the student of a run folder sees in image files of any size.

    Transparent pixels show `background`, [red, green, blue] in 0..255, by default the run's `data.background`.
    One {image, label, class, probability, top5} a file: `label` is the index of the most probable class, `class` its
    name (None where the run has none), `probability` its softmax, `top5` the same three of the five most probable.
    Raises UserError where the run has no student, an image cannot be read, or the student is no classifier.
    """
    module, record = load_student(run)
    spec, names = from_record(record["preprocessing"]), record["class_names"]
    where = _device(device)
    module.to(where)
    behind = background or _background(run)
    found = []
    for start in range(0, len(images), BATCH_SIZE):
        paths = images[start : start + BATCH_SIZE]
        x = torch.stack([spec.normalise(load_image(path, spec, behind)) for path in paths])
        with torch.no_grad():
            logits = module(x.to(where))
        if logits.dim() != 2:
            raise UserError(f"{run}: its student answers each pixel; predict takes classifiers")
        top = logits.float().softmax(1).topk(min(TOP, logits.shape[1]))
        for path, probabilities, labels in zip(paths, top.values.tolist(), top.indices.tolist(), strict=True):
            top5 = [
                {"label": label, "class": names[label] if names else None, "probability": probability}
                for label, probability in zip(labels, probabilities, strict=True)
            ]
            found.append({"image": str(path), **top5[0], "top5": top5})
    return found


def load_image(path: Path, spec: Preprocessing, background: Sequence[int] | None = None) -> Tensor:
    """An image file as RGB [3, H, W] in 0..1: scaled until it covers the input, the overhang cropped evenly.

    That is how test images are prepared. Raises UserError as `image_files.read` does.
    """
    return image_files.fractions(fit(image_files.read(path, background), spec.height, spec.width))


def _background(run: Path) -> Sequence[int] | None:
    """The run's own `data.background`; None in a folder that holds the student's files alone."""
    if not (run / "config.yaml").exists():
        return None
    return folder.read_config(run)[0].data.background


def _device(name: str) -> torch.device:
    """The device of that name; UserError where this machine has none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r}: not usable here ({str(error).splitlines()[0]})") from None
