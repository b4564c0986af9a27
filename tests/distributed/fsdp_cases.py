"""What the ranks of the FSDP tests do, in one start: the cases to their ends, and what else needs two processes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness import task as tasks
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import leave
from harness.errors import UserError
from harness.training import checkpoint, evaluate
from harness.training.machine import Machine
from tests.distributed import cases, slopes

FSDP: Overlay = {"distributed": {"strategy": "fsdp"}}
BLOCKS: Overlay = {"student": {"network": f"{__file__}:blocks"}}
TEACHER: Overlay = {
    "teacher": {"network": f"{__file__}:blocks"},
    "distributed": {"strategy": "fsdp", "shard_teacher": True},
}

CASES: dict[str, Overlay] = {
    case: merge({"batch_size": 13}, over)
    for case, over in {
        "sgd": {},
        "bare, sgd": cases.CASES["bare, sgd"],
        "bare, adam": cases.CASES["bare, adam"],
        "blocks, adam": merge(BLOCKS, {"student": {"optimizer": "adam", "lr": 1e-3}}),
        "blocks, clipped, in micro-batches": merge(
            merge(BLOCKS, cases.CASES["clipped"]), {"batch_size": 14, "micro_batches": 2}
        ),
        "attention": merge(cases.CASES["zskt"], {"rounds": 3}),
        "the pool": cases.CASES["fast, micro-batches"],
        "generator begins anew": cases.CASES["generator begins anew"],
        "pruned": merge(cases.PRUNED, {"distributed": TEACHER["distributed"]}),
        "teacher": TEACHER,
    }.items()
}
"""With and without batch norm, gathered in one part and in several; no batch that two processes share evenly."""


class Block(nn.Module):
    """A residual block whose parameters two processes cannot share evenly; one has a single element."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.gain = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] to the same."""
        y: Tensor = x + self.gain * self.norm(self.conv(x)).tanh()
        return y


