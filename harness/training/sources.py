"""Where a turn's images come from: fresh latents, the same latents again, the pool of earlier ones, or real data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor

from harness import task as tasks
from harness.algorithm import views
from harness.algorithm.latents import classes, latents, shard, uniform
from harness.algorithm.terms import Answer
from harness.algorithm.turns import Teacher
from harness.config import Config, ever
from harness.distributed.runtime import Runtime
from harness.methods import INVERTED, Turn
from harness.networks import preprocessing
from harness.training.data import TrainingBatches
from harness.training.players import Player
from harness.training.pool import Pool

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
        self._taught: dict[int, tuple[Tensor, Answer]] = {}
        fresh = [place for place, turn in enumerate(turns) if _is_stored(turn)]
        replays = any(turn.source == "pool" for turn in turns)
        self.pool = Pool(config, runtime, fresh) if replays else None
        self._black = runtime.send(preprocessing.black(config).to(runtime.dtype))

    def latents(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Tensor | None]:
        """This process's rows of z [b, Z] for a micro-batch, and their classes [b] where they have any.

        Those of the turn that it shares them with, where it does.
        """
        if self.turns[turn_index].kind == "generator":
            self._taught.clear()  # what was generated before it learns is not what the same latents give after
        while self.turns[turn_index].source != "latents":
            turn_index -= 1
        keys = ("latents", round_index, turn_index)
        z, y = drawn(self.config, self._rows(part), self.config.batch_size, *keys)
        return self.runtime.send(z.to(self.runtime.dtype)), None if y is None else self.runtime.send(y)

    def lesson(self, round_index: int, turn_index: int, part: int) -> tuple[Callable[[], Tensor], Teacher]:
        """For a student's turn: what gives its images, and who says what they are."""
        assert self.teacher is not None
        source, place = self.turns[turn_index].source, (round_index, turn_index, part)
        if source == "data":
            return lambda: self.real(*place)[0], self.teacher
        if source == "same":
            return partial(self._again, *place), lambda x: self._taught[part][1]
        if source == "pool":
            assert self.pool
            x, t = self.pool.draw(*place)
            if self.config.replay.augment:
                return lambda: self._cropped(x, *place), self.teacher
            return lambda: x, lambda x: t
        if self.pool:
            return partial(self._keep, self.pool, *place), partial(self._ask, self.pool, *place)
        return partial(self._invent, *place), self.teacher

    def kept(self, done: int) -> dict[str, Tensor]:
        """What a checkpoint after `done` rounds has to hold so that the same images come again."""
        return self.pool.tensors(done) if self.pool else {}

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
        return self.runtime.send(x.to(self.runtime.dtype)), self.runtime.send(labels)

    def _rows(self, part: int) -> range:
        """This process's rows of a micro-batch, in the global batch."""
        size = self.config.batch_size // self.config.micro_batches
        own = shard(size, self.runtime.rank, self.runtime.world_size)
        return range(part * size + own.start, part * size + own.stop)

    def _cropped(self, x: Tensor, round_index: int, turn_index: int, part: int) -> Tensor:
        """Images [b, C, H, W] under a crop and mirroring that each row's place chooses."""
        keys = (self.config.seed, "views", round_index, turn_index)
        draws = self.runtime.send(uniform(self._rows(part), self.config.batch_size, 3, *keys).to(x.dtype))
        return views.crop(x, draws, self.config.input.mirror, self._black.to(x.dtype))

    def _invent(self, round_index: int, turn_index: int, part: int) -> Tensor:
        assert self.generator is not None
        z, _ = self.latents(round_index, turn_index, part)
        return self.generator.guest(z)

    def _keep(self, pool: Pool, round_index: int, turn_index: int, part: int) -> Tensor:
        """Fresh images as the pool stores them: what the student learns now is what it will be shown again."""
        return pool.keep(round_index, turn_index, part, self._invent(round_index, turn_index, part))

    def _ask(self, pool: Pool, round_index: int, turn_index: int, part: int, x: Tensor) -> Answer:
        assert self.teacher is not None
        t = self.teacher(x)
        pool.answered(round_index, turn_index, part, t)
        return t

    def _again(self, round_index: int, turn_index: int, part: int) -> Tensor:
        """Images of the same latents; until the generator learns they are the same, and so is what they are."""
        if part not in self._taught:
            assert self.teacher is not None
            x = self._invent(round_index, turn_index, part)
            self._taught[part] = (x, self.teacher(x))
        return self._taught[part][0]


def drawn(config: Config, rows: range, total: int, *keys: int | str) -> tuple[Tensor, Tensor | None]:
    """What the generator takes, rows of z [`total`, Z], and the classes y [n] of its images where they have any.

    Where `weights.target` asks for a class, z ~ N(c_y, I); a class has its centre c, about CENTRE from 0, all run long.
    """
    seed, size = config.seed, config.generator.latent_size
    z = latents(rows, total, size, seed, *keys)
    if not ever(config.weights.target):
        return z, None
    y = classes(rows, total, config.classes, seed, "classes", *keys)
    centres = latents(range(config.classes), config.classes, size, seed, "centres") * (CENTRE / math.sqrt(size))
    return z + centres[y], y


def _is_stored(turn: Turn) -> bool:
    """Whether the images of a turn go into the pool, where there is one."""
    return (turn.kind, turn.source) == ("student", "latents") or turn.source in INVERTED
