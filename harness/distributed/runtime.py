"""The processes a run is spread over: the only place that knows Accelerate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from harness.config import Config
from harness.errors import UserError


@dataclass(frozen=True)
class AcceleratedEngine:
    """A prepared network and its optimiser: harness.players.Engine."""

    accelerator: Accelerator
    module: nn.Module
    optimizer: Any

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward, under autocast where the run's precision asks for it."""
        output: Tensor = self.module(inputs)
        return output

    def backward(self, loss: Tensor) -> None:
        """Gradients of the parameters that learn."""
        self.accelerator.backward(loss)

    def step(self) -> None:
        """One update; the gradients are freed."""
        self.optimizer.step()
        self.optimizer.zero_grad()


class Runtime:
    """Device, rank and world size, and what they do to networks and sums."""

    def __init__(self, config: Config) -> None:
        """Raises UserError where a launcher asks for more processes than the strategy runs on."""
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if asked > 1:  # before Accelerate waits for the others; each would go its own way
            raise UserError(
                f"WORLD_SIZE={asked}: distributed.strategy={config.distributed.strategy} runs on one process; "
                "start ddad without a launcher"
            )
        # Accelerate keeps one process-wide state and refuses another precision: a second run starts afresh.
        AcceleratorState._reset_state(True)
        self.accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no")
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """Index of this process, 0 writes files."""
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    def place(self, module: nn.Module) -> nn.Module:
        """A network that is not trained, frozen, on this process's device."""
        arranged = self.arrange(module.requires_grad_(False).eval())
        placed: nn.Module = self.accelerator.prepare_model(arranged, evaluation_mode=True)
        return placed

    def arrange(self, module: nn.Module) -> nn.Module:
        """A network on this process's device, in the run's precision and the memory format convolutions are fast in."""
        arranged: nn.Module = module.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        return arranged

    def engine(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> AcceleratedEngine:
        """The engine of a trained network; its parameters move to the device and stay the optimiser's."""
        prepared, wrapped = self.accelerator.prepare(module, optimizer)
        return AcceleratedEngine(self.accelerator, prepared, wrapped)

    def reduce(self, sums: Tensor) -> Tensor:
        """Sums over all processes, differentiably."""
        return sums
