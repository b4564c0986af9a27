"""The probe: a fixed set of generated images on which the students of a sweep are compared with the teacher.

It needs no data. The images come from the default run (the recipe without a sample), at four points of that run, so
that they show neither early noise alone nor the last generator alone. They are balanced over the classes that the
teacher predicts. The probe is made once, its hash is recorded, and all trials use it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness import files
from harness.config import Config, image_shape
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.files import sha256
from harness.methods import METHODS
from harness.networks import roles
from harness.networks.layers import evaluating
from harness.training import sources
from harness.training.inversion import inverts
from harness.training.pool import PREFIX, Pool

SHARES = (0.10, 0.25, 0.50, 1.0)
"""Shares of the default run after which its generator makes a part of the probe."""

NUM_IMAGES, MAX_BYTES = 2048, 64 * 2**20
"""The largest number of images in the probe, and their largest size in memory."""

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


def stages(rounds: int) -> dict[int, float]:
    """{round: share of the run} at which the parts of the probe are made, each at a checkpoint of the default run."""
    every = interval(rounds)
    return {rounds if share == 1 else max(1, round(share * rounds / every)) * every: share for share in SHARES}


def interval(rounds: int) -> int:
    """Rounds between two checkpoints of the default run."""
    return max(1, rounds // NUM_CHECKPOINTS)


def collect(config: Config, run: Path, folder: Path) -> None:
    """Makes each missing part of the probe whose checkpoint exists, and the probe once all parts exist.

    `config` and `run` are the configuration and the folder of the default run. Call this after each checkpoint, because
    a run keeps only the latest ones.
    """
    target = folder / "probe.safetensors"
    for round_index in stages(config.rounds):
        checkpoint, part = run / "checkpoints" / f"round-{round_index:08d}.safetensors", _part(folder, round_index)
        if not target.exists() and checkpoint.exists() and not part.exists():
            images, predictions = _make_part(config, checkpoint, round_index)
            files.write(part, save({"images": images, "answers": predictions}))
    parts = [_part(folder, round_index) for round_index in stages(config.rounds)]
    if target.exists() or not all(part.exists() for part in parts):
        return
    images, predictions = (torch.cat(tensors) for tensors in zip(*map(_read, parts), strict=True))
    content = save({"images": images, "answers": predictions})
    counts = torch.bincount(_main_class(predictions), minlength=config.classes).tolist()
    summary = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "rounds": list(stages(config.rounds)),
        "images": sum(counts),
        "images_by_class": counts,
    }
    files.write(folder / "probe.json", json.dumps(summary, indent=1) + "\n")
    files.write(target, content)  # after probe.json, without which it could not be read
    for part in parts:
        part.unlink()


def file_in(sweep: Path) -> Path:
    """The path of the probe in a sweep's folder."""
    return sweep / "probe" / "probe.safetensors"


def check(sweep: Path, config: Config) -> None:
    """Raises UserError if another sweep's probe does not fit a run: another image shape or another teacher."""
    found = load(file_in(sweep))
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
        images, predictions = _read(path)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: the probe cannot be read ({error}); every node needs the sweep's folder") from None
    if found != recorded:
        raise UserError(f"{path} has changed since the sweep began: restore the file, or start another sweep")
    return Probe(images, predictions, found)


def agreement(probe: Probe, student: nn.Module, batch_size: int) -> float:
    """The student's agreement with the teacher on the probe: the share of equal predictions, averaged over classes.

    Each class that the teacher predicts has the same weight. Balancing the images cannot give that for label maps or
    for rare classes.
    """
    weights = next(student.parameters())
    with evaluating([student]):
        batches = (x.to(weights.device, weights.dtype) for x in probe.images.split(batch_size))
        predicted = torch.cat([student(x).argmax(1).cpu() for x in batches])
    equal = (predicted == probe.predictions).double().flatten()
    classes = probe.predictions.long().flatten()
    count = torch.bincount(classes).double()
    num_equal = torch.bincount(classes, weights=equal)
    return float((num_equal[count > 0] / count[count > 0]).mean())


def restored(module: nn.Module, checkpoint: Path, name: str) -> nn.Module:
    """Loads the weights of the player `name` from a checkpoint into `module`, and moves it to the GPU if there is one.

    If the run averages this player's weights, these are the averages, as in the run's evaluations and its result.
    """
    state: dict[str, Tensor] = {}
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        for prefix in (f"{name}/model/", f"{name}/average/"):
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 - not a dictionary
            state |= {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
    module.load_state_dict(state)
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def last_checkpoint(run: Path) -> Path | None:
    """The latest checkpoint in a run folder; None if there is none."""
    return max((run / "checkpoints").glob("round-*.safetensors"), default=None)


def generated(config: Config, checkpoint: Path, *keys: int | str) -> Iterator[Tensor]:
    """Yields batches of images [B, C, H, W] without end, from the generator in a checkpoint, in train mode.

    For methods that optimise each batch by many steps the images come from the checkpoint's pool: such a run has no
    generator that makes all of its images. `keys` select other latents.
    """
    if inverts(METHODS[config.method].turns(config)):
        yield from _pooled(config, checkpoint, *keys)
    generator = restored(roles.generator(config), checkpoint, "generator").train()
    device = next(generator.parameters()).device
    index = 0
    while True:
        size = config.batch_size
        z, _ = sources.drawn(config, sources.class_centres(config), range(size), size, *keys, index)
        with torch.no_grad():
            yield generator(z.to(device))
        index += 1


def _pooled(config: Config, checkpoint: Path, *keys: int | str) -> Iterator[Tensor]:
    """Yields batches of images without end, drawn from the pool in a checkpoint."""
    pool = Pool(config, Runtime(config), fresh=())
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118 - not a dictionary
        pool.load({name: file.get_tensor(name) for name in names})
    for index in itertools.count():
        yield pool.sample(config.batch_size, *keys, index)


def _make_part(config: Config, checkpoint: Path, round_index: int) -> tuple[Tensor, Tensor]:
    """One generator's part, images and predictions: an equal number of each class, or fewer if it made fewer."""
    batches = generated(config, checkpoint, "probe", round_index)
    teacher = roles.teacher(config)
    x = next(batches)
    teacher = teacher.to(x.device)
    num_images = min(NUM_IMAGES, MAX_BYTES // (x[0].numel() * 4)) // len(SHARES)
    kept_images, kept_predictions = [], []
    left = torch.full((config.classes,), max(1, num_images // config.classes))
    with evaluating([teacher]):
        for _ in range(-(-CANDIDATES * num_images // config.batch_size)):
            predictions = teacher(x).argmax(1).cpu()
            for image, predicted, main in zip(x.cpu(), predictions, _main_class(predictions).tolist(), strict=True):
                if left[main] > 0:
                    left[main] -= 1
                    kept_images.append(image.float().contiguous())
                    kept_predictions.append(predicted)
            x = next(batches)
    return torch.stack(kept_images), torch.stack(kept_predictions).to(torch.int16)


def _main_class(predictions: Tensor) -> Tensor:
    """The class [N] that each image counts for: the predicted one, or the most frequent one of a map."""
    return predictions.long() if predictions.dim() == 1 else predictions.long().flatten(1).mode(1).values


def _part(folder: Path, round_index: int) -> Path:
    return folder / f"part-{round_index:08d}.safetensors"


def _read(path: Path) -> tuple[Tensor, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor("images"), file.get_tensor("answers")
