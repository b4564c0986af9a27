"""The head of a network, outputs of its layers, evaluation mode, and its size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from harness.errors import UserError


def head(module: nn.Module, classes: int | None = None) -> nn.Module:
    """The layer that gives the logits; its input are the penultimate features.

    The last linear layer or convolution with as many outputs as there are `classes`; where there is none, or no number
    is given, the last linear layer, or else the last convolution.
    """
    return module.get_submodule(head_name(module, classes))


def head_name(module: nn.Module, classes: int | None = None) -> str:
    """The name of `head`'s layer."""
    outputs: dict[str, int] = {}
    linear: list[str] = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            outputs[name] = layer.out_features
            linear.append(name)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            outputs[name] = layer.out_channels
    if names := [name for name, count in outputs.items() if count == classes] or linear or list(outputs):
        return names[-1]
    raise UserError(f"{type(module).__name__} has neither a linear layer nor a convolution, so no penultimate features")


@contextmanager
def observe_features(module: nn.Module, classes: int | None = None) -> Iterator[list[Tensor]]:
    """Collects the penultimate features of every forward pass inside the context: [B, F] or [B, F, h, w].

    `classes` as for `head`.
    """
    found: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    handle = head(module, classes).register_forward_pre_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def observe_maps(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list with the latest output of each layer, [B, C, h, w] each, in the order of the layers."""
    found: list[Tensor] = [Tensor()] * len(layers)

    def hook(index: int, layer: nn.Module, inputs: object, output: Tensor) -> None:
        found[index] = output

    handles = [layer.register_forward_hook(partial(hook, index)) for index, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


UNCAST = "_original_forward"
"""The attribute in which Accelerate keeps a network's forward, where it gives the network one in autocast."""


@contextmanager
def evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Sets networks to eval mode without gradients inside the context, and restores them after it.

    A network that trains in autocast computes in the precision of its weights here, so that scores are those of the
    file that is written, whatever `precision` and the number of processes are.
    """
    modes = [(network, network.training, network.__dict__.get("forward")) for network in networks]
    try:
        for network, _, autocast in modes:
            network.eval()
            if autocast is not None and UNCAST in network.__dict__:
                network.forward = network.__dict__[UNCAST]
        with torch.no_grad():
            yield
    finally:
        for network, training, autocast in modes:
            network.train(training)
            if autocast is not None:
                network.forward = autocast


def pass_with_hooks(module: nn.Module, x: Tensor, handles: Sequence[RemovableHandle]) -> None:
    """Runs a network once in evaluation mode on images x, for hooks that are removed afterwards."""
    try:
        with evaluating([module]):
            module(x)
    finally:
        for handle in handles:
            handle.remove()


def num_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def num_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers: the size of a file with the weights."""
    return sum(values.numel() * values.element_size() for values in module.state_dict().values())


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-adds of the convolutions and matrix products for one of the images x [B, C, H, W]."""
    with evaluating([module]), FlopCounterMode(display=False) as counter:
        module(x)
    return int(counter.get_total_flops()) // 2 // len(x)
