"""What the clock decides: when a row, a checkpoint and the end come; never what a run computes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness import resolve
from harness.config import Config
from harness.config.parse import Overlay, merge
from harness.run.metrics import read
from harness.training import distill, intervals

QUIET: Overlay = {
    "teacher": {"checkpoint": "untrained"}, "data": {"name": "none"}, "tracking": {"uri": "none"}, "pictures": False,
    "rounds": 2, "batch_size": 8, "student_steps": 3, "log_every": 1, "checkpoint": {"keep": 1000},
    "student": {"network": "cnn4"}, "generator": {"width": 8, "latent_size": 16},
}  # fmt: skip

INVERTING: Overlay = {"inversion": {"steps": 5, "rounds": 1}, "micro_batches": 2, "rounds": 3}

CASES: dict[str, Overlay] = {
    "ddad": {"replay": {"share": 0.4, "memory": 0.05}},
    "zskt": {"method": "zskt"},
    "averaged": {"student": {"average": 0.5}},
    **{name: merge(INVERTING, {"method": name}) for name in ("deepinversion", "fast", "nayer")},
    "cmi": merge(INVERTING, {"method": "cmi", "inversion": {"bank": 20}}),
    "nayer, anew": merge(INVERTING, {"method": "nayer", "generator": {"restart": 1}}),
    "generator": {"generator_steps": 2, "generator": {"restart": 1}},
    "shared latents": {"generator_steps": 2, "shared_latents": True, "replay": {"share": 0.4, "memory": 0.05}},
}
"""With a pool, with latents that several turns share, with an average, and with turns of many steps."""


class Clock:
    """Advances by `step` seconds each time it is read."""

    def __init__(self, step: float) -> None:
        self.step, self.time = step, 0.0

    def __call__(self) -> float:
        self.time += self.step
        return self.time


def run_of(over: Overlay) -> Config:
    return resolve.resolve("digits", None, merge(QUIET, over))


def play(config: Config, folder: Path, stop: Callable[[], str | None] = lambda: None) -> distill.Report:
    """A run until it stops or has done its last round; what a finished run costs beyond that is left out."""
    with closing(distill.rounds(config, folder, stop)) as reports:
        for report in reports:
            if report.stopped or report.round == config.rounds:
                return report
    raise AssertionError("a run reports its last round")


def end(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """All of the last checkpoint, and what the rows say."""
    return load_file(max((folder / "checkpoints").iterdir())), figures(folder)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def after(count: int) -> Callable[[], str | None]:
    """Asks for a stop from the `count`-th time on that it is asked."""
    calls = iter(range(1, 10**9))
    return lambda: "SIGTERM" if next(calls) >= count else None


def states(folder: Path) -> list[dict[str, Any]]:
    """The state of every checkpoint."""
    found = []
    for path in sorted((folder / "checkpoints").iterdir()):
        with safetensors.safe_open(path, framework="pt") as file:
            found.append(json.loads(file.metadata()["state"]))
    return found


def figures(folder: Path) -> list[dict[str, Any]]:
    """What the rows say, but for time and load."""
    return [{k: v for k, v in row.items() if "second" not in k and "system" not in k}
            for row in read(folder / "metrics.jsonl")]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_stops_within_rounds_leave_no_trace(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped again and again, in turns and, where they have many steps, inside of them."""
    config = run_of(CASES[case])
    play(config, tmp_path / "whole")
    monkeypatch.setattr(intervals, "now", Clock(intervals.GRACE_SECONDS))  # a round gets no grace
    inverting, positions = "inversion" in CASES[case], []
    for count in range(1, 100):
        last = play(config, tmp_path / "run", after(1 + 5 * count if inverting else 1))
        if not last.stopped:
            break
        state = states(tmp_path / "run")[-1]
        positions.append((state["round"], state["turn"]))
        assert (last.stopped, last.round) == ("SIGTERM", state["round"])
    assert any(turn for _, turn in positions), "it stopped within a round"
    assert positions == sorted(positions) and len(positions) > 2
    (weights, rows), (expected, expected_rows) = end(tmp_path / "run"), end(tmp_path / "whole")
    assert same(weights, expected)
    assert rows == expected_rows


