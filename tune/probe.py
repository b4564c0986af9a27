"""The probe: a fixed set of generated images on which the students of a sweep are compared with the teacher.

It needs no data. The images come from the default run (the recipe without a sample), at four points of that run, so
that they show neither early noise alone nor the last generator alone; or from such a run of each of several methods.
They are balanced over the classes that the teacher predicts. Then each may be replaced by a view of it or by a mixture
with another one. The probe is made once, its hash is recorded, and all trials use it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness import files
from harness import task as tasks
from harness.config import Config, image_shape
from harness.errors import UserError
from harness.files import sha256
from harness.networks import roles
from harness.networks.layers import evaluating
from tune import generated, objectives

SHARES = (0.10, 0.25, 0.50, 1.0)
"""Shares of the default run after which its generator makes a part of the probe."""

NUM_IMAGES, MAX_BYTES = 2048, 64 * 2**20
"""The largest number of images in the probe, and their largest size in memory."""

MAX_ANSWER_BYTES = 128 * 2**20
"""The largest size of the teacher's log-probabilities for them, in half precision."""

LOWEST = -6e4
"""The lowest log-probability that is stored: half precision has no lower ones."""

METHODS_OF_PROBE = ("ddad", "dfad", "dafl", "dfq")
"""The methods whose generators make a probe of several methods, besides the sweep's own: those of every task."""

GENERATOR, METHODS_PREFIX = "generator", "methods"
"""Images of the default run's generator; of those of several methods."""

CANDIDATES = 4
"""Images generated for each image kept: the classes are balanced by selection."""

SAME_TEACHER = 0.99
"""The lowest agreement of a teacher with its own stored predictions: another batch size changes the rounding."""

NUM_CHECKPOINTS = 20
"""Checkpoints of the default run. The parts of the probe are made at some of them."""


@dataclass(frozen=True)
class Probe:
    """The images, the teacher's predictions for them, and the hash of the file."""

    images: Tensor
    """[N, C, H, W], normalised as the networks expect."""
    predictions: Tensor
    """Class indices [N], or maps of them [N, H, W]."""
    sha256: str
    log_probabilities: Tensor | None = None
    """The teacher's, [N, K] or [N, K, H, W], in half precision; None in a probe of an older version."""


@dataclass(frozen=True)
class Source:
    """A run whose generator makes images of the probe."""

    config: Config
    run: Path
    """Its run folder."""
    method: str = ""
    """Its method; empty for the default run."""


KINDS = tuple(
    f"{whose}+{change}" if change else whose for whose in (GENERATOR, METHODS_PREFIX) for change in generated.CHANGES
)
"""What a probe can be made of: whose images, and what replaces them."""


def stages(rounds: int) -> dict[int, float]:
    """{round: share of the run} at which the parts of the probe are made, each at a checkpoint of the default run."""
    every = interval(rounds)
    return {rounds if share == 1 else max(1, round(share * rounds / every)) * every: share for share in SHARES}


def interval(rounds: int) -> int:
    """Rounds between two checkpoints of the default run."""
    return max(1, rounds // NUM_CHECKPOINTS)


def collect(sources: Sequence[Source], folder: Path, kind: str = GENERATOR) -> None:
    """Makes each missing part of the probe whose checkpoint exists, and the probe once all parts exist.

    The first source is the default run; `kind` is one of KINDS. Call this after each checkpoint, because a run keeps
    only the latest ones.
    """
    target, parts = folder / "probe.safetensors", []
    for source in sources:
        for round_index in stages(source.config.rounds):
            checkpoint = source.run / "checkpoints" / f"round-{round_index:08d}.safetensors"
            parts.append(folder / f"part-{source.method and source.method + '-'}{round_index:08d}.safetensors")
            if not target.exists() and checkpoint.exists() and not parts[-1].exists():
                images = _make_part(source.config, checkpoint, round_index, len(SHARES) * len(sources))
                files.write(parts[-1], save({"images": images}))
    if target.exists() or not all(part.exists() for part in parts):
        return
    write(sources, torch.cat([_read(part)["images"] for part in parts]), folder, kind)
    for part in parts:
        part.unlink()


def write(sources: Sequence[Source], images: Tensor, folder: Path, kind: str) -> None:
    """Writes the probe of generated images [N, C, H, W], after the change that `kind` asks for, and its probe.json."""
    config = sources[0].config
    images = generated.CHANGES[kind.partition("+")[2]](config, images).contiguous()
    predictions, log_probabilities = _answers(config, images)
    content = save({"images": images, "answers": predictions, "log_probabilities": log_probabilities})
    counts = torch.bincount(_main_class(predictions), minlength=config.classes).tolist()
    summary = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "made_of": kind,
        "methods": [source.config.method for source in sources],
        "rounds": list(stages(config.rounds)),
        "images": sum(counts),
        "images_by_class": counts,
    }
    files.write(folder / "probe.json", json.dumps(summary, indent=1) + "\n")
    files.write(folder / "probe.safetensors", content)  # after probe.json, without which it could not be read


def made_of(sweep: Path) -> str:
    """What the probe in a sweep's folder is made of; UserError if it cannot be read."""
    load(file_in(sweep))
    kind: str = json.loads(file_in(sweep).with_name("probe.json").read_text()).get("made_of", GENERATOR)
    return kind


