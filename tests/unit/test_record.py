"""What a run records beside its result: alarms once, no pictures where they are off, means over a round's turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness import resolve
from harness.algorithm.turns import Terms
from harness.config.parse import Overlay, merge
from harness.training.record import COLLAPSED_ROWS, Means, Record
from harness.training.record import values as values_of
from tests.unit.test_turns import SMALL, build


def record(path: Path, said: list[str], over: Overlay | None = None) -> Record:
    config = resolve.resolve("classification", None, merge(SMALL, merge({"tracking": {"uri": "none"}}, over or {})))
    path.mkdir(exist_ok=True)
    return Record(path, config, 0, [str(index) for index in range(4)], said.append)


@pytest.mark.parametrize(
    "collapsed",
    [{"generator/entropy": 0.05, "generator/top_class": 0.5}, {"generator/entropy": 0.5, "generator/top_class": 0.95}],
)
def test_a_collapsed_generator_is_said_once_and_not_for_a_single_batch(
    tmp_path: Path, collapsed: dict[str, float]
) -> None:
    said: list[str] = []
    fine = {"generator/entropy": 0.9, "generator/top_class": 0.3}
    rows = record(tmp_path, said)
    for index, values in enumerate([collapsed] * (COLLAPSED_ROWS - 1) + [fine] + [collapsed] * (COLLAPSED_ROWS - 1)):
        rows.row(index, 0.0, values)
    assert said == []
    for index in range(20, 40):
        rows.row(2 * index, 0.0, collapsed)
        rows.row(2 * index + 1, 0.0, {"evaluation/agreement": 0.5})  # says nothing of the generator
    rows.close("FINISHED")
    (line,) = said
    assert "has collapsed by round 40" in line


def test_samples_are_drawn_or_not(tmp_path: Path) -> None:
    built = build()
    for pictures in (True, False):
        rows = record(tmp_path / str(pictures), [], {"pictures": pictures})
        rows.samples(built.networks(), 0)
        rows.close("FINISHED")
        assert (tmp_path / str(pictures) / "samples" / "round-00000000.png").exists() == pictures


def test_drawing_samples_changes_nothing(tmp_path: Path) -> None:
    built, other = build(), build()
    rows = record(tmp_path, [])
    rows.samples(built.networks(), 0)
    rows.close("FINISHED")
    for turn in range(3):
        assert torch.equal(built.play(0, turn).total, other.play(0, turn).total)


def test_a_report_has_means_over_the_turns_of_a_round() -> None:
    means = Means()
    for value in (1.0, 3.0):
        means.add("student", values_of(Terms(torch.tensor(value), {"discrepancy": torch.tensor(2 * value)})))
    assert means.read() == {"student/discrepancy": 4.0, "student/total": 2.0}
