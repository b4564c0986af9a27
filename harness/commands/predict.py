"""The student on a user's own image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from harness.errors import UserError
from harness.networks.preprocessing import Preprocessing, fit, from_record
from harness.run.student import load_student

BATCH_SIZE = 64

TOP = 5
"""Classes named for each image, the most probable first."""


def predict(run: Path, images: Sequence[Path], device: str = "cpu") -> list[dict[str, Any]]:
    """What the student of a run folder sees in image files of any size.

    One {image, label, class, probability, top5} a file: `label` is the index of the most probable class, `class` its
    name (None where the run has none), `probability` its softmax, `top5` the same three of the five most probable.
    Raises UserError where the run has no student, an image cannot be read, or the student is no classifier.
    """
    module, record = load_student(run)
    spec, names = from_record(record["preprocessing"]), record["class_names"]
    where = _device(device)
    module.to(where)
    found = []
    for start in range(0, len(images), BATCH_SIZE):
        paths = images[start : start + BATCH_SIZE]
        x = torch.stack([spec.normalise(load_image(path, spec)) for path in paths])
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


def load_image(path: Path, spec: Preprocessing) -> Tensor:
    """An image file as RGB [3, H, W] in 0..1: scaled until it covers the input, the overhang cropped evenly.

    That is how test images are prepared. Raises UserError where the file is missing or no image.
    """
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode[0] in "IF":  # more than 8 bits a pixel, which Pillow would clip to white
                raise UserError(f"{path}: mode {picture.mode} has more than 8 bits a channel; save it with 8")
            picture = picture.convert("RGB")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's ways of saying no
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path}: the image cannot be read ({reason})") from None
    pixels: Tensor = functional.pil_to_tensor(picture)
    return fit(pixels, spec.height, spec.width).float() / 255


def _device(name: str) -> torch.device:
    """The device of that name; UserError where this machine has none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r}: not usable here ({str(error).splitlines()[0]})") from None