def file_in(sweep: Path) -> Path:
    """The path of the probe in a sweep's folder."""
    return sweep / "probe" / "probe.safetensors"


def check(sweep: Path, config: Config, objective: str) -> None:
    """Raises UserError if another sweep's probe does not fit: other image shape, other teacher, no probabilities."""
    found = load(file_in(sweep))
    needs_probabilities = objective in objectives.OBJECTIVES and objective != objectives.WITHOUT_PROBABILITIES
    if needs_probabilities and found.log_probabilities is None:
        raise UserError(
            f"--probe {sweep}: it is of an older version, without the teacher's probabilities that --objective "
            f"{objective} needs: give --objective {objectives.WITHOUT_PROBABILITIES}, or a newer sweep"
        )
    given, expected = tuple(found.images.shape[1:]), image_shape(config)
    if given != expected:
        raise UserError(
            f"--probe {sweep}: its images are {given}, this recipe's are {expected}: give the folder of a sweep of "
            "this recipe"
        )
    if (same := agreement(found, roles.teacher(config), config.batch_size)) < SAME_TEACHER:
        raise UserError(
            f"--probe {sweep}: its predictions are another teacher's (this teacher agrees with {same:.0%}): give the "
            "folder of a sweep with this teacher"
        )


def copy(sweep: Path, target: Path) -> None:
    """Copies another sweep's probe and its probe.json, unless the probe exists already."""
    if not target.exists():
        for name in ("probe.json", target.name):  # the probe last: if it exists, so does probe.json
            files.write(target.with_name(name), file_in(sweep).with_name(name).read_bytes())


def load(path: Path) -> Probe:
    """Reads the probe; UserError if it is missing or its hash is not the one in probe.json."""
    try:
        recorded = json.loads((path.parent / "probe.json").read_text())["sha256"]
        found = sha256(path)
        tensors = _read(path)
        images, predictions = tensors["images"], tensors["answers"]
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: the probe cannot be read ({error}); every node needs the sweep's folder") from None
    if found != recorded:
        raise UserError(f"{path} has changed since the sweep began: restore the file, or start another sweep")
    return Probe(images, predictions, found, tensors.get("log_probabilities"))


def scores(probe: Probe, student: nn.Module, batch_size: int) -> dict[str, float]:
    """The value of each data-free objective (`tune.objectives`) for a student; an older probe gives agreement only."""
    weights = next(student.parameters())
    with evaluating([student]):
        return objectives.evaluate(
            (
                student(probe.images[rows].to(weights.device, weights.dtype)).cpu(),
                probe.predictions[rows],
                probe.log_probabilities[rows] if probe.log_probabilities is not None else None,
            )
            for rows in (slice(start, start + batch_size) for start in range(0, len(probe.images), batch_size))
        )


def agreement(probe: Probe, student: nn.Module, batch_size: int) -> float:
    """The share of equal predictions of student and teacher, averaged over the classes that the teacher predicts."""
    return scores(probe, student, batch_size)["agreement"]


def _make_part(config: Config, checkpoint: Path, round_index: int, num_parts: int) -> Tensor:
    """One generator's part of the images: an equal number of each class that the teacher predicts, or fewer."""
    batches = generated.images(config, checkpoint, "probe", round_index)
    teacher = roles.teacher(config)
    x = next(batches)
    teacher = teacher.to(x.device)
    num_images = _capacity(config) // num_parts
    kept = []
    left = torch.full((config.classes,), max(1, num_images // config.classes))
    with evaluating([teacher]):
        for _ in range(-(-CANDIDATES * num_images // config.batch_size)):
            predictions = teacher(x).argmax(1).cpu()
            for image, main in zip(x.cpu(), _main_class(predictions).tolist(), strict=True):
                if left[main] > 0:
                    left[main] -= 1
                    kept.append(image.float().contiguous())
            x = next(batches)
    return torch.stack(kept)


def _capacity(config: Config) -> int:
    """The number of images in a probe."""
    shape = image_shape(config)
    answers = tasks.load(config.task).answer_shape(config.classes, *shape[1:])
    return min(NUM_IMAGES, MAX_BYTES // (math.prod(shape) * 4), MAX_ANSWER_BYTES // (math.prod(answers) * 2))


def _answers(config: Config, images: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's classes, int16, and log-probabilities, fp16, for images."""
    teacher = roles.teacher(config).to("cuda" if torch.cuda.is_available() else "cpu")
    weights = next(teacher.parameters())
    with evaluating([teacher]):
        batches = images.split(config.batch_size)
        logits = [teacher(x.to(weights.device, weights.dtype)).float().cpu() for x in batches]
    classes = torch.cat([one.argmax(1).to(torch.int16) for one in logits])
    return classes, torch.cat([one.log_softmax(1).clamp(min=LOWEST).half() for one in logits])


def _main_class(predictions: Tensor) -> Tensor:
    """The class [N] that each image counts for: the predicted one, or the most frequent one of a map."""
    return predictions.long() if predictions.dim() == 1 else predictions.long().flatten(1).mode(1).values


def _read(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
