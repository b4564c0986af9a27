"""Images of a turn: from fresh latents, the same latents again, the pool of earlier images, or real data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from harness import task as tasks
from harness.algorithm import views
from harness.algorithm.latents import classes, latents, part_shard, send, shard, uniform
from harness.algorithm.turns import Answer
from harness.config import Config, ever
from harness.distributed.runtime import Runtime
from harness.methods import INVERTED, Turn
from harness.networks import preprocessing
from harness.training.data import TrainingBatches
from harness.training.players import Player
from harness.training.pool import Pool
from harness.training.teacher import Teacher


class Sources:
    """Images for every turn; each draw is a function of (seed, round, turn, row in the global batch)."""

    def __init__(
        self, config: Config, runtime: Runtime, turns: list[Turn], generator: Player | None, teacher: Teacher | None
    ) -> None:
        self.config, self.runtime, self.turns = config, runtime, turns
        self.generator, self.teacher = generator, teacher
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._repeated: dict[tuple[int, int], tuple[Tensor, Answer]] = {}  # by first turn and micro-batch
        replays = any(turn.source == "pool" for turn in turns)
        self.pool = Pool(config, runtime, _stored(turns)) if replays else None
        self._centres = class_centres(config)
        self._black = send(preprocessing.black(config).to(runtime.dtype), runtime.device)

    def latents(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Tensor | None]:
        """This process's rows of z [b, Z] for a micro-batch, and their target classes [b] or None.

        A turn with source "same" uses the latents of the last turn before it with source "latents".
        """
        if self.turns[turn_index].kind == "generator":
            self._repeated.clear()  # after its update the same latents give other images
        keys = ("latents", round_index, self._latents_turn(turn_index))
        z, y = drawn(self.config, self._centres, self._rows(part), self.config.batch_size, *keys)
        return send(z.to(self.runtime.dtype), self.runtime.device), None if y is None else send(y, self.runtime.device)

    def _latents_turn(self, turn_index: int) -> int:
        """The turn whose latents a turn uses: its own, or those of the last turn before it that draws some."""
        drawing = [index for index in range(turn_index + 1) if self.turns[index].source == "latents"]
        return drawing[-1]

    @torch.no_grad()
    def lesson(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Answer]:
        """Images x [b, C, H, W] of a student's turn and the teacher's outputs for them, both without gradients."""
        assert self.teacher is not None
        source, where = self.turns[turn_index].source, (round_index, turn_index, part)
        if source == "pool":
            return self._replayed(*where)
        if source == "data":
            x, _ = self.real(*where)
            return x, self.teacher.answer(x)
        if source == "latents":
            return self._made(*where)
        first = turn_index  # of the student's turns in a row that have the same images
        while _has_same(self.turns, first - 1):
            first -= 1
        if (first, part) not in self._repeated:
            self._repeated[first, part] = self._made(round_index, first, part)
        return self._repeated[first, part]

    @torch.no_grad()
    def images(self, *keys: int | str) -> Tensor:
        """This process's rows of a batch x [b, C, H, W] of the current generator, drawn with the keys as seed."""
        assert self.generator is not None
        rows = shard(self.config.batch_size, self.runtime.rank, self.runtime.world_size)
        z, _ = drawn(self.config, self._centres, rows, self.config.batch_size, *keys)
        return self.generator.averaged_forward(send(z.to(self.runtime.dtype), self.runtime.device))

    def kept(self, done: int, turn_index: int = 0) -> dict[str, Tensor]:
        """Tensors for a checkpoint after `done` rounds and so many turns, so that a resumed run has the same images."""
        return self.pool.tensors(done, turn_index) if self.pool else {}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads the result of `kept`."""
        if self.pool:
            self.pool.load(tensors)

    def real(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Tensor]:
        """The next batch of real images and labels; a resumed run continues the stream at its turn."""
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

    def judged(self, round_index: int, turn_index: int, part: int, x: Tensor) -> Tensor:
        """The view of generated images x [b, C, H, W] that teacher and student have in the generator's turn."""
        if self.config.inversion.views == "none":
            return x
        draws = self._draws(3, "views", round_index, turn_index, part).to(x.dtype)
        return views.of(self.config.inversion.views, x, draws, self.config.input.mirror, self._black.to(x.dtype))

    def _made(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Answer]:
        """Images of the current generator, which go to the pool if there is one, and the teacher's outputs."""
        assert self.generator and self.teacher
        where = (round_index, turn_index, part)
        x = self.generator.averaged_forward(self.latents(*where)[0])
        if self.pool is None:
            return x, self.teacher.answer(x)
        x = self.pool.keep(*where, x)  # after storage: later turns draw the same images
        t = self.teacher.answer(x)
        self.pool.answered(*where, t)
        return x, t

    def _replayed(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Answer]:
        """Images of the pool with their stored logits; or augmented, with new outputs of the teacher."""
        assert self.pool and self.teacher
        where = (round_index, turn_index, part)
        x, t = self.pool.draw(*where)
        if not self.config.replay.augment:
            return x, t
        x = self._cropped(x, "views", *where)
        if self.config.replay.mixup:
            other = self._cropped(self.pool.draw(*where, use="partner")[0], "views of partners", *where)
            x = views.mixup(x, other, self._draws(1, "mixup", *where)[:, 0].to(x.dtype))
        return x, self.teacher.answer(x)

    def _cropped(self, x: Tensor, use: str, *where: int) -> Tensor:
        draws = self._draws(3, use, *where).to(x.dtype)
        return views.crop(x, draws, self.config.input.mirror, self._black.to(x.dtype))

    def _draws(self, count: int, use: str, round_index: int, turn_index: int, part: int) -> Tensor:
        """Numbers in [0, 1) for this process's rows of a micro-batch, [b, count]."""
        keys = (self.config.seed, use, round_index, turn_index)
        return send(uniform(self._rows(part), self.config.batch_size, count, *keys), self.runtime.device)

    def _rows(self, part: int) -> range:
        """This process's rows of a micro-batch, in the global batch."""
        size = self.config.batch_size // self.config.micro_batches
        return part_shard(size, part, self.runtime.rank, self.runtime.world_size)


def class_centres(config: Config) -> Tensor | None:
    """Fixed centres of the latents of classes [K, Z], about `generator.class_distance` from 0; None without targets."""
    if not ever(config.weights.target):
        return None
    size, distance = config.generator.latent_size, config.generator.class_distance
    return latents(range(config.classes), config.classes, size, config.seed, "centres") * (distance / math.sqrt(size))


def drawn(
    config: Config, centres: Tensor | None, rows: range, total: int, *keys: int | str
) -> tuple[Tensor, Tensor | None]:
    """Rows of z [`total`, Z] and target classes y [n]; z ~ N(c_y, I) with `centres`, else N(0, I) and None."""
    z = latents(rows, total, config.generator.latent_size, config.seed, *keys)
    if centres is None:
        return z, None
    y = classes(rows, total, config.classes, config.seed, "classes", *keys)
    return z + centres[y], y


def _stored(turns: Sequence[Turn]) -> list[int]:
    """The turns whose images a pool stores: those with latents of their own, and the first after a generator's."""
    return [
        index
        for index, turn in enumerate(turns)
        if (turn.kind, turn.source) == ("student", "latents")
        or turn.source in INVERTED
        or (_has_same(turns, index) and turns[index - 1].kind == "generator")
    ]


def _has_same(turns: Sequence[Turn], index: int) -> bool:
    """Whether a turn is one of the student on latents that were drawn before."""
    return index >= 0 and (turns[index].kind, turns[index].source) == ("student", "same")
