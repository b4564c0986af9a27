"""Golden curves: a change that means to leave the numerics alone must leave these figures alone.

They are losses of a few rounds in fp64, where rounding differs by less than the tolerance between machines. A change
of the numerics writes them anew (`python -m tests.golden.test_curves`) and says why in the CHANGELOG, with a table of
at least three seeds.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import methods, resolve
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.training import machine
from harness.training.record import latest

CURVES = Path(__file__).with_name("curves.json")

SMALL: Overlay = {
    "rounds": 5,
    "batch_size": 16,
    "student_steps": 2,
    "precision": "fp64",
    "teacher": {"checkpoint": "untrained"},
    "student": {"network": "cnn6"},
    "generator": {"latent_size": 16, "width": 8},
}

CASES: dict[str, Overlay] = {
    "ddad": {},
    "dfad": {"method": "dfad"},
    "every term": {
        "batch_norm_form": "kl",
        "discrepancy": "js",
        "student_discrepancy": "kl",
        "temperature": 2.0,
        "adversarial_transform": "log1p",
        "weights": {"one_hot": 0.1, "class_balance": 0.2, "activation": 0.3, "tv": 0.01, "l2": [[0, 0.0], [2, 0.01]]},
        "student": {"optimizer": "adam", "lr": 1e-3, "schedule": "multistep", "milestones": [0.5], "clip": 1.0},
    },
}


def curve(case: str) -> list[dict[str, float]]:
    """Every loss of every round."""
    config = resolve.resolve("digits", None, merge(SMALL, CASES[case]))
    turns = methods.METHODS[config.method].turns(config)
    built = machine.Machine(config, Runtime(config), turns, roles.teacher(config))
    rows = range(config.rounds)
    return [latest([(turn.kind, built.play(row, place)) for place, turn in enumerate(turns)]) for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_curve(case: str) -> None:
    golden = json.loads(CURVES.read_text())[case]
    found = curve(case)
    assert len(found) == len(golden)
    for row, (values, expected) in enumerate(zip(found, golden, strict=True)):
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-7), f"round {row + 1}"


if __name__ == "__main__":
    CURVES.write_text(json.dumps({case: curve(case) for case in CASES}, indent=1) + "\n")