def blocks(classes: int, channels: int) -> nn.Module:
    """[B, C, H, W] -> [B, K]; FSDP gathers each block, and the first and the last layer with the whole."""
    stem = nn.Conv2d(channels, 5, 3, padding=1, bias=False)
    body = nn.Sequential(Block(5), Block(5), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(stem, body, nn.Linear(20, classes))


class Scalar(nn.Module):
    """Has a parameter without an axis, which FSDP does not take."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(3, classes), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K]."""
        y: Tensor = self.scale * self.linear(x.mean((2, 3)))
        return y


def scalar(classes: int, channels: int) -> nn.Module:
    """For a configuration's `student.network`."""
    return Scalar(classes)


def everything(out: Path) -> None:
    """For `ranks.run`: each rank's findings in RANK.json, rank 0's states in CASE.safetensors.

    `out`/alone holds a checkpoint that one process wrote after 10 rounds of "blocks, adam".
    """
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {}

    def end(case: str, machine: Machine) -> None:
        state = cases.state(machine)
        found[case] = hashlib.sha256(save(state)).hexdigest()
        if rank == 0:
            save_file(state, out / f"{case}.safetensors")

    for case, over in CASES.items():
        machine = cases.build(merge(FSDP, over))
        cases.play(machine)
        end(case, machine)
    found["own share"] = {name: share(player.engine.module) for name, player in machine.players.items()}
    assert machine.teacher
    found["own share"]["teacher"] = share(machine.teacher.module)
    found["scores"] = uneven_evaluation(machine)
    end("resumed", resumed(out / "together"))
    end("from one process", resumed(out / "alone"))
    local = cases.build(merge(FSDP, {"sync_batch_norm": False}))
    cases.play(local, rounds=3)
    end("local", local)
    found["latched"] = latched()
    undefined: Overlay = merge(FSDP, {"student": {"network": slopes.STUDENT}})
    found["skipped"] = [slopes.skipped(cases.build(undefined), turn) for turn in (0, 2)]
    found["bf16"] = low_precision()
    found["refused"] = [refused(over) for over in REFUSED]
    (out / f"{rank}.json").write_text(json.dumps(found))
    leave()


def share(module: nn.Module) -> list[int]:
    """[numbers on this process, numbers in all] of a network's parameters."""
    parameters = list(module.parameters())
    own = sum(parameter.to_local().numel() for parameter in parameters if isinstance(parameter, DTensor))
    return [own, sum(parameter.numel() for parameter in parameters)]


def uneven_evaluation(machine: Machine) -> list[float | None]:
    """Agreement and accuracies where rank 0 has three batches and rank 1 has one; alone, all four."""
    rank, world_size = machine.runtime.rank, machine.runtime.world_size
    source = torch.Generator().manual_seed(0)
    batches = [(torch.randn(5, 3, 8, 8, generator=source), torch.arange(5) % 4) for _ in range(4)]
    own = batches if world_size == 1 else batches[:3] if rank == 0 else batches[3:]
    last = machine.networks()
    assert last.teacher
    roles = {"student": last.student, "teacher": last.teacher}
    scores = evaluate.on_test_set(tasks.load("classification"), 4, roles, own, machine.runtime, (8, 8))
    return [scores.agreement, scores.teacher["accuracy"], scores.student["accuracy"]]


def resumed(folder: Path) -> Machine:
    """ "blocks, adam" from round 10 to its end: out of a checkpoint of this folder, which is written where none is."""
    over = merge(FSDP, CASES["blocks, adam"])
    if not folder.exists():
        half(folder, over)
    machine = cases.build(over)
    state = checkpoint.restore(folder, machine.players, machine.runtime.first)
    assert state and state["round"] == 10
    cases.play(machine, 10)
    return machine


def half(folder: Path, over: Overlay) -> None:
    """Ten rounds, and a checkpoint of them."""
    machine = cases.build(over)
    cases.play(machine, rounds=10)
    checkpoint.store(folder, machine.players, {"round": 10}, 1, machine.runtime.first)


def latched() -> bool:
    """Whether no update is made once a loss was not finite, though the host has not looked yet."""
    machine = cases.build(merge(FSDP, BLOCKS))
    machine.play(0, 0)
    machine.health.verify = lambda: None  # type: ignore[method-assign]  # as on a GPU between two reports
    machine.health._blame.fill_(1)
    before = [value.clone() for value in machine.student.engine.weights().values()]
    names = [name for name, _ in machine.student.module.named_parameters()]
    machine.play(0, 1)
    after = machine.student.engine.weights()
    old = dict(zip(after, before, strict=True))
    return all(torch.equal(after[name], old[name]) for name in names)


def low_precision() -> dict[str, Any]:
    """Types of numbers under bf16, in a network's own turn and in the turn of another, and the loss of a turn."""
    machine = cases.build(merge(FSDP, merge(BLOCKS, {"precision": "bf16"})))
    types: list[str] = []
    layer = next(layer for layer in machine.student.module.modules() if isinstance(layer, nn.Conv2d))
    layer.register_forward_hook(lambda layer, inputs, output: types.append(str(output.dtype)))
    losses = [machine.play(0, place).total.item() for place in range(3)]
    weights = {str(value.dtype) for value in machine.student.engine.weights().values() if value.is_floating_point()}
    return {"inside": types, "weights": sorted(weights), "losses": losses}


REFUSED: list[Overlay] = [
    {"distributed": {"strategy": "ddp", "shard_teacher": True}},
    merge(TEACHER, {"weights": {"adversarial": [[0, 1.0], [5, 0.0]], "one_hot": 0.0, "class_balance": 0.0}}),
    merge(FSDP, {"student": {"network": f"{__file__}:scalar"}}),
]
"""Configurations that are a mistake."""


def refused(over: Overlay) -> str | None:
    """What a configuration is refused with."""
    try:
        cases.build(over)
    except UserError as error:
        return str(error)
    return None
