"""Engines: what carries a trained network through its own turns. Here the ones that keep it whole on every process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.config import Optimizer
from harness.distributed.collectives import from_first


class Engine(Protocol):
    """What carries a network and its optimiser through the network's own turns, over one process or many."""

    module: nn.Module
    """The bare network."""
    frozen_forward: Callable[[Tensor], Tensor]
    """Its forward pass in the turns of other players; compiled where `speed.compile` is on."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward."""

    def backward(self, loss: Tensor) -> bool:
        """Adds the gradients of a micro-batch, averaged over processes; True where the batch is complete."""

    def step(self, learning_rate: float, ended: Tensor) -> Tensor:
        """One update, unless `ended` is 1 or the gradient is not finite; the gradients are freed.

        Returns the L2 norm of the gradient over all parameters and processes, a scalar: what `clip` bounds.
        """

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, unsharded, on the CPU; every process has to ask."""

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state as "PARAMETER/STATE", likewise."""

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Takes over what `weights` and `moments` gave, on this engine or another."""


class ReplicatedEngine:
    """One process, or DDP: Engine. `_wrapped` is the network, or the wrapper that synchronises its gradients."""

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        settings: Optimizer,
        micro_batches: int,
        compiled: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda module: module,
    ) -> None:
        """`compiled`: the network as it runs in the rounds of one process; several run it as it is."""
        self.module, self.settings, self.micro_batches = module, settings, micro_batches
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(self.parameters, settings)
        self._accelerator = accelerator
        with warnings.catch_warnings():  # Accelerate passes `broadcast_buffers` by the name it had in older torch
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._wrapped, _ = accelerator.prepare(module, self.optimizer)
        self.frozen_forward = compiled(module)
        self._forward = self.frozen_forward if self._wrapped is module else self._wrapped
        self._parts_done = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward; gradients of all but the last micro-batch stay on this process."""
        last = self._parts_done + 1 == self.micro_batches
        with nullcontext() if last else self._accelerator.no_sync(self._wrapped):
            return self._forward(inputs)

    def backward(self, loss: Tensor) -> bool:
        """Adds the gradients of a micro-batch's share of the loss; True where the batch is complete."""
        # Not through Accelerate, here and in `step`: it would look for packages on the disk at each call.
        (loss / self.micro_batches if self.micro_batches > 1 else loss).backward()
        self._parts_done = (self._parts_done + 1) % self.micro_batches
        return self._parts_done == 0

    def step(self, learning_rate: float, ended: Tensor) -> Tensor:
        """One update, unless `ended` is 1 or the gradient is not finite; returns the gradient's norm."""
        norm = total_norm(self.parameters)
        if self.settings.clip > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip, norm)
        update(self.optimizer, learning_rate, skips(ended, norm))
        return norm

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU; buffers are those of rank 0."""
        buffers = {name for name, _ in self.module.named_buffers()}
        state = self.module.state_dict()
        return {name: whole(from_first(value) if name in buffers else value) for name, value in state.items()}

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state as "PARAMETER/STATE", on the CPU."""
        return {
            f"{name}/{key}": whole(value)
            for name, parameter in self.module.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)  # SGD without momentum leaves None
        }

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Takes over what `weights` and `moments` of any engine gave."""
        self.module.load_state_dict(weights)
        for name, parameter in self.module.named_parameters():
            if state := under(moments, f"{name}/"):
                self.optimizer.state[parameter] = {key: like(parameter, value) for key, value in state.items()}


def whole(value: Tensor) -> Tensor:
    """A tensor as a checkpoint holds it."""
    return value.detach().contiguous().cpu()


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment on its parameter's device and in its memory format: fused optimisers walk both as one flat array."""
    if value.shape != parameter.shape:  # Adam's step counter
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], settings: Optimizer
) -> torch.optim.Optimizer:
    """The torch optimiser that settings name; fused, because only those can skip an update on the device."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    betas = (settings.betas[0], settings.betas[1])
    return torch.optim.Adam(parameters, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=True)


def update(optimizer: torch.optim.Optimizer, learning_rate: float, skip: Tensor) -> None:
    """One update of all parameter groups at one rate, unless `skip` is 1; the gradients are freed."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    step(optimizer, skip)


def step(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """One update at the rates that the groups have, unless `skip` is 1; the gradients are freed."""
    optimizer.found_inf = skip  # type: ignore[attr-defined]  # torch.amp's hook, which fused optimisers read
    optimizer.step()
    optimizer.zero_grad()


def skips(ended: Tensor, norm: Tensor) -> Tensor:
    """1.0 where `ended` is 1 or a gradient norm is not finite, else 0.0; the host does not wait for the device."""
    return ended.maximum((~norm.isfinite()).to(ended))


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm over all gradients that the parameters have, a scalar; 0 where none has one."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
