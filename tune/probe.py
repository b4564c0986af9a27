"""The frozen probe: generated images on which all students of a sweep are compared with the teacher, without data.

They come from the recipe's default run, at four times of it, so that neither early noise nor the last generator alone
decides; they are spread over the classes that the teacher sees in them. Made once, hashed, and the same for all trials.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
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
"""Of the default run's rounds: when its generator makes its part of the probe."""

NUM_IMAGES, MAX_BYTES = 2048, 64 * 2**20
"""Images of the whole probe at most, and what they may weigh."""

CANDIDATES = 4
"""Images made for each one that is kept: from so many the classes are balanced."""

SAME_TEACHER = 0.99
"""Least agreement of a teacher with its own answers on the probe: in batches of another size it rounds otherwise."""

CHECKPOINTS = 20
"""Checkpoints of the default run; the times above fall on them."""


@dataclass(frozen=True)
class Probe:
    """Images [N, C, H, W] as the networks take them, and the classes the teacher names: [N], or maps [N, H, W]."""

    images: Tensor
    answers: Tensor
    sha256: str


def stages(rounds: int) -> dict[int, float]:
    """{round: share} at which the probe's parts are made: checkpoints of the default run."""
    every = interval(rounds)
    return {rounds if share == 1 else max(1, round(share * rounds / every)) * every: share for share in SHARES}


