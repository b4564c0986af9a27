"""`--dry-run`: its estimates beside rounds that are played and files that are written."""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from harness import methods, resolve
from harness.commands import estimate
from harness.config import Config
from harness.config.parse import merge
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.training import distill
from harness.training.machine import Machine

BASE = {
    "batch_size": 128, "rounds": 4, "teacher": {"checkpoint": "untrained"}, "student": {"network": "cnn8"},
    "tracking": {"uri": "none"}, "pictures": False,
}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "micro-batches": {"batch_size": 64, "micro_batches": 8, "student_steps": 1},
    "turns that share images": {"method": "zskt", "student_steps": 12, "weights": {"batch_norm": 1.0}},
    "generator after the student": {"method": "dafl"},
    "replay": {"variant": "swift"},
    "image steps": {
        "method": "cmi", "batch_size": 32, "student_steps": 4, "inversion": {"steps": 9, "rounds": 1, "bank": 128}
    },
    "image steps in micro-batches": {
        "method": "deepinversion", "batch_size": 32, "micro_batches": 4, "student_steps": 2,
        "inversion": {"steps": 8, "rounds": 1},
    },
    "a pruned student": {
        "variant": "warm", "batch_size": 32, "teacher": {"network": "wrn10_1"},
        "student": {"network": "pruned", "arguments": {"channels": 0.5}}, "generator": {"warmup": 2},
    },
    "real images": {"method": "kd", "data": {"name": "digits"}, "micro_batches": 2},
    "labels": {"method": "supervised", "data": {"name": "digits"}, "micro_batches": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time of this process's one thread: what other processes do meanwhile does not count."""
    monkeypatch.setattr(estimate, "now", time.process_time)


def config_of(over: dict[str, Any]) -> Config:
    return resolve.resolve("digits", None, merge(BASE, over))


def machine_of(config: Config) -> Machine:
    method, _ = methods.find(config.method, config.variant)
    teacher = roles.teacher(config) if method.has_teacher else None
    return Machine(config, Runtime(config), method.turns(config), teacher)


def played(config: Config) -> float:
    """Seconds of a round after the first."""
    built, found = machine_of(config), []
    for index in range(config.rounds):
        began = time.process_time()
        for turn in range(len(built.turns)):
            for part in range(config.micro_batches):
                built.play(index, turn, part)
        found.append(time.process_time() - began)
    return statistics.median(found[1:])


@pytest.mark.parametrize("name", CASES)
def test_an_estimated_round_takes_as_long_as_a_played_one(name: str) -> None:
    config = config_of(CASES[name])
    lines: list[str] = []
    found = estimate.measure(estimate.build(config, lines.append), config)
    assert lines == []
    assert 0.5 < found.round_seconds / played(config) < 2


def test_rounds_that_compute_other_terms_are_told_apart() -> None:
    config = config_of({"rounds": 10, "adversarial_after": 0.2, "weights": {"tv": [[0, 0.0], [5, 1.0]]}})
    assert estimate._phases(config) == [(2, 1), (3, 3), (5, 7)]
    assert estimate._phases(config_of({"rounds": 10, "weights": {"tv": [[0, 1.0], [4, 2.0]]}})) == [(10, 7)]
    config = config_of({"rounds": 10, "student": {"features": 1.0, "features_until": 0.35}})
    assert estimate._phases(config) == [(4, 2), (6, 7)]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    "over",
    [
        {"student": {"network": "cnn32", "average": 0.5}, "generator": {"width": 4}},
        {"replay": {"share": 0.5, "memory": 4.0}},
    ],
)
def test_estimated_disk_is_what_a_run_writes(over: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(
        merge({"batch_size": 16, "student_steps": 2, "rounds": 3, "checkpoint": {"every": 1, "keep": 2}}, over)
    )
    found = estimate.measure(estimate.build(config, print), config)
    distill.distill(config, tmp_path / "run")
    files = [*(tmp_path / "run" / "checkpoints").iterdir(), tmp_path / "run" / "student.safetensors"]
    assert len(files) == 3
    assert found.disk == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)


def test_estimated_memory_holds_the_whole_pool() -> None:
    """The system counts memory when it is first written to, so a pool that is not full yet looks small."""
    config = config_of({"variant": "swift", "batch_size": 32, "rounds": 100_000, "replay": {"memory": 1024.0}})
    built = estimate.build(config, print)
    found = estimate.measure(built, config)
    assert built.sources.pool
    for held in built.sources.pool._held.values():
        held.fill_(1)
    assert found.memory == pytest.approx(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, rel=0.2)


def test_an_estimate_does_not_end_where_random_weights_overflow() -> None:
    config = config_of({"batch_size": 8, "student": {"lr": 1e30}})
    assert estimate.measure(estimate.build(config, print), config).round_seconds > 0
