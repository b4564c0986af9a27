"""The student with its initial weights: fresh, the teacher's, a file's, or those of the pruned teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from harness.config import FRESH, FROM_TEACHER, MEMORY, PRUNED, Config, image_shape
from harness.errors import UserError
from harness.networks import cutting, fit, inheriting, layers, roles, sources, weights
from harness.networks.cutting import Structure


@dataclass(frozen=True)
class Start:
    """A student before its first update."""

    module: nn.Module
    inherited: float | None = None
    """Share of its weights that are copied from the teacher; None for fresh weights or a file."""
    line: str | None = None
    """A line for the user about it."""
    blocks: Mapping[str, list[int]] = field(default_factory=dict)
    """By the path of a stage with fewer blocks than the teacher's: the teacher's block for each of the student's."""


def begin(
    config: Config, teacher: nn.Module | None, structure: Structure | None, source: nn.Module | None = None
) -> Start:
    """The student of a configuration, and of the teacher with its weights; `structure`: that of a pruned student.

    `source`: the student where it is a module in memory. Raises UserError if the weights do not fit.
    """
    spec = config.student
    if spec.network == PRUNED:
        assert teacher is not None and structure is not None
        return _pruned(config, teacher, structure)
    module, name = roles.student(config, source=source), f"student.network={spec.network}"
    if spec.start == MEMORY and source is not None:
        return Start(module, line="the student begins with the weights of the module that was given")
    if spec.start == FROM_TEACHER:
        assert teacher is not None
        found = inheriting.inherit(module, teacher, (name, f"teacher.network={config.teacher.network}"), spec.blocks)
        blocks = "".join(f", {stage} with blocks {chosen}" for stage, chosen in found.blocks.items())
        line = f"{found.share:.1%} of the student's weights are the teacher's{blocks}"
        return Start(module, found.share, line, found.blocks)
    if spec.start != FRESH:
        if not sources.present(spec.start):
            raise UserError(
                f"student.start={spec.start!r}: there is no such file; expected {FRESH}, {FROM_TEACHER}, a file of "
                "weights or hub:OWNER/NAME"
            )
        weights.load(module, sources.locate(spec.start), name)
        return Start(module, line=f"the student begins with the weights in {spec.start}")
    return Start(module)


def _pruned(config: Config, teacher: nn.Module, structure: Structure) -> Start:
    module = copy.deepcopy(teacher).requires_grad_(True)
    try:
        cutting.cut(module, structure)
    except UserError as error:
        raise UserError(f"student.network={PRUNED}: {error}") from None
    fit.check_fit(f"student.network={PRUNED}", module, config)
    x = torch.zeros(1, *image_shape(config))
    figures = [(layers.macs(network, x) / 1e6, layers.num_parameters(network)) for network in (module, teacher)]
    (own_macs, own_weights), (their_macs, their_weights) = figures
    dropped = f", without blocks {', '.join(structure['dropped'])}" if structure["dropped"] else ""
    line = (
        "the student is the teacher pruned to "
        f"{own_macs:,.4g} of {their_macs:,.4g} MMAC ({own_macs / their_macs:.1%}), "
        f"{own_weights:,} of {their_weights:,} parameters ({own_weights / their_weights:.1%}){dropped}"
    )
    return Start(module, 1.0, line)
