"""`ddad generate`: images of a run's generator with the teacher's answers, as files for use elsewhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness import files, methods
from harness import task as tasks
from harness.commands import recorded
from harness.commands.recorded import Recorded
from harness.distributed.runtime import Runtime
from harness.errors import UserError, nearest
from harness.image_files import fractions
from harness.networks.layers import evaluating
from harness.networks.preprocessing import preprocessing
from harness.run.student import DESCRIPTION
from harness.training.machine import Networks

Format = Literal["images", "npz", "safetensors"]


def generate(
    run: str | Path,
    count: int,
    output: str | Path,
    format: str = "images",  # noqa: A002 - the command's own word
    seed: int | None = None,
    reveal: bool = False,
    modules: Mapping[str, nn.Module] = {},
) -> dict[str, Any]:
    """Writes `count` generated images with the teacher's answers to a new folder; returns what generated.json holds.

    `images`: 8-bit PNG files in the layout of the data set that is returned as `data`; the answers are those for the
    rounded images, so that whoever reads them gets the same. `npz` and `safetensors`: generated.npz or .safetensors
    with `images`, fp32 [N, C, H, W] as the networks take them, `logits` and `labels` of the teacher.

    The first n of N images are the same for every N; `seed` chooses others, None is the run's. `reveal`: also for a
    run with pictures=false. `modules`: those that the run was given from Python, by role. Raises UserError
    where the run has no generator, its teacher is gone, or the folder holds something.
    """
    if format not in get_args(Format):
        raise UserError(f"--format {format!r}: no such format{nearest(format, get_args(Format))}")
    if count < 1:
        raise UserError(f"--count {count}: expected the number of images, at least 1")
    if seed is not None and seed < 0:
        raise UserError(f"--seed {seed}: expected at least 0")
    last = recorded.read(Path(run), {}, modules)
    _check(last, reveal)
    seed = last.config.seed if seed is None else seed
    with files.new_folder(Path(output)) as temporary:
        networks = last.networks(Runtime(last.config), "run it until its first checkpoint")
        batches = _batches(networks, count, seed)
        names = _class_names(last)
        if format == "images":
            found, counts = _write_images(last, networks, batches, names, temporary)
        else:
            found, counts = _write_arrays(batches, networks, temporary, format)
        described = {
            "run": str(run),
            "count": count,
            "seed": seed,
            "format": format,
            **found,
            "class_names": names,
            "label_counts": counts.tolist(),
            "preprocessing": dataclasses.asdict(preprocessing(last.config)),
        }
        (temporary / "generated.json").write_text(json.dumps(described, indent=1) + "\n")
    return {"output": str(output), **described}


def _check(last: Recorded, reveal: bool) -> None:
    config = last.config
    if not methods.METHODS[config.method].data_free:
        raise UserError(f"{last.run} has no generator: method={config.method} learns from real images")
    if not (config.pictures or reveal):
        raise UserError(
            f"{last.run} has pictures=false, and generated images may reveal what the teacher was trained on (README, "
            "What generated images may reveal): with --reveal they are written all the same"
        )
    if last.missing:
        raise UserError(f"{last.missing[0]}, and the answers are the teacher's")


def _batches(networks: Networks, count: int, seed: int) -> Iterator[Tensor]:
    """`count` images in batches [b, C, H, W] in fp32; each was made as part of a whole batch, for batch norm."""
    size = networks.config.batch_size
    for index, start in enumerate(range(0, count, size)):
        yield networks.generate(size, "generate", seed, index)[: count - start]


def _answers(networks: Networks, x: Tensor) -> Tensor:
    """The teacher's logits for images as the networks take them."""
    assert networks.teacher is not None
    with evaluating([networks.teacher]):  # in fp32, also where the run asks for bf16: as whoever reads the files
        logits: Tensor = networks.teacher(x.to(networks.runtime.device, networks.runtime.dtype))
    return logits.float().cpu()


def _write_images(
    last: Recorded, networks: Networks, batches: Iterator[Tensor], names: list[str], folder: Path
) -> tuple[Mapping[str, Any], Tensor]:
    """8-bit files; returns what reads them, and the number of labels of each class."""
    task, spec, start = tasks.load(last.config.task), preprocessing(last.config), 0
    counts, data = torch.zeros(len(names), dtype=torch.long), ""
    for x in batches:
        pixels = (spec.denormalise(x.float().cpu()) * 255).round().to(torch.uint8)
        labels = _answers(networks, spec.normalise(fractions(pixels))).argmax(1)
        data = task.write(folder, start, pixels[:, :1] if spec.channels == "gray" else pixels, labels, names)
        start += len(x)
        counts += labels.flatten().bincount(minlength=len(names))
    return {"data": data}, counts


def _write_arrays(
    batches: Iterator[Tensor],
    networks: Networks,
    folder: Path,
    format: str,  # noqa: A002
) -> tuple[Mapping[str, Any], Tensor]:
    """One file of arrays; returns its name, and the number of labels of each class."""
    images = [x.float().cpu() for x in batches]
    logits = torch.cat([_answers(networks, x) for x in images])
    arrays = {"images": torch.cat(images).contiguous(), "logits": logits, "labels": logits.argmax(1)}
    file = folder / f"generated.{format}"
    if format == "npz":
        images_, logits_, labels_ = (value.numpy() for value in arrays.values())
        np.savez(file, images=images_, logits=logits_, labels=labels_)
    else:
        file.write_bytes(save(arrays))  # safetensors' own file writer names no reason when the disk is full
    return {"file": file.name}, arrays["labels"].flatten().bincount(minlength=logits.shape[1])


def _class_names(last: Recorded) -> list[str]:
    """One for each of the teacher's outputs: those of the run's data set, where it is finished, else numbers."""
    numbers = [str(index) for index in range(last.config.classes)]
    path = last.run / DESCRIPTION
    known: list[str] = json.loads(path.read_text())["class_names"] if path.exists() else []
    return known + numbers[len(known) :]