@pytest.mark.parametrize("method", ["deepinversion", "cmi", "fast", "nayer"])
def test_a_stop_is_looked_at_in_every_step_of_a_turn(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that is given up leaves everything as it was, its first part too."""
    monkeypatch.setattr(intervals, "now", Clock(1.0))
    config = run_of(merge(CASES[method], {"inversion": {"steps": 2000}}))
    last = play(config, tmp_path / "run", after(20))
    assert last.stopped == "SIGTERM"
    (state,) = states(tmp_path / "run")
    assert (state["round"], state["turn"], state["updates"]) == (0, 0, {"student": 0, "generator": 0})
    with safetensors.safe_open(tmp_path / "run/checkpoints/round-00000000.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if "optimizer" in key]  # noqa: SIM118 - not a dictionary


def test_a_round_that_ends_soon_is_ended(tmp_path: Path) -> None:
    last = play(run_of({}), tmp_path / "run", after(1))
    assert (last.round, last.stopped) == (1, "SIGTERM")
    assert [(state["round"], state["turn"]) for state in states(tmp_path / "run")] == [(1, 0)]


def test_every_call_gets_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_minutes` ends no turn before one is done, however long it takes."""
    monkeypatch.setattr(intervals, "now", Clock(100.0))
    config = run_of(merge(CASES["cmi"], {"max_minutes": 1.0}))
    found = []
    for _ in range(3):
        last = play(config, tmp_path / "run")
        assert last.stopped == "max_minutes=1 is over"
        found.append(states(tmp_path / "run")[-1]["turn"])
    assert found == [1, 2, 3]


@pytest.mark.parametrize("case", ["ddad", "fast"])
def test_the_longest_time_without_a_checkpoint(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is `checkpoint.minutes`, the seconds of grace, and one turn, in rounds of any length."""
    clock = Clock(0.25)
    monkeypatch.setattr(intervals, "now", clock)
    over = {"checkpoint": {"minutes": 0.2, "every": 1000}, "student_steps": 50}
    if case == "fast":
        over = merge(over, {"inversion": {"steps": 10}})
    play(run_of(merge(CASES[case], over)), tmp_path / "run")
    times = [0.0, *(state["seconds"] for state in states(tmp_path / "run"))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    a_turn = 10 if case == "fast" else 2  # 20 steps at no more than two readings of the clock each
    assert len(gaps) > 3
    assert max(gaps) <= 12 + intervals.GRACE_SECONDS + a_turn
    assert min(gaps[:-1]) >= 12


def test_checkpoints_and_rows_at_round_ends_where_rounds_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "now", Clock(0.01))
    over = {"rounds": 12, "checkpoint": {"minutes": 0.005, "every": 1000}, "log_every": 1000, "log_seconds": 0.3}
    play(run_of(over), tmp_path / "timed")
    found = states(tmp_path / "timed")
    assert len(found) > 3 and not any(state["turn"] for state in found)
    rows = figures(tmp_path / "timed")
    assert 3 < len(rows) < 12
    monkeypatch.undo()
    play(run_of({"rounds": 12}), tmp_path / "all")
    expected = figures(tmp_path / "all")
    assert [row for row in expected if row in rows] == rows, "a row says the same whenever it is written"


def test_off_means_by_rounds_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "now", Clock(1000.0))
    over = {"rounds": 4, "log_every": 2, "log_seconds": None, "checkpoint": {"minutes": None, "every": 2}}
    play(run_of(over), tmp_path / "run")
    assert [state["round"] for state in states(tmp_path / "run")] == [2, 4]
    assert [row["round"] for row in figures(tmp_path / "run")] == [2, 4]


def test_a_row_has_gradient_norms_and_learning_rates(tmp_path: Path) -> None:
    config = run_of({"rounds": 4, "checkpoint": {"every": 4}})
    play(config, tmp_path / "run")
    rows = read(tmp_path / "run" / "metrics.jsonl")[:4]
    for name in ("student", "generator"):
        assert all(row[f"{name}/gradient_norm"] > 0 for row in rows)
    updates = config.student_steps * config.rounds
    expected = [config.student.lr * (1 + math.cos(math.pi * (3 * n - 1) / updates)) / 2
                for n in (1, 2, 3, 4)]  # fmt: skip
    assert [row["student/lr"] for row in rows] == pytest.approx(expected)
