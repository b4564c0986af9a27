"""Pictures are files that say what is in the run; how they look is for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import task
from harness.errors import UserError
from harness.run import pictures


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "round": 10 * index,
            "seconds": float(index),
            "student/discrepancy": 1 / index,
            "student/total": 1 / index,
            "generator/adversarial": 1 / index,
            "generator/batch_norm": 100 / index**2,
            "generator/total": 100 / index**2 - 1 / index,
            "generator/entropy": 0.9,
            "generator/top_class": 0.2,
            "rounds_per_second": 7.0,
        }
        for index in range(1, count + 1)
    ]


def grid(path: Path, count: int, caption: str, student: bool = True) -> Image.Image:
    x, logits = torch.zeros(count, 3, 8, 8), torch.eye(10)[torch.arange(count) % 10]
    names = [str(index) for index in range(10)]
    pictures.save_grid(task.load("classification"), path, x, logits, -logits if student else None, names, caption)
    with Image.open(path) as page:
        page.load()
        return page


def test_grid_holds_the_task_picture_under_its_caption(tmp_path: Path) -> None:
    page = grid(tmp_path / "samples" / "round.png", 36, "digits, round 0 of 1")
    logits = torch.eye(10)[torch.arange(36) % 10]
    names = [str(index) for index in range(10)]
    plain = task.load("classification").picture(torch.zeros(36, 3, 8, 8), logits, -logits, names)
    height = page.height - plain.height
    assert page.format == "PNG" and page.width == plain.width and 12 <= height <= 40
    assert np.array_equal(np.asarray(page)[height:], np.asarray(plain))
    assert (np.asarray(page)[:height] < 128).any(), "the caption is written"
    assert [entry.name for entry in (tmp_path / "samples").iterdir()] == ["round.png"]


def test_long_caption_over_a_small_picture_is_broken_not_cut(tmp_path: Path) -> None:
    short = grid(tmp_path / "short.png", 1, "one line", student=False)
    long = grid(tmp_path / "long.png", 1, "many words that cannot stand in one line " * 5, student=False)
    assert short.width == long.width >= 300
    assert long.height > short.height + 3 * pictures.CAPTION_SIZE
    assert (np.asarray(long.convert("L"))[:, -pictures.MARGIN :] == 255).all(), "no word reaches the edge"


def test_grid_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        grid(tmp_path / "file" / "round.png", 1, "")


def test_panels_show_each_term_once_and_scores_where_there_are_any() -> None:
    metrics = rows(4)
    metrics[1]["evaluation/agreement"] = 0.5
    metrics.append({"round": 40, "seconds": 5.0, "final/agreement": 0.75, "generator/batch_norm": None})
    panels = {heading: lines for heading, _, lines in pictures._panels(pictures._series(metrics))}
    assert list(panels) == [
        "student: discrepancy",  # its total is the same line
        "generator: adversarial",
        "generator: batch norm",
        "generator: total",
        "what the teacher sees in the images",
        "evaluation",
    ]
    assert panels["generator: batch norm"] == {"": ([10, 20, 30, 40], [100, 25, pytest.approx(100 / 9), 6.25])}
    assert panels["evaluation"] == {"agreement": ([20, 40], [50, 75])}
    entropy, largest = panels["what the teacher sees in the images"].values()
    assert entropy == ([10, 20, 30, 40], [90.0] * 4)
    assert largest == ([10, 20, 30, 40], [20.0] * 4)


def test_running_mean_by_hand() -> None:
    assert pictures._running_mean([1, 2, 6, 7], 1) == [1.5, 3, 5, 6.5]


@pytest.mark.parametrize("count", [0, 1, 3, pictures.SMOOTHED_FROM + 10])
def test_curves_are_drawn_from_any_number_of_rows(tmp_path: Path, count: int) -> None:
    path = tmp_path / "curves.png"
    assert pictures.curves(rows(count), path, "digits, ddad, seed 0") is True
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    blue = (np.abs(pixels.astype(int) - [0x00, 0x72, 0xB2]).sum(2) < 30).sum()
    assert (blue > 0) == (count > 0), "lines are drawn"
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]


def test_curves_are_left_out_where_matplotlib_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # what the import meets is then ModuleNotFoundError
    assert pictures.curves(rows(3), tmp_path / "curves.png", "") is False
    assert list(tmp_path.iterdir()) == []
