"""Images without data on which a student's int8 file is calibrated and chosen, from what a run folder holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from harness import task as tasks
from harness.algorithm import views
from harness.algorithm.latents import mix
from harness.config import Config
from harness.errors import UserError
from harness.methods import find
from harness.networks import roles
from harness.run import folder
from harness.training import checkpoint, pool
from harness.training.sources import class_centres, drawn

Use = Literal["calibration", "held"]
"""Images that set ranges, and those held apart from them on which the candidates are compared."""

Kind = Callable[[Use, int], Tensor]
"""(use, count) -> images x [count, C, H, W] as the network takes them; the same for the same arguments."""

CONTRAST = 1.5
"""Factor of images with more contrast: generated ones may leave activations smaller than real ones do."""


def kinds(run: Path, say: Callable[[str], None]) -> dict[str, Kind]:
    """Every kind of image that the run folder gives, by name; noise is the last.

    `generator`: of the generators of all its checkpoints; `pool`: of the replay pool; `real`: training images, where
    the method is not data-free anyway; `views` of these, cropped and scaled and mirrored; `contrast`: with more of it.
    `say` is told what there is no generator for. Raises UserError where there are no images.
    """
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} holds a student and no run: --int8 needs its checkpoints, with generator or images")
    config, _ = folder.read_config(run)
    found = dict(_own(run, config))
    if not found:
        raise UserError(
            f"{run / 'checkpoints'} holds neither generator nor images, and calibration for --int8 needs some: "
            "export from the folder in which the run was made"
        )
    if "generator" not in found:
        say(f"{run} has no generator: int8 is calibrated on its {' and '.join(found)} images, and on noise")
    base = found.get("pool") or next(iter(found.values()))
    return {
        **found,
        "views": lambda use, count: _views(config, base(use, count), use),
        "contrast": lambda use, count: CONTRAST * base(use, count),
        "noise": lambda use, count: torch.randn(base(use, count).shape, generator=_random(config, "noise", use)),
    }


def mixture(kinds: dict[str, Kind], use: Use, count: int) -> Tensor:
    """As many images of each kind, one after the other by turns."""
    each = -(-count // len(kinds))
    return torch.stack([kind(use, each) for kind in kinds.values()], 1).flatten(0, 1)[:count]


def _own(run: Path, config: Config) -> Iterator[tuple[str, Kind]]:
    """Images of the run itself: generated, stored, or real."""
    method, _ = find(config.method, config.variant)
    turns, saved = method.turns(config), checkpoint.every(run / "checkpoints")
    if saved and any(turn.source == "latents" for turn in turns):
        yield "generator", partial(_generated, config, [_generator(config, path) for path in saved])
    if saved and (tensors := checkpoint.part(saved[-1], pool.PREFIX)):
        yield "pool", partial(_stored, config, pool.images(tensors))
    if not method.data_free:
        yield "real", partial(_real, config)


def _generator(config: Config, path: Path) -> nn.Module:
    """The generator of one checkpoint, as it makes images: its batch norm takes the statistics of the batch."""
    module = roles.generator(config)
    module.load_state_dict(checkpoint.part(path, "generator/model/"))
    return module.float().train()


@torch.no_grad()
def _generated(config: Config, generators: list[nn.Module], use: Use, count: int) -> Tensor:
    """As many images of each generator, in batches of the run's size."""
    size, each = config.batch_size, -(-count // len(generators))
    centres = class_centres(config)
    made = []
    for index, generator in enumerate(generators):
        batches = []
        for batch in range(-(-each // size)):
            z, _ = drawn(config, centres, range(size), size, "int8", use, index, batch)
            batches.append(generator(z))
        made.append(torch.cat(batches)[:each])
    return torch.stack(made, 1).flatten(0, 1)[:count]


def _stored(config: Config, images: Tensor, use: Use, count: int) -> Tensor:
    """Of [n, C, H, W] those with even index to calibrate, those with odd index to compare."""
    own = range(use == "held", len(images), 2)
    chosen = torch.randint(len(own), (count,), generator=_random(config, "pool", use)).tolist()
    return images[[own[index] for index in chosen]]


def _real(config: Config, use: Use, count: int) -> Tensor:
    """Training images, even ones to calibrate and odd ones to compare."""
    data = tasks.load(config.task).dataset(config, "train", augment=True)
    own = range(use == "held", len(data), 2)
    with roles.seeded(config.seed, "int8", "real", use):  # augmentation draws from torch's global generator
        return torch.stack([data[own[index]][0] for index in torch.randint(len(own), (count,)).tolist()]).float()


def _views(config: Config, x: Tensor, use: Use) -> Tensor:
    return views.local(x, torch.rand(len(x), 4, generator=_random(config, "views", use)), config.input.mirror)


def _random(config: Config, *keys: str) -> torch.Generator:
    return torch.Generator().manual_seed(mix(config.seed, "int8", *keys))
