"""Feature maps of two networks at the sizes they share: what attention transfer compares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.config import Config, image_shape
from harness.errors import UserError
from harness.networks import layers
from harness.networks.layers import evaluating

Size = tuple[int, int]


def shared(config: Config, teacher: nn.Module, student: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Layers of the teacher, and one for each of the student whose output has the same height and width.

    UserError where the two have no size in common.
    """
    x = torch.zeros(2, *image_shape(config))
    own, other = last_by_size(student, x), last_by_size(teacher, x)
    sizes = [size for size in other if size in own]
    if not sizes:
        raise UserError(
            f"student.attention={config.student.attention}: teacher.network={config.teacher.network!r} and "
            f"student.network={config.student.network!r} have no size of feature maps in common: set "
            "student.attention=0"
        )
    return [other[size] for size in sizes], [own[size] for size in sizes]


def last_by_size(module: nn.Module, x: Tensor) -> dict[Size, nn.Module]:
    """The layer that answers last at each (height, width) above 1x1, in the order in which the sizes first occur.

    Blocks count as layers; the head, what holds it and what follows it do not, nor what is called more than once.
    """
    head = layers.head_name(module)
    found: dict[Size, list[nn.Module]] = {}
    calls: dict[nn.Module, int] = {}

    def hook(layer: nn.Module, inputs: object, output: object) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        if isinstance(output, Tensor) and output.dim() == 4 and not calls.get(module.get_submodule(head)):
            height, width = output.shape[2:]
            found.setdefault((height, width), []).append(layer)

    handles = [layer.register_forward_hook(hook) for name, layer in module.named_modules() if not _holds(name, head)]
    handles.append(module.get_submodule(head).register_forward_hook(hook))
    try:
        with evaluating([module]):
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    once = {size: [layer for layer in layers if calls[layer] == 1] for size, layers in found.items() if max(size) > 1}
    return {size: layers[-1] for size, layers in once.items() if layers}


def _holds(name: str, head: str) -> bool:
    """Whether the layer of that name is the head or one that holds it."""
    return not name or name == head or head.startswith(f"{name}.")
