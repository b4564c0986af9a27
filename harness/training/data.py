"""Batches of real data: each image once for evaluation; for training, an endless stream to enter at any step."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import data as torch_data

from harness.algorithm.latents import mix, shard
from harness.config import Config
from harness.errors import UserError
from harness.task import Dataset

Item = TypeVar("Item", covariant=True)


def data_root(config: Config) -> Path:
    """Where data sets are looked for: `data.root`, else $DDAD_DATA, else ./data."""
    return Path(config.data.root or os.environ.get("DDAD_DATA") or "./data").expanduser()


def evaluation_loader(
    dataset: Dataset, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0
) -> torch_data.DataLoader[Any]:
    """(images [B, C, H, W], labels [B, ...]): each image once over all ranks, rank r of W reading r, r + W, ...

    A batch holds images of one size; where sizes differ, there are more and smaller batches.
    """
    share = range(rank, len(dataset), world_size)
    images = cast("torch_data.Dataset[Any]", dataset)
    return _GroupLoader(
        images, batch_size=batch_size, sampler=share, num_workers=workers, generator=torch.Generator(),
        collate_fn=_by_shape,
    )  # fmt: skip


NUM_CHECKED = 8
"""Images that are read where a data set is opened."""


class Items(Protocol[Item]):
    """What is read by index."""

    def __getitem__(self, index: int, /) -> Item: ...


def first_look(items: Items[Item], length: int) -> list[Item]:
    """A few of so many items, at even distances; UserError for one that cannot be used.

    What is wrong with all of a user's images or labels is said here, before anything is trained or scored.
    """
    return [items[index] for index in _sample(length, NUM_CHECKED)]


def spread(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` images at even distances over the set, as a batch; where sizes differ, those of the first's."""
    images, labels = _by_shape([dataset[index] for index in _sample(len(dataset), count)])[0]
    return images, labels


def _sample(length: int, count: int) -> list[int]:
    """Up to `count` indices at even distances below `length`."""
    count = min(count, length)
    return [index * length // count for index in range(count)]


@dataclass(frozen=True)
class TrainingBatches:
    """An endless stream of shuffled, augmented batches in which batch `step` is a function of (seed, step) alone.

    Neither the number of ranks nor that of worker processes changes it, so that nothing about the stream has to be
    saved. Every epoch is a new permutation; images that do not fill a last batch sit that epoch out.
    Raises UserError if the data set is smaller than a batch.
    """

    dataset: Dataset
    batch_size: int
    """Images in a global batch B."""
    seed: int
    workers: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if len(self.dataset) < self.batch_size:
            raise UserError(
                f"a batch of {self.batch_size} training images cannot be drawn from {len(self.dataset)}: "
                f"set the batch size to at most {len(self.dataset)}"
            )

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self.dataset) // self.batch_size

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's rows of batch `start`, `start + 1`, ...: (images [b, C, H, W], labels [b, ...])."""
        images, draws = _Seeded(self.dataset), self._draws(start)
        yield from _Loader(images, batch_sampler=draws, num_workers=self.workers, generator=torch.Generator())

    def _draws(self, start: int) -> Iterator[list[tuple[int, int]]]:
        """For each step: (index into the data set, seed of the augmentation) of every row of this rank."""
        rows = shard(self.batch_size, self.rank, self.world_size)
        order, order_epoch = [], -1
        for step in itertools.count(start):
            epoch, batch = divmod(step, self.per_epoch)
            if epoch != order_epoch:
                source = torch.Generator().manual_seed(mix(self.seed, "order", epoch))
                order, order_epoch = torch.randperm(len(self.dataset), generator=source).tolist(), epoch
            first = batch * self.batch_size
            yield [(order[first + row], mix(self.seed, "augment", step, row)) for row in rows]


@dataclass(frozen=True)
class _Seeded(torch_data.Dataset[tuple[Tensor, Any]]):
    """A data set read with a seed for each item: the same in any process, and without a trace in this one."""

    dataset: Dataset

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Any]:
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            # Transforms draw from the CPU's generator; torch.manual_seed would also reset the accelerator's.
            torch.default_generator.manual_seed(seed)
            return self.dataset[index]


class _Loader(torch_data.DataLoader[Any]):
    """A DataLoader through which a UserError stays the one line it was, also out of a worker process.

    It is given a generator of its own: a DataLoader without one draws from the global generator at each pass.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # an iterator is all that is needed of it
        try:
            yield from super().__iter__()
        except UserError as error:
            last = str(error).splitlines()[-1]  # a worker's error arrives as its whole traceback
            raise UserError(last.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")) from None


class _GroupLoader(_Loader):
    """A loader whose batches come in groups, one after the other."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # as above
        for groups in super().__iter__():
            yield from groups


def _by_shape(items: list[tuple[Tensor, Any]]) -> list[Any]:
    """The items as batches, one for each shape of image and label."""
    groups: dict[tuple[Any, ...], list[tuple[Tensor, Any]]] = {}
    for image, label in items:
        groups.setdefault((image.shape, getattr(label, "shape", None)), []).append((image, label))
    return [torch_data.default_collate(group) for group in groups.values()]
