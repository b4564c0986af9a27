"""One process with batch B and N processes with shares of it give the same losses and updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from harness.config.parse import Overlay
from harness.training import checkpoint
from tests.distributed import cases, ranks

pytestmark = pytest.mark.distributed

WORLDS = {2: tuple(cases.CASES), 4: ("sgd", "adam", "bare, sgd")}
"""The cases that each number of processes plays."""

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def alone() -> dict[str, State]:
    """The end of every case on one process."""
    found = {}
    for case, over in cases.CASES.items():
        machine = cases.build(over)
        cases.play(machine)
        found[case] = cases.state(machine)
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ends of the cases on several processes, W.CASE: a start of W processes for several cases."""
    out = tmp_path_factory.mktemp("together")
    for world_size, names in WORLDS.items():
        (out / str(world_size)).mkdir()
        for first in range(0, len(names), 4):
            some = {name: cases.CASES[name] for name in names[first : first + 4]}
            ranks.run(world_size, cases.play_cases, out / str(world_size), some)
    return out


@pytest.mark.parametrize(("world_size", "case"), [(size, case) for size, names in WORLDS.items() for case in names])
def test_n_processes_are_as_one(alone: dict[str, State], together: Path, world_size: int, case: str) -> None:
    out = together / str(world_size)
    assert cases.distance(load_file(out / f"{case}.safetensors"), alone[case]) < 1e-8
    assert len({(out / f"{case}.{rank}.sha256").read_text() for rank in range(world_size)}) == 1, "the same bits"


def test_the_rounds_of_the_cases_lead_somewhere(alone: dict[str, State]) -> None:
    """Equal ends prove something only where the run has moved, and where another run ends elsewhere."""
    start = cases.state(cases.build({}))
    weights = {key: value for key, value in alone["sgd"].items() if key in start}
    assert cases.distance(weights, start) > 1e-2
    assert cases.distance(weights, {key: alone["clipped"][key] for key in start}) > 1e-3


def test_local_statistics_are_another_run(alone: dict[str, State], tmp_path: Path) -> None:
    ranks.run(2, cases.play_cases, tmp_path, {"local": {"sync_batch_norm": False, "rounds": 5}})
    machine = cases.build({"rounds": 5})
    cases.play(machine)
    assert cases.distance(load_file(tmp_path / "local.safetensors"), cases.state(machine)) > 1e-3


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_test_image_counts_once(world_size: int, tmp_path: Path) -> None:
    cases.evaluate_digits(tmp_path)
    alone = json.loads((tmp_path / "0.json").read_text())
    ranks.run(world_size, cases.evaluate_digits, tmp_path)
    for rank in range(world_size):
        agreement, teacher, student, confusion = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (agreement, confusion) == (alone[0], alone[3])
        for found, expected in ((teacher, alone[1]), (student, alone[2])):
            assert found.pop("calibration_error") == pytest.approx(expected["calibration_error"], abs=1e-6)
            assert found == {key: value for key, value in expected.items() if key != "calibration_error"}


def test_fewer_processes_go_on_along_the_same_path(alone: dict[str, State], tmp_path: Path) -> None:
    """A host is lost for good: 4 processes, then 1, then 2, with the same global batch."""
    over: Overlay = {"rounds": 30}
    ranks.run(4, cases.resumed, tmp_path, 0, over)
    cases.resumed(tmp_path, 10, over)
    ranks.run(2, cases.resumed, tmp_path, 20, over)
    machine, last = cases.build(over), cases.build(over)
    cases.play(machine)
    checkpoint.restore(tmp_path, last.players)
    assert cases.distance(cases.state(last), cases.state(machine)) < 1e-8
