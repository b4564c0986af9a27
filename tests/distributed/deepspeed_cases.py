"""What two processes do for test_deepspeed.py, all in one start.

In fp32 one process and two agree only for a few rounds, and only where no batch norm trains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from harness.config.parse import Overlay, merge
from harness.distributed import zero
from harness.distributed.runtime import leave
from harness.errors import UserError
from harness.training import checkpoint
from harness.training.machine import Machine
from tests.distributed import cases, slopes

ROUNDS, HALF = 5, 3
STAGES = ((0, 0), (1, 1), (2, 2), (3, 3), (2, 3))
"""ZeRO stages of the generator and of the student."""

PLAIN: Overlay = merge(
    cases.BARE,
    {"precision": "fp32", "rounds": ROUNDS, "batch_size": 13, "student": {"network": f"{__file__}:student"}},
)
"""Adam for the generator, SGD for the student; shares of 6 and 7 images."""

VARIANTS: dict[str, Overlay] = {
    "clipped": merge(PLAIN, {"student": {"clip": 0.1}, "generator": {"clip": 0.01}}),
    "micro-batches": merge(PLAIN, {"batch_size": 14, "micro_batches": 2}),
    "generator begins anew": merge(PLAIN, {"generator_steps": 2, "generator": {"restart": 2}}),
}
NORMALISED: Overlay = {"precision": "fp32", "rounds": 1, "batch_size": 13}
"""Batch norm in both networks, synchronised."""

PRUNED: Overlay = merge(NORMALISED, cases.PRUNED)

BF16: Overlay = merge(PLAIN, {"precision": "bf16"})


def student(classes: int, channels: int) -> nn.Module:
    """[B, C, 8, 8] -> [B, K] without batch norm, and with parameters that two processes cannot share evenly."""
    first = nn.Conv2d(channels, 5, 3, stride=2, bias=False)
    return nn.Sequential(first, nn.GroupNorm(1, 5), nn.Tanh(), nn.Flatten(), nn.Linear(45, classes))


class Gain(nn.Module):
    """Has a parameter without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gain * x
        return y


def scalar(classes: int, channels: int) -> nn.Module:
    return nn.Sequential(student(classes, channels), Gain())


def spread(stages: tuple[int, int], over: Overlay) -> Machine:
    """The machine of a case under DeepSpeed."""
    zero_stages = {"generator": stages[0], "student": stages[1]}
    return cases.build(merge(over, {"distributed": {"strategy": "deepspeed", "zero": zero_stages}}))


def name(stages: tuple[int, int]) -> str:
    return f"{stages[0]}-{stages[1]}"


def store(machine: Machine, folder: Path, done: int) -> None:
    checkpoint.store(folder, machine.players, {"round": done}, 1, machine.runtime.first)


def digest(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(save(dict(tensors))).hexdigest()


def ends(machine: Machine, path: Path) -> bool:
    """Writes the state of a machine; whether all processes hold the same, to the bit."""
    found = cases.state(machine)
    machine.runtime.first(lambda: save_file(found, path))
    return len(set(machine.runtime.gather(digest(found)))) == 1


def pair(stages: tuple[int, int], out: Path) -> dict[str, Any]:
    """A run to its end, the same one resumed in the middle, and one that takes up a single process's checkpoint."""
    whole = out / name(stages)
    straight = spread(stages, PLAIN)
    found: dict[str, Any] = {"start": ends(straight, whole.with_suffix(".start"))}
    cases.play(straight, 0, HALF)
    store(straight, whole, HALF)
    cases.play(straight, HALF)
    found["equal"] = ends(straight, whole.with_suffix(".end"))
    modules = [player.module for player in straight.players.values()]
    found["frozen"] = not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    found["held"] = sum(parameter.numel() for parameter in modules[0].parameters())
    resumed = spread(stages, PLAIN)
    checkpoint.restore(whole, resumed.players, resumed.runtime.first)
    cases.play(resumed, HALF)
    found["resumed"] = digest(cases.state(resumed)) == digest(cases.state(straight))
    taken = spread(stages, PLAIN)
    checkpoint.restore(out / "alone", taken.players, taken.runtime.first)
    found["latched"] = latched(taken, HALF)
    checkpoint.restore(out / "alone", taken.players, taken.runtime.first)  # over an engine that has states
    ends(taken, whole.with_suffix(".taken"))
    cases.play(taken, HALF)
    ends(taken, whole.with_suffix(".taken_end"))
    return found


def latched(machine: Machine, round_index: int) -> bool:
    """Whether a latch that the host has not read keeps every weight as it is."""
    before = [digest(player.engine.weights()) for player in machine.players.values()]
    machine.health.verify = lambda: None  # type: ignore[method-assign]  # as on a GPU between two reports
    machine.health._blame.fill_(1)
    cases.play(machine, round_index, 1)
    machine.health._blame.fill_(0)
    return before == [digest(player.engine.weights()) for player in machine.players.values()]


def play_all(out: Path) -> None:
    """For `ranks.run`: everything; rank 0 writes what it found."""
    found: dict[str, Any] = {}
    for stages in STAGES:
        zero.PERSISTENT = 0 if stages == (3, 3) else 100_000  # these networks have no parameter of so many numbers
        found[name(stages)] = pair(stages, out)
        for variant, over in VARIANTS.items():
            machine = spread(stages, over)
            cases.play(machine)
            ends(machine, out / f"{name(stages)}.{variant}")
        found[name(stages)]["skipped"] = [
            slopes.skipped(spread(stages, merge(over, {"student": {"network": slopes.STUDENT}})), turn)
            for over in (PLAIN, VARIANTS["clipped"])
            for turn in (0, 2)
        ]
    for case, over in {"normalised": NORMALISED, "pruned": PRUNED, "bf16": BF16}.items():
        machine = spread((3, 3), over)
        cases.play(machine)
        found[case] = ends(machine, out / case)
    try:
        spread((2, 3), merge(PLAIN, {"student": {"network": f"{__file__}:scalar"}}))
    except UserError as error:
        found["scalar"] = str(error)
    machine.runtime.first(lambda: (out / "found.json").write_text(json.dumps(found)))
    leave()


def play_alone(out: Path) -> None:
    """For a process without a launcher: DeepSpeed on its own."""
    machine = spread((2, 3), PLAIN)
    cases.play(machine)
    ends(machine, out / "one")
    leave()