def interval(rounds: int) -> int:
    """Rounds between two checkpoints of the default run."""
    return max(1, rounds // CHECKPOINTS)


def collect(config: Config, run: Path, folder: Path) -> None:
    """Makes the parts whose checkpoints are in the default run's folder, unless they are made; the probe with the last.

    `config` is the default run's. To be called whenever a checkpoint may have come: only the latest are kept.
    """
    target = folder / "probe.safetensors"
    for round_index in stages(config.rounds):
        checkpoint, part = run / "checkpoints" / f"round-{round_index:08d}.safetensors", _part(folder, round_index)
        if not target.exists() and checkpoint.exists() and not part.exists():
            images, answers = _make(config, checkpoint, round_index)
            files.write(part, save({"images": images, "answers": answers}))
    parts = [_part(folder, round_index) for round_index in stages(config.rounds)]
    if target.exists() or not all(part.exists() for part in parts):
        return
    read = [_read(part) for part in parts]
    content = {"images": torch.cat([images for images, _ in read]), "answers": torch.cat([a for _, a in read])}
    files.write(target, save(content))
    counts = torch.bincount(_main_class(content["answers"]), minlength=config.classes).tolist()
    account = {"sha256": sha256(target), "rounds": list(stages(config.rounds)), "images": sum(counts),
               "images_by_class": counts}  # fmt: skip
    files.write(folder / "probe.json", json.dumps(account, indent=1) + "\n")
    for part in parts:
        part.unlink()


def of(sweep: Path) -> Path:
    """The probe's file in a sweep's folder."""
    return sweep / "probe" / "probe.safetensors"


def check(sweep: Path, config: Config) -> None:
    """UserError where another sweep's probe does not suit a run: other images, or another teacher's answers."""
    found = load(of(sweep))
    given, expected = tuple(found.images.shape[1:]), image_shape(config)
    if given != expected:
        raise UserError(f"--probe {sweep}: its images are {given}, this run's {expected}: give a probe of this recipe")
    if (same := judge(found, config.batch_size)(roles.teacher(config))) < SAME_TEACHER:
        raise UserError(f"--probe {sweep}: its answers are another teacher's, who says the same of {same:.0%}")


def adopt(sweep: Path, target: Path) -> None:
    """Takes over another sweep's probe, with its account, unless there is one."""
    if not target.exists():
        for name in ("probe.json", target.name):  # the probe last: where it is, its account is
            files.write(target.with_name(name), of(sweep).with_name(name).read_bytes())


def load(path: Path) -> Probe:
    """The probe; UserError where it is missing or is not the file that probe.json describes."""
    try:
        recorded = json.loads((path.parent / "probe.json").read_text())["sha256"]
        found = sha256(path)
        images, answers = _read(path)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: the probe cannot be read ({error}); every node must see the sweep's folder") from None
    if found != recorded:
        raise UserError(f"{path} is not the probe this sweep began with: put that one back, or begin another sweep")
    return Probe(images, answers, found)


def judge(probe: Probe, batch_size: int) -> Callable[[nn.Module], float]:
    """A function from a student to its agreement with the teacher on the probe: the mean over the teacher's classes.

    The mean over classes gives each the same say where balancing by image cannot: in maps, and for rare classes.
    """

    def agreement(student: nn.Module) -> float:
        weights = next(student.parameters())
        with evaluating([student]):
            batches = (x.to(weights.device, weights.dtype) for x in probe.images.split(batch_size))
            said = torch.cat([student(x).argmax(1).cpu() for x in batches])
        same = (said == probe.answers).double()
        truth = probe.answers.long().flatten()
        count = torch.bincount(truth).double()
        hits = torch.bincount(truth, weights=same.flatten())
        return float((hits[count > 0] / count[count > 0]).mean())

    return agreement


def restored(module: nn.Module, checkpoint: Path, name: str) -> nn.Module:
    """A fresh network with the weights of the player `name` in a checkpoint, on a GPU where there is one.

    Where the run averages weights these are the averaged ones, as in its evaluations and its result.
    """
    state: dict[str, Tensor] = {}
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        for prefix in (f"{name}/model/", f"{name}/average/"):
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 - not a dictionary
            state |= {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
    module.load_state_dict(state)
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def last_checkpoint(run: Path) -> Path | None:
    """The latest checkpoint of a run folder."""
    return max((run / "checkpoints").glob("round-*.safetensors"), default=None)


def generated(config: Config, checkpoint: Path, *keys: int | str) -> Iterator[Tensor]:
    """Endless batches of images from the generator of a checkpoint, normalising as in training, or from its pool.

    The pool it is where a method makes each batch by many steps: no generator of all of them is left.
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
    """Endless batches of images from the pool of a checkpoint."""
    pool = Pool(config, Runtime(config), fresh=())
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118 - not a dictionary
        pool.load({name: file.get_tensor(name) for name in names})
    for index in itertools.count():
        yield pool.sample(config.batch_size, *keys, index)


def _make(config: Config, checkpoint: Path, round_index: int) -> tuple[Tensor, Tensor]:
    """One generator's part: as many images of each class as there are, up to an equal share."""
    source = generated(config, checkpoint, "probe", round_index)
    teacher = roles.teacher(config)
    first = next(source)
    teacher = teacher.to(first.device)
    wanted = min(NUM_IMAGES, MAX_BYTES // (first[0].numel() * 4)) // len(SHARES)
    kept_images, kept_answers = [], []
    left = torch.full((config.classes,), max(1, wanted // config.classes))
    with evaluating([teacher]):
        x = first
        for _ in range(-(-CANDIDATES * wanted // config.batch_size)):
            answers = teacher(x).argmax(1).cpu()
            for image, answer, main in zip(x.cpu(), answers, _main_class(answers).tolist(), strict=True):
                if left[main] > 0:
                    left[main] -= 1
                    kept_images.append(image.float().contiguous())
                    kept_answers.append(answer)
            x = next(source)
    return torch.stack(kept_images), torch.stack(kept_answers).to(torch.int16)


def _main_class(answers: Tensor) -> Tensor:
    """The class an image is counted for: its own, or the most frequent of its map."""
    return answers.long() if answers.dim() == 1 else answers.long().flatten(1).mode(1).values


def _part(folder: Path, round_index: int) -> Path:
    return folder / f"part-{round_index:08d}.safetensors"


def _read(path: Path) -> tuple[Tensor, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor("images"), file.get_tensor("answers")
