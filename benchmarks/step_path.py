"""Which files of harness/ a step enters: `python -m benchmarks.step_path`.

Plays one turn of each kind on one process, after one to warm up, and counts by Python's own profiler the files whose
functions are called: what a reader has to follow. Left out are the networks' own layers, here the generator's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from harness import methods, resolve
from harness.config import Config
from harness.config.parse import Overlay
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.training.machine import Machine

ROOT = Path(__file__).resolve().parents[1]

LAYERS = "harness/algorithm/generators.py"
"""The layers of the generator; those of teacher and student are in tasks/."""

SMALL: Overlay = {
    "rounds": 4,
    "batch_size": 8,
    "student_steps": 2,
    "teacher": {"checkpoint": "untrained"},
    "student": {"network": "cnn4"},
    "generator": {"latent_size": 8, "width": 8},
}


def entered(config: Config) -> dict[str, list[str]]:
    """{kind of turn: files of harness/ in the order in which a turn of the second round first enters them}."""
    turns = methods.METHODS[config.method].turns(config)
    machine = Machine(config, Runtime(config), turns, roles.teacher(config))
    for index in range(len(turns)):
        machine.play(0, index)
    return {turn.kind: _files(machine, index) for index, turn in enumerate(turns)}


def _files(machine: Machine, turn_index: int) -> list[str]:
    found: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "harness"):
            found.setdefault(str(path.relative_to(ROOT)))

    sys.setprofile(note)
    try:
        machine.play(1, turn_index)
    finally:
        sys.setprofile(None)
    return [file for file in found if file != LAYERS]


def main() -> None:
    """Prints the files of each kind of turn."""
    for kind, files in entered(resolve.resolve("digits", None, SMALL)).items():
        print(f"{kind}: {len(files)} files")
        for file in files:
            print(f"  {file}")


if __name__ == "__main__":
    main()
