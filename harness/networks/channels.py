"""The channels of a network that can be removed together, found by tracing it with torch-pruning's dependency graph.

A group is a layer's output channels with all that depends on them: its normalisation and the inputs of the layers
that follow. The tracer's groups are checked: a group is used only if removing half of its channels gives the same
outputs as setting the weights for these channels in the next layers to 0.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning.ops import OPTYPE

from harness.errors import UserError, one_line
from harness.networks import cutting, layers
from harness.networks.cutting import Structure

TOLERANCE = 1e-3
"""Tolerance of that check, as a share of the largest output: rounding."""


@dataclass(frozen=True)
class Group:
    """Channels that are removed together."""

    name: str
    """The layer whose outputs they are."""
    size: int
    """Number of channels."""
    parts: int
    """Number of equal parts; each keeps the same number of channels: the groups of grouped convolutions."""
    importance: Tensor
    """[size]: group L2 importance, the mean over all layers of the sum of squared weights (arXiv 2301.12900)."""
    touched: dict[tuple[str, str], list[tuple[int, int]]]
    """{(layer, axis): pairs (index along that axis, channel in 0 .. `size` - 1)}."""
    operations: frozenset[str]
    """Operations between the layers, by autograd's names."""
    side: float
    """Side of the layer's output, as the square root of its number of positions."""

    def kept(self, share: float) -> set[int]:
        """The share (1 at most) of most important channels, at least one of each part; ties keep the first."""
        width = self.size // self.parts
        number = max(1, math.floor(width * min(share, 1.0) + 0.5))
        found: set[int] = set()
        for part in self.importance.view(self.parts, width):
            order = part.argsort(descending=True, stable=True)[:number]
            found |= {len(found) // number * width + index for index in order.tolist()}
        return found


def find(module: nn.Module, x: Tensor, name: str) -> list[Group]:
    """Every group of channels inside blocks, in the order of the layers; `module` is in eval mode and unchanged.

    Left out are the residual stream (inputs of operations on the outputs of several layers, except products), the
    logits, and channels whose removal changes the other outputs. `x` [B, C, H, W], B at least 2, are images.
    Raises UserError with the reason where the network, `name` in messages, cannot be traced or nothing is left.
    """
    traced = copy.deepcopy(module).requires_grad_(True)
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            graph.build_dependency(traced, x, forward_fn=_answer, verbose=False)
            candidates = list(_candidates(traced, graph, _sides(module, x)))
    except Exception as error:  # the network's own code or the tracer may raise anything
        raise UserError(
            f"{name} cannot be traced for pruning ({type(error).__name__}: {one_line(error)}): name a smaller network "
            "as student.network"
        ) from None
    if not candidates:
        raise UserError(
            f"{name} cannot be pruned: it has no layer inside a block, only those that make the logits or the residual "
            "stream: name a smaller network as student.network"
        )
    found = _sound(module, candidates, x)
    if not found or (problem := _problem(module, structure(module, found, even(0.5)), x)):
        first = candidates[0]
        problem = problem if found else _problem(module, structure(module, [first], even(0.5)), x)
        raise UserError(
            f"{name} cannot be pruned: the tracer does not follow its channels through "
            f"{', '.join(sorted(first.operations)) or 'its layers'} (layer {first.name!r}: {problem}): name a smaller "
            "network as student.network"
        )
    return found


def _answer(module: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = module(x)
    if logits.grad_fn is None:
        raise ValueError("its output has no gradient, as under torch.no_grad()")
    return logits


def _sound(module: nn.Module, groups: Sequence[Group], x: Tensor) -> list[Group]:
    """The groups that pass the check of `_problem`; all at once first, then each half."""
    if not groups or _problem(module, structure(module, groups, even(0.5)), x) is None:
        return list(groups)
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    return _sound(module, groups[:half], x) + _sound(module, groups[half:], x)


def structure(
    module: nn.Module, groups: Sequence[Group], share: Callable[[Group], float], dropped: Sequence[str] = ()
) -> Structure:
    """The structure that keeps that share of each group and leaves out the blocks `dropped`."""
    removed: dict[tuple[str, str], set[int]] = {}
    for group in groups:
        kept = group.kept(share(group))
        for axis_of_layer, pairs in group.touched.items():
            removed.setdefault(axis_of_layer, set()).update(index for index, channel in pairs if channel not in kept)
    found: dict[str, dict[str, list[int]]] = {}
    for (layer, axis), indices in removed.items():
        if indices:
            total = cutting.size(cutting.find(module, layer), axis)
            found.setdefault(layer, {})[axis] = [index for index in range(total) if index not in indices]
    return {"kept": found, "dropped": list(dropped)}


def even(share: float) -> Callable[[Group], float]:
    """The same share of every group."""
    return lambda group: share


def wider_where_smaller(groups: Sequence[Group], share: float) -> Callable[[Group], float]:
    """`share` of the groups with the largest outputs, and twice as much of those with outputs of half the side."""
    largest = max(group.side for group in groups)
    return lambda group: share * largest / group.side


def _sides(module: nn.Module, x: Tensor) -> dict[str, float]:
    """The square root of the number of output positions for one image, by the layer's name."""
    found: dict[str, float] = {}

    def hear(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = math.sqrt(output[0].numel() / cutting.size(layer, "out"))

        return hook

    made = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, _ConvNd | nn.Linear)]
    layers.pass_with_hooks(module, x, [layer.register_forward_hook(hear(name)) for name, layer in made])
    return found


def _candidates(module: nn.Module, graph: Any, sides: Mapping[str, float]) -> Iterator[Group]:
    """The tracer's groups inside blocks; `sides` by the name of the layer that makes them."""
    names: dict[Any, str] = {layer: name for name, layer in module.named_modules()}
    names |= {parameter: name for name, parameter in module.named_parameters()}
    seen: set[Any] = set()
    for layer, name in names.items():
        makes = isinstance(layer, _ConvNd | nn.Linear) and not cutting.depthwise(layer)
        if not makes or layer in seen or layer not in graph.module2node:
            continue
        pruner, total = graph.get_pruner_of_module(layer), cutting.size(layer, "out")
        # one channel is enough to detect the residual stream, whose group may be large
        for channels in ([0], list(range(total))):
            traced = graph.get_pruning_group(layer, pruner.prune_out_channels, channels)
            made = {item.dep.target for item in traced if _axis(graph, item.dep) == "out"}
            seen |= {node.module for node in made}
            if stream := any(_joins(node) or not node.outputs for node in made):
                break
        parts = math.lcm(*(_parts(item.dep.layer) for item in traced))
        touched = _touched(graph, traced, names)
        if stream or touched is None or total < 2 or total % parts:
            continue
        try:
            importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)(traced)
        except (IndexError, RuntimeError):  # not supported for some grouped convolutions
            continue
        operations = frozenset(filter(None, (_operation(item.dep.target) for item in traced)))
        yield Group(name, total, parts, importance.float(), touched, operations, sides[name])


