"""Golden curves: a change that means to leave the numerics alone must leave these figures alone.

They are losses of a few rounds in fp64, where rounding differs by less than the tolerance between machines. A change
of the numerics writes them anew (`python -m tests.golden.test_curves`) and says why in the CHANGELOG, with a table of
at least three seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import methods, resolve
from harness.config import Config, flat, image_shape
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.networks.layers import evaluating
from harness.training import machine
from harness.training.record import Means
from harness.training.record import values as values_of

CURVES = Path(__file__).with_name("curves.json")
VARIANTS = Path(__file__).with_name("variants.json")

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
"""Settings over SMALL."""

NAMED = {
    f"{name} {variant}": {"method": name, "variant": variant}
    for name, method in methods.METHODS.items()
    for variant in method.variants
}
"""Each variant of each method."""

OVER: dict[str, Overlay] = {
    "ddad warm": {
        "teacher": {"network": "wrn10_1"},
        "student": {"network": "pruned", "arguments": {"channels": 0.5}},
        "generator": {"warmup": 2},
    },
    "ddad warm_noisy": {
        "teacher": {"network": "wrn10_1"},
        "student": {"network": "pruned", "arguments": {"channels": 0.5}},
    },
    "ddad blocks": {
        "teacher": {"network": "wrn10_1"},
        "student": {"network": "wrn10_1"},
        "generator": {"warmup": 2},
    },
    "ddad hinted": {"generator": {"restart": 2}},
    **{f"nayer {variant}": {"generator": {"restart": 2}} for variant in methods.METHODS["nayer"].variants},
}
"""What a variant asks of the networks that SMALL's have not: blocks that teacher and student share; and a generator
that begins anew within the rounds there are."""

FEWER_ROUNDS = {"deepinversion": 2, "cmi": 2, "fast": 3, "nayer": 3}
"""For methods that make each batch by many steps, which are fewer in a shorter run. The average over earlier batches
that `fast` and `nayer` keep shows in the third."""

MAX_STUDENT_STEPS = 5
"""The smallest number at which `swift`'s four turns of five from the pool are what it asks for."""

MAX_GENERATOR_STEPS = 2
"""In more updates on one batch what is rounding on one machine becomes another image on the next."""

UNSEEN = (
    "rounds", "batch_size", "student_steps", "generator_steps", "adversarial_after", "generator.latent_size",
    "generator.warmup", "replay.memory",
)  # fmt: skip
"""Settings of a variant that a few rounds of small batches do not show: they are compared as they are written."""


def play(config: Config) -> tuple[machine.Machine, list[dict[str, float]]]:
    """What a run consists of after its rounds, and every loss of every round."""
    method = methods.METHODS[config.method]
    turns = method.turns(config)
    teacher = roles.teacher(config) if method.has_teacher else None
    built = machine.Machine(config, Runtime(config), turns, teacher)
    for step in range(built.num_preparations):
        built.prepare(step)
    rows = range(config.rounds)
    return built, [_losses(built, row) for row in rows]


def _losses(built: machine.Machine, round_index: int) -> dict[str, float]:
    """Mean over a round's turns of every term, by "player/term", as a row of metrics has it."""
    means = Means()
    for index, turn in enumerate(built.turns):
        means.add(turn.kind, values_of(built.play(round_index, index)))
    return means.read()


def curve(case: str) -> list[dict[str, float]]:
    """Every loss of every round of one of CASES."""
    return play(resolve.resolve("digits", None, merge(SMALL, CASES[case])))[1]


def variant(case: str) -> dict[str, Any]:
    """One of NAMED: its settings in UNSEEN, every loss of every round, and what its student answers in the end."""
    full = resolve.resolve("digits", None, NAMED[case])
    shorter = {
        "rounds": FEWER_ROUNDS.get(full.method, SMALL["rounds"]),
        "student_steps": min(full.student_steps, MAX_STUDENT_STEPS),
        "generator_steps": min(full.generator_steps, MAX_GENERATOR_STEPS),
    }
    config = resolve.resolve("digits", None, merge(merge(SMALL, {**NAMED[case], **shorter}), OVER.get(case, {})))
    built, rounds = play(config)
    return {"settings": {path: flat(full)[path] for path in UNSEEN}, "rounds": rounds, "answer": answer(built)}


def answer(built: machine.Machine) -> list[float]:
    """The mean absolute logit by class [K] of the student that a run hands over, its average where it takes one."""
    x = torch.randn(16, *image_shape(built.config), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student = built.networks().student
    with evaluating([student]):
        found: list[float] = student(x).abs().mean(0).tolist()
    return found


def read(file: Path, case: str) -> Any:
    """A case as it was recorded."""
    recorded = json.loads(file.read_text())
    assert case in recorded, f"{case}: no golden curve yet; record it with python -m tests.golden.test_curves"
    return recorded[case]


def compare(found: list[dict[str, float]], golden: list[dict[str, float]], rel: float) -> None:
    """Each loss of each round, within what rounding may make of it on another machine."""
    assert len(found) == len(golden)
    for row, (values, expected) in enumerate(zip(found, golden, strict=True)):
        assert values == pytest.approx(expected, rel=rel, abs=rel / 100), f"round {row + 1}"


@pytest.mark.parametrize("case", CASES)
def test_curve(case: str) -> None:
    compare(curve(case), read(CURVES, case), rel=1e-5)


@pytest.mark.parametrize("case", NAMED)
def test_variant(case: str) -> None:
    found, golden = variant(case), read(VARIANTS, case)
    assert found["settings"] == golden["settings"]
    compare(found["rounds"], golden["rounds"], rel=1e-6)
    assert found["answer"] == pytest.approx(golden["answer"], rel=1e-6, abs=1e-8)


if __name__ == "__main__":
    for file, record, cases in ((CURVES, curve, CASES), (VARIANTS, variant, NAMED)):
        file.write_text(json.dumps({case: record(case) for case in cases}, indent=1) + "\n")
