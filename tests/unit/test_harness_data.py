"""The order and the randomness of batches: functions of (seed, step) alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.config import build
from harness.errors import UserError
from harness.training.data import TrainingBatches, data_root, evaluation_loader


@dataclass
class Noisy:
    """Item i: an image [1, 2, 2] that holds i, plus noise in [0, 0.5) from torch's generator; label i."""

    size: int
    classes: list[str] = field(default_factory=lambda: ["a", "b"])
    broken: int = -1

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise UserError(f"item {index}: not a readable image")
        return index + torch.rand(1, 2, 2) / 2, index


def first(batches: TrainingBatches, num: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.islice(batches.batches(start), num))


def same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(x, other) and torch.equal(y, label) for (x, y), (other, label) in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_depends_on_seed_and_step_alone(workers: int) -> None:
    whole = first(TrainingBatches(Noisy(10), 4, seed=3), 7)
    assert same(first(TrainingBatches(Noisy(10), 4, seed=3, workers=workers), 4, start=3), whole[3:])
    assert not same(first(TrainingBatches(Noisy(10), 4, seed=4, workers=workers), 7), whole)


def test_every_epoch_is_a_new_permutation_without_its_incomplete_batch() -> None:
    batches = TrainingBatches(Noisy(10), 4, seed=0)
    assert batches.per_epoch == 2
    labels = [y for _, y in first(batches, 6)]
    epochs = [torch.cat(labels[start : start + 2]).tolist() for start in (0, 2, 4)]
    for epoch in epochs:
        assert len(set(epoch)) == 8 and set(epoch) < set(range(10))
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_draw_of_an_image_is_augmented_anew() -> None:
    noise = [(x - y[:, None, None, None]).flatten() for x, y in first(TrainingBatches(Noisy(4), 4, seed=0), 3)]
    assert torch.cat(noise).unique().numel() == 3 * 4 * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_slice_the_global_batch(workers: int) -> None:
    whole = first(TrainingBatches(Noisy(10), 5, seed=1), 3)
    ranks = [first(TrainingBatches(Noisy(10), 5, 1, workers, rank, world_size=3), 3) for rank in range(3)]
    assert [len(rank[0][1]) for rank in ranks] == [1, 2, 2]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
    assert same(joined, whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(workers: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first(TrainingBatches(Noisy(8), 4, seed=0, workers=workers), 2)
    for _ in evaluation_loader(Silent(4), 2, workers=workers):
        pass
    assert torch.equal(torch.rand(3), expected)


class Silent(Noisy):
    """Draws nothing."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(1, 2, 2), index


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"a batch of 11 training images cannot be drawn from 10: .* at most 10$"):
        TrainingBatches(Noisy(10), 11, seed=0)
    assert len(first(TrainingBatches(Noisy(10), 10, seed=0), 2)) == 2


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_reads_each_image_once_over_the_ranks(world_size: int) -> None:
    loaders = [evaluation_loader(Silent(10), 4, rank, world_size) for rank in range(world_size)]
    for _ in range(2):  # a loader may be read again
        labels = [y.tolist() for loader in loaders for _, y in loader]
        assert sorted(itertools.chain(*labels)) == list(range(10))
        assert max(map(len, labels)) <= 4
    assert next(y.tolist() for _, y in loaders[0])[:2] == [0, world_size]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_stays_one_line(workers: int) -> None:
    dataset = Noisy(8, broken=3)
    with pytest.raises(UserError) as evaluated:
        list(evaluation_loader(dataset, 4, workers=workers))
    with pytest.raises(UserError) as trained:
        first(TrainingBatches(dataset, 4, seed=0, workers=workers), 2)
    assert str(evaluated.value) == str(trained.value) == "item 3: not a readable image"


def test_the_root_is_the_config_then_the_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDAD_DATA", "/sets")
    assert data_root(build({"classes": 2, "data": {"root": "/mine"}})) == Path("/mine")
    assert data_root(build({"classes": 2, "data": {"root": "~/mine"}})) == Path.home() / "mine"
    assert data_root(build({"classes": 2})) == Path("/sets")
    monkeypatch.delenv("DDAD_DATA")
    assert data_root(build({"classes": 2})) == Path("data")
