"""A student cut out of its teacher: channels inside blocks, and blocks; `student.arguments` are the shares left."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from harness.errors import UserError
from harness.networks import cutting, layers
from harness.networks.cutting import Structure
from harness.networks.layers import pass_with_hooks

STEPS = 16
"""Halvings of the search for the share of channels that remains: finer than one of 65,536."""


def plan(teacher: nn.Module, arguments: Mapping[str, Any], noise: Tensor, name: str) -> Structure:
    """The structure of the student that `arguments` ask for, a share in (0, 1) for each of its keys.

    `blocks`: of the blocks that can be left out (`droppable`), that share remains; left out one by one is the one
    without which the teacher's logits for `noise` [B, C, H, W], B at least 2, change least in the mean. Then, of all
    groups of channels inside blocks, a share remains: `channels`, or the largest with which multiply-adds (`macs`) or
    weights (`parameters`) are at most that share of the teacher's. It is the same for all groups, except for a
    classifier's `macs`: there it is twice as large where the side of the feature maps is half, at most 1, so that more
    weights remain, in the layers that tell classes apart. `teacher` is in eval mode and stays as it is.
    Raises UserError where the teacher, `name` in messages, cannot be pruned or not by so much.
    """
    from harness.networks import channels  # its import takes a second

    dropped = _least_missed(teacher, noise, arguments["blocks"], name) if "blocks" in arguments else []
    shorter = copy.deepcopy(teacher)
    cutting.cut(shorter, {"kept": {}, "dropped": dropped})
    wanted = next((key for key in arguments if key != "blocks"), None)
    if wanted is None:
        return {"kept": {}, "dropped": dropped}
    groups = channels.find(shorter, noise[:2], name)
    with torch.no_grad():
        classifies = teacher(noise[:1]).dim() == 2

    def structure(share: float) -> Structure:
        late = wanted == "macs" and classifies
        shares = channels.wider_where_smaller(groups, share) if late else channels.even(share)
        return channels.structure(shorter, groups, shares, dropped)

    if wanted == "channels":
        return structure(arguments["channels"])
    measure = partial(layers.macs, x=noise[:1]) if wanted == "macs" else layers.num_parameters
    return _search(teacher, structure, measure, wanted, arguments[wanted])


def droppable(module: nn.Module, x: Tensor) -> list[str]:
    """The blocks that can be left out: they keep the shape, and with weights of 0 they are the identity.

    A block is a child of an nn.Sequential or nn.ModuleList with a convolution or a linear layer in it, called once on
    one tensor, and none of the blocks that it holds is one itself. `module` in eval mode; x [B, C, H, W] are images.
    """
    numbered = [
        f"{name}.{child}" if name else child
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Sequential | nn.ModuleList)
        for child in dict(layer.named_children())
    ]
    calls: dict[str, list[Tensor | None]] = {name: [] for name in numbered}

    def hear(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[object, ...], named: object, output: object) -> None:
            given = inputs[0] if len(inputs) == 1 and not named else None
            same = isinstance(given, Tensor) and isinstance(output, Tensor) and given.shape == output.shape
            calls[name].append(given.clone() if isinstance(given, Tensor) and same else None)

        return hook

    handles = [module.get_submodule(name).register_forward_hook(hear(name), with_kwargs=True) for name in numbered]
    pass_with_hooks(module, x, handles)
    found = [name for name in numbered if len(calls[name]) == 1 and _passes(module.get_submodule(name), calls[name][0])]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _passes(block: nn.Module, given: Tensor | None) -> bool:
    """Whether a block whose weights are all 0 returns its input."""
    if given is None or not any(isinstance(layer, _ConvNd | nn.Linear) for layer in block.modules()):
        return False
    empty = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.zero_()
        return torch.equal(empty(given), given)


def _least_missed(teacher: nn.Module, noise: Tensor, share: float, name: str) -> list[str]:
    """The blocks to leave out, so that about that share of those that can be remains; in the network's order."""
    names = droppable(teacher, noise)
    number = len(names) - math.floor(len(names) * share + 0.5)
    if not number:
        raise UserError(
            f"student.arguments.blocks={share}: {name} has {len(names)} block(s) that can be left out, of which none "
            "would be: give a smaller share, or none"
        )
    dropped: list[str] = []
    with torch.no_grad():
        expected = teacher(noise)
        for _ in range(number):
            changes = {}
            for candidate in (block for block in names if block not in dropped):
                shorter = copy.deepcopy(teacher)
                cutting.cut(shorter, {"kept": {}, "dropped": [*dropped, candidate]})
                changes[candidate] = (shorter(noise) - expected).abs().mean().item()
            dropped.append(min(changes, key=changes.__getitem__))
    return [block for block in names if block in dropped]


def _search(
    teacher: nn.Module,
    structure: Callable[[float], Structure],
    measure: Callable[[nn.Module], int],
    wanted: str,
    target: float,
) -> Structure:
    """The structure of the largest share of channels with which `measure` is at most `target` of the teacher's."""
    whole = measure(teacher)

    def at(share: float) -> tuple[Structure, float]:
        shape = structure(share)
        student = copy.deepcopy(teacher)
        cutting.cut(student, shape)
        return shape, measure(student) / whole

    low, high = 0.0, 1.0
    best, least = at(low)
    if least > target:
        raise UserError(
            f"student.arguments.{wanted}={target}: with one channel left inside every block {least:.2g} of the "
            f"teacher's {wanted} remain: give a larger share, or leave out blocks too (student.arguments.blocks)"
        )
    shape, share = at(high)
    if share <= target:
        return shape
    for _ in range(STEPS):
        middle = (low + high) / 2
        shape, share = at(middle)
        if share <= target:
            low, best = middle, shape
        else:
            high = middle
    return best
