"""Copies the teacher's weights into a student: those with the same path and shape, and blocks of deeper stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.errors import UserError, nearest

Signature = list[tuple[str, tuple[int, ...]]]
"""Names and shapes of a block's parameters and buffers."""


@dataclass(frozen=True)
class Inherited:
    """The weights that a student has from its teacher."""

    share: float
    """Share of its weights, buffers not counted."""
    blocks: dict[str, list[int]]
    """By the path of a stage with fewer blocks than the teacher's: the teacher's block for each of the student's."""


def inherit(
    student: nn.Module,
    teacher: nn.Module,
    names: tuple[str, str],
    blocks: Sequence[int] | Mapping[str, Any] | None = None,
) -> Inherited:
    """Copies into the student every parameter and buffer that the teacher has at the same path, of the same shape.

    A stage is an nn.Sequential or nn.ModuleList at the same path in both, whose blocks from the second on are alike.
    In one with fewer blocks in the student, block i takes the teacher's block i (docs/your-own-teacher.md), or that of
    `blocks`: a list for every such stage, or lists by the stage's path (nested by its dots or not). `names` of student
    and teacher are for messages. Raises UserError where no layer is in common, or `blocks` do not fit.
    """
    stages = dict(_stages(student, teacher))
    chosen = _chosen(stages, blocks)
    own, other = student.state_dict(), teacher.state_dict()
    found = {}
    for name, values in own.items():
        source = _source(name, chosen)
        if source in other and other[source].shape == values.shape:
            found[name] = other[source]
    weights = dict(student.named_parameters(remove_duplicate=False))
    # biases without weights do not count
    if not any(name in found and values.dim() > 1 for name, values in weights.items()):
        raise UserError(
            f"student.start=teacher: {names[0]} and {names[1]} have no layer's weight in common: the first one's is "
            f"{_first(student)}, the other's {_first(teacher)}: set student.start=fresh"
        )
    with torch.no_grad():
        for name, values in found.items():
            own[name].copy_(values)
    inherited = sum(values.numel() for name, values in weights.items() if name in found)
    return Inherited(inherited / sum(values.numel() for values in weights.values()), chosen)


def _stages(student: nn.Module, teacher: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, nn.Module]]]:
    """(path, (student's, teacher's)) of every stage with fewer blocks in the student."""
    for name, ours in student.named_modules():
        try:
            theirs = teacher.get_submodule(name)
        except AttributeError:
            continue
        if all(isinstance(stage, nn.Sequential | nn.ModuleList) for stage in (ours, theirs)) and name:
            own, other = list(ours.children()), list(theirs.children())
            rest = [_signature(block) for block in [*own[1:], *other[1:]]]
            numbered = all(key.isdecimal() for stage in (ours, theirs) for key, _ in stage.named_children())
            if 0 < len(own) < len(other) and numbered and rest[0] and all(found == rest[0] for found in rest):
                yield name, (ours, theirs)


def _signature(block: nn.Module) -> Signature:
    return [(name, tuple(values.shape)) for name, values in block.state_dict().items()]


def _chosen(
    stages: Mapping[str, tuple[nn.Module, nn.Module]], blocks: Sequence[int] | Mapping[str, Any] | None
) -> dict[str, list[int]]:
    """The teacher's blocks for each stage; UserError where those that were asked for do not fit."""
    counts = {
        name: (len(list(ours.children())), len(list(theirs.children()))) for name, (ours, theirs) in stages.items()
    }
    found = {name: list(range(ours)) for name, (ours, _) in counts.items()}
    if blocks is None:
        return found
    if not stages:
        raise UserError(f"student.blocks={blocks!r}: no stage of the student has fewer blocks than the teacher's")
    asked = dict(_flat(blocks, "")) if isinstance(blocks, Mapping) else dict.fromkeys(stages, blocks)
    for name, wanted in asked.items():
        if name not in stages:
            raise UserError(f"student.blocks.{name}: no such stage with fewer blocks{nearest(name, stages)}")
        ours, theirs = counts[name]
        whole = isinstance(wanted, Sequence) and all(type(index) is int and 0 <= index < theirs for index in wanted)
        if not whole or len(wanted) != ours:
            raise UserError(
                f"student.blocks={wanted!r}: {name} has {ours} blocks in the student, {theirs} in the teacher: "
                f"expected {ours} numbers from 0 to {theirs - 1}"
            )
        for index, source in enumerate(wanted):
            mine, its = (
                list(stage.children())[number] for stage, number in zip(stages[name], (index, source), strict=True)
            )
            if _signature(mine) != _signature(its):
                raise UserError(
                    f"student.blocks={wanted!r}: the teacher's {name}.{source} has not the shape of the student's "
                    f"{name}.{index}"
                )
        found[name] = list(wanted)
    return found


def _flat(blocks: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in blocks.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _source(name: str, chosen: Mapping[str, list[int]]) -> str:
    """The teacher's name of the source of a student's parameter or buffer."""
    for stage, blocks in chosen.items():
        if name.startswith(f"{stage}."):
            index, dot, rest = name.removeprefix(f"{stage}.").partition(".")
            return f"{stage}.{blocks[int(index)]}{dot}{rest}"
    return name


def _first(module: nn.Module) -> str:
    """`'conv1.weight' [16, 3, 3, 3]`."""
    for name, values in module.named_parameters():
        return f"{name!r} {list(values.shape)}"
    return "none"
