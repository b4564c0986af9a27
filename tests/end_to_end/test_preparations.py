"""The steps before the first round, in whole runs: stopped and resumed to the bit, and what a pruned student gains."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from harness import methods, resolve
from harness.config import Config
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.networks.reconstruct import reconstruct
from harness.training.checkpoint import restore
from harness.training.distill import rounds
from harness.training.machine import Machine


def configuration(**over: object) -> Config:
    """A pruned student of an untrained teacher, on images of 8x8."""
    return resolve.resolve(
        "classification",
        None,
        {
            "rounds": 3, "batch_size": 8, "classes": 5, "input": {"size": 8}, "student_steps": 5,
            "teacher": {"network": "wrn10_1", "checkpoint": "untrained"},
            "student": {"network": "pruned", "arguments": {"channels": 0.5}},
            "generator": {"latent_size": 8, "width": 8, "warmup": 4}, "variant": "warm",
            "tracking": {"uri": "none"}, "pictures": False, **over,
        },
    )  # fmt: skip


def test_a_run_that_is_stopped_within_its_preparations_ends_in_the_same_bytes(tmp_path: Path) -> None:
    config = configuration()
    *_, whole = rounds(config, tmp_path / "whole")
    asked = itertools.count()
    (stopped,) = rounds(config, tmp_path / "parts", stop=lambda: "enough" if next(asked) >= 1 else None)
    assert stopped.round == 0 and stopped.stopped == "enough"
    asked = itertools.count()
    (stopped,) = rounds(config, tmp_path / "parts", stop=lambda: "enough" if next(asked) >= 2 else None)
    assert stopped.round == 0 and stopped.stopped == "enough"
    *_, resumed = rounds(config, tmp_path / "parts")
    assert whole.result and resumed.result and resumed.result["student"] is not None
    files = [tmp_path / name / "student.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def machine(config: Config) -> Machine:
    turns = methods.METHODS[config.method].turns(config)
    return Machine(config, Runtime(config), turns, roles.teacher(config))


def test_the_reconstruction_brings_a_pruned_student_nearer_to_its_teacher() -> None:
    built = machine(configuration(precision="fp64"))
    assert built.teacher is not None and built.num_preparations == 5

    def distance() -> float:
        x = built.sources.images("test")
        with torch.no_grad():
            student = built.student.module.eval()
            found = (built.teacher.module(x) - student(x)).square().mean().item()  # type: ignore[union-attr]
            student.train()
        return float(found)

    for step in range(4):
        built.prepare(step)
    before, weights = distance(), {name: value.clone() for name, value in built.student.module.state_dict().items()}
    expected = copy.deepcopy(built.student.module)
    images = [built.sources.images("reconstruct", index) for index in range(6)]
    built.prepare(4)
    assert distance() < before
    assert built.teacher is not None and built.structure is not None
    reconstruct(built.teacher.module, expected, built.structure["kept"], images)
    torch.testing.assert_close(built.student.module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    changed = {
        name for name, value in built.student.module.state_dict().items() if not torch.equal(value, weights[name])
    }
    assert built.structure is not None
    cut = {name for name, axes in built.structure["kept"].items() if "in" in axes}
    assert {name.rpartition(".")[0] for name in changed if name.endswith("weight")} == cut


def test_a_student_that_is_not_pruned_is_not_reconstructed() -> None:
    config = configuration(student={"network": "wrn10_1", "start": "teacher"})
    assert machine(config).num_preparations == 4


def test_a_checkpoint_that_says_nothing_of_preparations_has_them_behind_it(tmp_path: Path) -> None:
    config = configuration(checkpoint={"every": 1})
    *_, last = rounds(config, tmp_path)
    assert last.result
    state = restore(tmp_path / "checkpoints", machine(config).players)
    assert state is not None and state["round"] == 3 and "prepared" not in state
    longer = dataclasses.replace(config, max_minutes=None)
    *_, again = rounds(longer, tmp_path)
    assert again.result == last.result


@pytest.mark.parametrize("method", ["cmi", "kd"])
def test_methods_without_a_lasting_generator_refuse_them(method: str) -> None:
    config = configuration(method=method, variant="paper", generator={"warmup": 0}, student={
        "network": "pruned", "arguments": {"channels": 0.5}, "reconstruct": 2})  # fmt: skip
    with pytest.raises(ValueError, match=f"student.reconstruct=2: method={method} has no generator for the whole run"):
        methods.METHODS[method].turns(config)
