"""Generated images of a run, from its checkpoints, and what can replace them in a probe."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.algorithm import views
from harness.algorithm.latents import mix, uniform
from harness.config import Config
from harness.distributed.runtime import Runtime
from harness.methods import METHODS
from harness.networks import preprocessing, roles
from harness.training import sources
from harness.training.checkpoint import every, part
from harness.training.inversion import inverts
from harness.training.pool import PREFIX, Pool


def restored(module: nn.Module, checkpoint: Path, name: str) -> nn.Module:
    """Loads the weights of the player `name` from a checkpoint into `module`, and moves it to the GPU if there is one.

    If the run averages this player's weights, these are the averages, as in the run's evaluations and its result.
    """
    module.load_state_dict(part(checkpoint, f"{name}/model/") | part(checkpoint, f"{name}/average/"))
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def last_checkpoint(run: Path) -> Path | None:
    """The latest checkpoint in a run folder; None if there is none."""
    return max(every(run / "checkpoints"), default=None)


def images(config: Config, checkpoint: Path, *keys: int | str) -> Iterator[Tensor]:
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
    pool.load({PREFIX + name: values for name, values in part(checkpoint, PREFIX).items()})
    for index in itertools.count():
        yield pool.sample(config.batch_size, *keys, index)


def views_of(config: Config, images: Tensor) -> Tensor:
    """A shifted, cropped and, with input.mirror, perhaps mirrored view of each image [N, C, H, W]."""
    draws = uniform(range(len(images)), len(images), 3, config.seed, "probe views")
    return views.crop(images, draws, config.input.mirror, preprocessing.black(config))


def mixtures_of(config: Config, images: Tensor) -> Tensor:
    """Each image [N, C, H, W] mixed with another one: u a + (1 - u) b, u in [0, 1) (mixup, arXiv:1710.09412)."""
    number = len(images)
    draws = uniform(range(number), number, 1, config.seed, "probe mixtures")[:, 0]
    order = torch.randperm(number, generator=torch.Generator().manual_seed(mix(config.seed, "probe pairs")))
    return views.mixup(images, images[order], draws)


CHANGES: dict[str, Callable[[Config, Tensor], Tensor]] = {
    "": lambda config, images: images,
    "views": views_of,
    "mixtures": mixtures_of,
}
"""What replaces the generated images, by name."""