def _axis(graph: Any, dependency: Any) -> str:
    """The axis of its layer that a dependency prunes; "out" if input and output have the same channels."""
    pruner, handler = graph.get_pruner_of_module(dependency.layer), dependency.pruning_fn
    return "in" if handler == pruner.prune_in_channels != pruner.prune_out_channels else "out"


def _touched(graph: Any, traced: Any, names: dict[Any, str]) -> dict[tuple[str, str], list[tuple[int, int]]] | None:
    """`Group.touched` of a traced group; None if it has a layer that cannot be cut."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for item in traced:
        layer = item.dep.layer
        if layer not in names or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            continue
        if not isinstance(layer, (nn.Parameter, *cutting.SUPPORTED)) or None in item.root_idxs:
            return None
        axis = str(item.dep.target.pruning_dim) if isinstance(layer, nn.Parameter) else _axis(graph, item.dep)
        found[names[layer], axis] = list(zip(item.idxs, item.root_idxs, strict=True))
    return found


def _parts(layer: Any) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return layer.groups if isinstance(layer, _ConvNd) and not cutting.depthwise(layer) else 1


def _joins(node: Any) -> bool:
    """Whether an elementwise operation, except a product, has the outputs of several layers as inputs."""
    several = sum(bool(source.inputs) or isinstance(source.module, cutting.SUPPORTED) for source in node.inputs) > 1
    return several and node.type == OPTYPE.ELEMENTWISE and "Mul" not in str(node.module)


def _operation(node: Any) -> str | None:
    """The name of an operation that is not a layer, such as "PermuteBackward0"."""
    return node.grad_fn.name() if node.type in (OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE) else None


def _problem(module: nn.Module, shape: Structure, x: Tensor) -> str | None:
    """What is wrong with a structure that the tracer found, or None.

    The cut network must have the outputs of the masked one, up to rounding, and must run in training mode.
    Normalisations over channels depend on their number and are replaced by the identity in both.
    """
    try:
        cut, masked = copy.deepcopy(module), cutting.masked(module, shape)
        cutting.cut(cut, shape)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(cut).train()(x)
            for name in shape["kept"]:
                if isinstance(cutting.find(cut, name), nn.GroupNorm | nn.LayerNorm):
                    cut.set_submodule(name, nn.Identity())
                    masked.set_submodule(name, nn.Identity())
            found, expected = cut(x), masked(x)
    except Exception as error:  # layers raise many types for a wrong shape
        return " ".join(str(error).split())[:200]
    if found.shape != expected.shape:
        return f"its logits would be {list(found.shape)} instead of {list(expected.shape)}"
    close = torch.allclose(found, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())
    return None if close else "without these channels its other outputs change"
