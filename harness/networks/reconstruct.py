"""Least-squares reconstruction: fits the weights of pruned layers to the outputs of the unpruned layers.

    W, b <- argmin  sum over images and positions || y - W * x - b ||^2 + ridge ||W||^2

x are the inputs of the pruned layer in the student, y the outputs of the whole layer in the teacher, for the output
channels that are kept (He et al., Channel pruning, arXiv 1707.06168). Layers are fitted in forward order, each
on inputs from the layers fitted before it. b is added to the layer's bias, or if it has none to the next batch norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.algorithm.moments import NormLayer, wide
from harness.networks.layers import evaluating, pass_with_hooks

RIDGE = 1e-3
"""Ridge, as a share of the mean square of an input: it keeps the weights of nearly equal inputs small."""

Sum = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes."""


def reconstruct(
    teacher: nn.Module,
    student: nn.Module,
    kept: Mapping[str, Mapping[str, Sequence[int]]],
    batches: Sequence[Tensor],
    total: Sum = lambda sums: sums,
) -> list[str]:
    """Fits every layer of `student` whose inputs were cut, on images [B, C, H, W]; returns their names.

    `kept`: {layer: {"in" or "out": kept channels of the teacher's layer of that name}}. `batches` are this process's
    images; all processes must call this. Convolutions over groups and transposed ones stay as they are.
    """
    names = [name for name in _order(student, batches[0]) if "in" in kept.get(name, {})]
    norms = _norms(student, batches[0])
    with evaluating([teacher, student]):
        for name in names:
            outputs = kept[name].get("out")
            layer = student.get_submodule(name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            norm = norms.get(name)
            intercept = layer.bias is not None or norm is not None
            gram, moment = _normal_equations(teacher, student, name, outputs, batches, intercept)
            sums = total(torch.cat([gram, moment], 1))
            gram, moment = sums.split([gram.shape[1], moment.shape[1]], 1)
            solution = _solve(gram, moment, intercept)
            _assign(layer, norm, solution, intercept)
    return names


def _order(module: nn.Module, x: Tensor) -> list[str]:
    """The names of the layers that can be fitted, in the order of their first calls."""
    found: dict[str, None] = {}
    handles = []
    for name, layer in module.named_modules():
        plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
        if (plain and not isinstance(layer.padding, str)) or isinstance(layer, nn.Linear):
            handles.append(layer.register_forward_pre_hook(lambda *_, name=name: found.setdefault(name)))
    pass_with_hooks(module, x[:1], handles)
    return list(found)


def _norms(module: nn.Module, x: Tensor) -> dict[str, NormLayer]:
    """The batch norm that takes each layer's output, by the layer's name."""
    answers: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors alive, so that their ids stay unique
    found: dict[str, NormLayer] = {}

    def answered(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: answers.update({id(output): (name, output)})

    def taken(layer: NormLayer, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in answers:
            found[answers[id(inputs[0])][0]] = layer

    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, NormLayer) and layer.running_mean is not None:
            handles.append(layer.register_forward_pre_hook(taken))
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_hook(answered(name)))
    pass_with_hooks(module, x[:1], handles)
    return found


class _Reached(Exception):
    """Ends a forward pass that has reached the layer of interest."""


def _normal_equations(
    teacher: nn.Module, student: nn.Module, name: str, outputs: Sequence[int] | None, batches: Sequence[Tensor],
    intercept: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(X^T X [n, n], X^T Y [n, m]) in fp64 over this process's images; with an intercept, X has a column of ones."""
    seen: dict[str, Tensor] = {}

    def output(layer: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
        seen["y"] = answer
        raise _Reached

    def input_of(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["x"] = inputs[0]
        raise _Reached

    layer = student.get_submodule(name)
    hooks = [
        teacher.get_submodule(name).register_forward_hook(output),
        layer.register_forward_pre_hook(input_of),
    ]
    gram: Tensor | float = 0.0
    moment: Tensor | float = 0.0
    try:
        for batch in batches:
            for network in (teacher, student):
                with contextlib.suppress(_Reached):
                    network(batch)
            x, y = _rows(layer, seen["x"], intercept), _columns(layer, seen["y"], outputs)
            gram, moment = gram + (x.T @ x).double(), moment + (x.T @ y).double()
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(gram, Tensor) and isinstance(moment, Tensor)
    return gram, moment


def _rows(layer: nn.Module, x: Tensor, intercept: bool) -> Tensor:
    """The inputs that a layer's weight is multiplied with: [positions, inputs (x kernel)], fp32 or wider."""
    x = wide(x)
    if isinstance(layer, nn.Conv2d):
        patches: Any = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        rows = patches.transpose(1, 2).flatten(0, 1)
    else:
        rows = x.flatten(0, -2)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1) if intercept else rows


def _columns(layer: nn.Module, y: Tensor, outputs: Sequence[int] | None) -> Tensor:
    """A layer's outputs, [positions, kept outputs]."""
    y = wide(y)
    rows = (y.movedim(1, -1) if isinstance(layer, nn.Conv2d) else y).flatten(0, -2)
    return rows if outputs is None else rows[:, torch.tensor(list(outputs), device=rows.device)]


def _solve(gram: Tensor, moment: Tensor, intercept: bool) -> Tensor:
    """[n, m]; the intercept is not penalised."""
    weights = gram.diagonal()[:-1] if intercept else gram.diagonal()
    ridge = torch.full((len(gram),), RIDGE * weights.mean().item(), dtype=gram.dtype, device=gram.device)
    if intercept:
        ridge[-1] = 0
    solution: Tensor = torch.linalg.solve(gram + ridge.diag(), moment)
    return solution


@torch.no_grad()
def _assign(layer: nn.Conv2d | nn.Linear, norm: NormLayer | None, solution: Tensor, intercept: bool) -> None:
    weights = solution[:-1] if intercept else solution
    layer.weight.copy_(weights.T.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(solution[-1])
    elif norm is not None:
        assert norm.running_mean is not None
        norm.running_mean -= solution[-1].to(norm.running_mean.dtype)
