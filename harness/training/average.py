"""The exponential average of a network's weights over its updates (decision 13).

The student's is evaluated and exported, the generator's makes the images of the student's turns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harness.distributed.collectives import from_first


class Average:
    """Weights and running statistics, a <- d a + (1 - d) w after update n with d = min(1 - 1/N, (1 + n) / (10 + n)).

    Polyak and Juditsky (1992) with exponential weights, over about the last N updates; the warm-up, without which the
    first weights would count for long, is TensorFlow's ExponentialMovingAverage's. The network has to be whole on
    every process.
    """

    def __init__(self, module: nn.Module, num_updates: float) -> None:
        """`num_updates` is N."""
        self.module, self.decay = module, 1 - 1 / max(1.0, num_updates)
        self._own = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self._average = {name: value.clone() for name, value in self._own.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Takes in the network as it is after so many updates."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self._average.values()), list(self._own.values()), 1 - decay)

    def forward(self, inputs: Tensor) -> Tensor:
        """The network with the averages of its parameters; to be called only while it normalises by the batch."""
        parameters = {name: self._average[name] for name, _ in self.module.named_parameters()}
        output: Tensor = functional_call(self.module, parameters, (inputs,))
        return output

    def weights(self) -> dict[str, Tensor]:
        """All of a state dict, averaged but for its counters; buffers are those of rank 0, every process has to ask."""
        parameters = {name for name, _ in self.module.named_parameters()}
        state = self.module.state_dict() | self._average
        return {name: value if name in parameters else from_first(value) for name, value in state.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, on the CPU; every process has to ask."""
        return {name: value.contiguous().cpu() for name, value in self.weights().items() if name in self._average}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` gave."""
        for name, value in self._average.items():
            value.copy_(tensors[name])
