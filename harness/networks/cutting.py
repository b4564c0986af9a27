"""A pruned network as plain data: which indices of which layer's channels are kept, and which blocks are left out.

{"kept": {"layer1.0.conv1": {"out": [0, 2, ...]}, "layer1.0.conv2": {"in": [0, 2, ...]}, ...}, "dropped": ["layer2.3"]}

`cut` applies this to a network of the original shape with any weights: to derive a student from its teacher, and to
rebuild the student without the teacher's file. A layer's axis is "in" or "out"; where both
are one, as in a normalisation or a depthwise convolution, it is "out"; a parameter outside these layers has its axis by
number.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from harness.errors import UserError

Structure = Mapping[str, Any]
"""{"kept": {layer: {axis: kept indices, rising}}, "dropped": [block, ...]}."""

PER_CHANNEL: dict[type[nn.Module], str] = {
    _BatchNorm: "num_features",
    _InstanceNorm: "num_features",
    nn.GroupNorm: "num_channels",
    nn.LayerNorm: "normalized_shape",
    nn.PReLU: "num_parameters",
}
"""Layers with one value for each channel, and the attribute with their number of channels."""

SUPPORTED = (_ConvNd, nn.Linear, *PER_CHANNEL)


def size(layer: nn.Module | nn.Parameter, axis: str) -> int:
    """Number of channels of a layer's axis; raises ValueError for a layer that `cut` does not support."""
    if isinstance(layer, nn.Parameter):
        return layer.shape[int(axis)]
    if isinstance(layer, _ConvNd):
        return layer.in_channels if axis == "in" else layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features if axis == "in" else layer.out_features
    value = getattr(layer, _attribute(layer))
    if isinstance(value, tuple):
        if len(value) != 1:
            raise ValueError(f"it normalises over {list(value)}, not over channels alone")
        return int(value[0])
    return int(value)


def cut(module: nn.Module, structure: Structure) -> None:
    """Prunes a network to the structure, in place: it keeps the parameters and buffers of the kept indices.

    Raises UserError if the structure does not fit this network, which is then in an undefined state.
    """
    if not {"dropped", "kept"} <= set(structure):
        raise UserError("a pruned structure holds what is kept and what is dropped")
    for name in structure["dropped"]:
        _drop(module, name)
    for name, axes in structure["kept"].items():
        try:
            layer = find(module, name)
            _check(layer, axes)
            if isinstance(layer, nn.Parameter):
                owner, _, last = name.rpartition(".")
                for axis, kept in axes.items():
                    layer = nn.Parameter(_take(layer, int(axis), kept), layer.requires_grad)
                setattr(module.get_submodule(owner), last, layer)
            elif isinstance(layer, _ConvNd):
                _cut_convolution(layer, axes)
            elif isinstance(layer, nn.Linear):
                _cut_linear(layer, axes)
            else:
                _cut_vector(layer, axes["out"])
        except (AttributeError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"layer {name!r} does not fit the pruned structure: {error}") from None


def masked(module: nn.Module, structure: Structure) -> nn.Module:
    """A copy of the whole network with weights of 0 for inputs from the channels that `cut` would remove.

    Its outputs are those of the cut network if no layer normalises over channels.
    """
    whole = copy.deepcopy(module)
    for name in structure["dropped"]:
        _drop(whole, name)
    for name, axes in structure["kept"].items():
        layer = find(whole, name)
        if "in" not in axes or isinstance(layer, nn.Parameter):
            continue
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        groups = layer.groups if isinstance(layer, _ConvNd) else 1
        axis = 0 if isinstance(layer, _ConvNd) and layer.transposed else 1
        for part, local in zip(weight.data.chunk(groups), _parts(axes["in"], size(layer, "in"), groups), strict=True):
            mask = torch.zeros(part.shape[axis])
            mask[local] = 1
            part *= mask.view(-1, *[1] * (part.dim() - 1 - axis))
    return whole


