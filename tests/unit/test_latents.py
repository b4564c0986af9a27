"""Draws depend on their keys and their row alone."""

from __future__ import annotations

import pytest
import torch

from harness.algorithm.latents import classes, latents, mix, shard


def test_every_key_counts() -> None:
    keys = [(0, "latents", 1, 2), (1, "latents", 1, 2), (0, "dropout", 1, 2), (0, "latents", 12), (0, "latents", 2, 1)]
    assert len({mix(*key) for key in keys}) == len(keys)
    assert all(0 <= mix(*key) < 2**63 for key in keys)


def test_ranks_slice_the_batch_one_process_draws() -> None:
    whole = latents(range(10), 10, 4, 0, "latents", 3, 1)
    for world_size in (1, 2, 3, 4):
        parts = [latents(shard(10, rank, world_size), 10, 4, 0, "latents", 3, 1) for rank in range(world_size)]
        assert torch.equal(torch.cat(parts), whole)


def test_classes_are_even_in_the_batch_and_sliced_by_ranks() -> None:
    whole = classes(range(25), 25, 10, 0, "classes", 3, 1)
    assert sorted(whole.bincount().tolist()) == [2] * 5 + [3] * 5
    parts = [classes(shard(25, rank, 3), 25, 10, 0, "classes", 3, 1) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, classes(range(25), 25, 10, 0, "classes", 3, 2))


@pytest.mark.parametrize(("total", "count"), [(32, 100), (32, 10), (128, 100)])
def test_classes_are_even_over_batches_that_do_not_hold_all_of_them(total: int, count: int) -> None:
    batches = [classes(range(total), total, count, 0, "classes", index) for index in range(1000)]
    for y in batches[:3]:
        assert len(y.unique()) == min(total, count) and y.bincount().max() == -(-total // count)
    found = torch.cat(batches).bincount(minlength=count) / 1000
    assert ((found - total / count).abs() < 0.08).all()  # 5 standard deviations: one image is drawn with p of about .3


def test_shards_differ_by_one_row_at_most() -> None:
    sizes = [len(shard(10, rank, 4)) for rank in range(4)]
    assert sum(sizes) == 10 and max(sizes) - min(sizes) == 1


def test_latents_are_standard_normal() -> None:
    z = latents(range(4096), 4096, 16, 0, "latents", 0, 0)
    assert abs(z.mean().item()) < 0.02 and abs(z.std().item() - 1) < 0.02
