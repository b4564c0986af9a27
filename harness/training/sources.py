"""Where the images of a turn come from: the generator, the same latents again, the pool of earlier ones, real data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from harness import task as tasks
from harness.algorithm import views
from harness.algorithm.latents import classes, latents, send, shard, uniform
from harness.algorithm.turns import Answer
from harness.config import Config, ever
from harness.distributed.runtime import Runtime
from harness.methods import INVERTED, Turn
from harness.networks import preprocessing
from harness.training.data import TrainingBatches
from harness.training.players import Player
from harness.training.pool import Pool
from harness.training.teacher import Teacher

CENTRE = 8.0
"""How far from 0 the latents of a class are centred, whatever their length: further apart, its images are all alike."""


class Sources:
    """Images for every turn; each draw is a function of (seed, round, turn, row in the global batch)."""

    def __init__(
        self, config: Config, runtime: Runtime, turns: list[Turn], generator: Player | None, teacher: Teacher | None
    ) -> None:
        self.config, self.runtime, self.turns = config, runtime, turns
        self.generator, self.teacher = generator, teacher
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._repeated: dict[int, tuple[Tensor, Answer]] = {}
        stored = [index for index, turn in enumerate(turns) if _is_stored(turn)]
        replays = any(turn.source == "pool" for turn in turns)
        self.pool = Pool(config, runtime, stored) if replays else None
        self._centres = class_centres(config)
        self._black = send(preprocessing.black(config).to(runtime.dtype), runtime.device)

    def latents(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Tensor | None]:
        """This process's rows of z [b, Z] for a micro-batch, and their classes [b] where they have any.

        A turn of source "same" has the latents of the last turn before it that drew some.
        """
        if self.turns[turn_index].kind == "generator":
            self._repeated.clear()  # after its update the same latents give other images
        while self.turns[turn_index].source != "latents":
            turn_index -= 1
        keys = ("latents", round_index, turn_index)
        z, y = drawn(self.config, self._centres, self._rows(part), self.config.batch_size, *keys)
        return send(z.to(self.runtime.dtype), self.runtime.device), None if y is None else send(y, self.runtime.device)

    @torch.no_grad()
    def lesson(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Answer]:
        """What a student's turn learns from: images x [b, C, H, W] and the teacher's answer to them, both data."""
        assert self.teacher is not None
        source, where = self.turns[turn_index].source, (round_index, turn_index, part)
        if source == "pool":
            return self._replayed(*where)
        if source == "same":
            if part not in self._repeated:
                x = self._generated(*where)
                self._repeated[part] = x, self.teacher.answer(x)
            return self._repeated[part]
        if source == "data":
            x, _ = self.real(*where)
            return x, self.teacher.answer(x)
        x = self._generated(*where)
        if self.pool is None:
            return x, self.teacher.answer(x)
        x = self.pool.keep(*where, x)  # as it is stored: the student learns now from what it will be shown again
        t = self.teacher.answer(x)
        self.pool.answered(*where, t)
        return x, t

    @torch.no_grad()
    def images(self, *keys: int | str) -> Tensor:
        """This process's rows of a batch x [b, C, H, W] of the current generator, chosen by the keys."""
        assert self.generator is not None
        rows = shard(self.config.batch_size, self.runtime.rank, self.runtime.world_size)
        z, _ = drawn(self.config, self._centres, rows, self.config.batch_size, *keys)
        return self.generator.frozen_forward(send(z.to(self.runtime.dtype), self.runtime.device))

    def kept(self, done: int, turn_index: int = 0) -> dict[str, Tensor]:
        """What a checkpoint after `done` rounds and so many turns has to hold so that the same images come again."""
        return self.pool.tensors(done, turn_index) if self.pool else {}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `kept` gave."""
        if self.pool:
            self.pool.load(tensors)

    def real(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Tensor]:
        """The next batch of real images and labels; a resumed run takes the stream up where it stood."""
        if self._batches is None:
            data = tasks.load(self.config.task).dataset(self.config, "train", augment=True)
            parts = self.config.micro_batches
            stream = TrainingBatches(
                data, self.config.batch_size // parts, self.config.seed, self.config.data.workers,
                self.runtime.rank, self.runtime.world_size,
            )  # fmt: skip
            self._batches = stream.batches((round_index * len(self.turns) + turn_index) * parts + part)
        x, labels = next(self._batches)
        return send(x.to(self.runtime.dtype), self.runtime.device), send(labels, self.runtime.device)

    def _generated(self, round_index: int, turn_index: int, part: int) -> Tensor:
        """G(z) of the current generator."""
        assert self.generator is not None
        z, _ = self.latents(round_index, turn_index, part)
        return self.generator.frozen_forward(z)

    def _replayed(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Answer]:
        """Images of the pool with the answers that were stored, or cropped and mirrored and answered anew."""
        assert self.pool and self.teacher
        x, t = self.pool.draw(round_index, turn_index, part)
        if not self.config.replay.augment:
            return x, t
        keys = (self.config.seed, "views", round_index, turn_index)
        draws = send(uniform(self._rows(part), self.config.batch_size, 3, *keys).to(x.dtype), self.runtime.device)
        x = views.crop(x, draws, self.config.input.mirror, self._black.to(x.dtype))
        return x, self.teacher.answer(x)

    def _rows(self, part: int) -> range:
        """This process's rows of a micro-batch, in the global batch."""
        size = self.config.batch_size // self.config.micro_batches
        own = shard(size, self.runtime.rank, self.runtime.world_size)
        return range(part * size + own.start, part * size + own.stop)


def class_centres(config: Config) -> Tensor | None:
    """Where the latents of each class are centred [K, Z], about CENTRE from 0, all run long; None without classes."""
    if not ever(config.weights.target):
        return None
    size = config.generator.latent_size
    return latents(range(config.classes), config.classes, size, config.seed, "centres") * (CENTRE / math.sqrt(size))


def drawn(
    config: Config, centres: Tensor | None, rows: range, total: int, *keys: int | str
) -> tuple[Tensor, Tensor | None]:
    """Rows of z [`total`, Z], and the classes y [n] of the images where `class_centres` gives any: z ~ N(c_y, I)."""
    z = latents(rows, total, config.generator.latent_size, config.seed, *keys)
    if centres is None:
        return z, None
    y = classes(rows, total, config.classes, config.seed, "classes", *keys)
    return z + centres[y], y


def _is_stored(turn: Turn) -> bool:
    """Whether the images of a turn go into the pool, where there is one."""
    return (turn.kind, turn.source) == ("student", "latents") or turn.source in INVERTED