def find(module: nn.Module, name: str) -> nn.Module | nn.Parameter:
    """The layer or the parameter of that name; AttributeError where there is none."""
    owner, _, last = name.rpartition(".")
    found = getattr(module.get_submodule(owner), last)
    if not isinstance(found, nn.Module | nn.Parameter):
        raise AttributeError(f"{type(found).__name__} is not a layer")
    return found


def depthwise(layer: nn.Module | nn.Parameter) -> bool:
    """Whether a layer is a depthwise convolution: its input and output have the same channels."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.out_channels == layer.in_channels


def _attribute(layer: nn.Module) -> str:
    for kind, name in PER_CHANNEL.items():
        if isinstance(layer, kind):
            return name
    raise ValueError(f"layers of type {type(layer).__name__} cannot be cut")


def _check(layer: nn.Module | nn.Parameter, axes: Mapping[str, Sequence[int]]) -> None:
    for axis, kept in axes.items():
        total = size(layer, axis)
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= total:
            raise ValueError(f"its axis {axis!r} has {total} channels, expected rising indices of some of them")


def _drop(module: nn.Module, name: str) -> None:
    try:
        training = module.get_submodule(name).training
    except AttributeError:
        raise UserError(f"block {name!r} does not fit the pruned structure: the network has no such block") from None
    module.set_submodule(name, nn.Identity().train(training))


def _parts(kept: Sequence[int], total: int, groups: int) -> list[list[int]]:
    """Kept indices of each group of a grouped convolution, relative to its first; all groups must keep equally many."""
    width = total // groups
    found = [[index - start for index in kept if start <= index < start + width] for start in range(0, total, width)]
    if len({len(part) for part in found}) != 1:
        raise ValueError(f"its {groups} groups would keep unequal numbers of channels")
    return found


def _cut_convolution(layer: _ConvNd, axes: Mapping[str, Sequence[int]]) -> None:
    if depthwise(layer):
        kept = axes["out"]
        _replace(layer, "weight", _take(layer.weight, 0, kept))
        layer.in_channels = layer.out_channels = layer.groups = len(kept)
    else:
        inputs, outputs = (axes.get(axis, range(size(layer, axis))) for axis in ("in", "out"))
        rows, columns = (inputs, outputs) if layer.transposed else (outputs, inputs)
        totals = [size(layer, axis) for axis in (("in", "out") if layer.transposed else ("out", "in"))]
        parts = [_parts(kept, total, layer.groups) for kept, total in zip((rows, columns), totals, strict=True)]
        pieces = zip(layer.weight.chunk(layer.groups), *parts, strict=True)
        _replace(layer, "weight", torch.cat([_take(_take(piece, 0, row), 1, column) for piece, row, column in pieces]))
        layer.in_channels, layer.out_channels, kept = len(inputs), len(outputs), outputs
    if layer.bias is not None:
        _replace(layer, "bias", _take(layer.bias, 0, kept))


def _cut_linear(layer: nn.Linear, axes: Mapping[str, Sequence[int]]) -> None:
    if "in" in axes:
        _replace(layer, "weight", _take(layer.weight, 1, axes["in"]))
        layer.in_features = len(axes["in"])
    if "out" in axes:
        _replace(layer, "weight", _take(layer.weight, 0, axes["out"]))
        layer.out_features = len(axes["out"])
        if layer.bias is not None:
            _replace(layer, "bias", _take(layer.bias, 0, axes["out"]))


def _cut_vector(layer: nn.Module, kept: Sequence[int]) -> None:
    attribute, total = _attribute(layer), size(layer, "out")
    if isinstance(layer, nn.GroupNorm):
        _parts(kept, total, layer.num_groups)
    owned = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    for name, values in owned:
        if values.shape == (total,):
            _replace(layer, name, _take(values, 0, kept))
    setattr(layer, attribute, (len(kept),) if isinstance(layer, nn.LayerNorm) else len(kept))


def _take(values: Tensor, axis: int, kept: Sequence[int]) -> Tensor:
    return values.detach().index_select(axis, torch.tensor(list(kept), device=values.device))


def _replace(layer: nn.Module, name: str, values: Tensor) -> None:
    old = getattr(layer, name)
    setattr(layer, name, nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values)
