"""Player: a trained network with its optimiser, its learning-rate schedule and the engine that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from harness import optimizers
from harness.config import Optimizer
from harness.errors import Diverged
from harness.moments import NormLayer
from harness.terms import Terms


class Engine(Protocol):
    """What carries a network through its own turn, over one process or many."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward."""

    def backward(self, loss: Tensor) -> None:
        """Gradients, averaged over processes."""

    def step(self) -> None:
        """One update, after which the gradients are gone."""


class Health:
    """A latch on the device: once a loss is not finite, nobody updates any more, and the term is named.

    Losses are global, so every process latches in the same turn.
    """

    def __init__(self, device: torch.device) -> None:
        self._names: list[str] = []
        self._indices: dict[tuple[str, ...], Tensor] = {}
        self._blame = torch.zeros((), dtype=torch.long, device=device)  # 0, or 1 + index of the first bad term

    def watch(self, player: str, terms: Terms) -> Tensor:
        """Takes in a turn's terms; returns 1.0 where updates have ended, else 0.0, as optimisers' `found_inf`."""
        bad = ~torch.stack([*terms.values.values(), terms.total.detach()]).isfinite()
        first = self._index(player, (*terms.values, "total"))[bad.long().argmax()]
        self._blame = torch.where((self._blame == 0) & bad.any(), first, self._blame)
        if not self._blame.is_cuda:  # reading costs nothing here; elsewhere it waits for the log interval
            self.verify()
        return (self._blame != 0).float()

    def verify(self) -> None:
        """Raises Diverged, naming the term, when a loss was not finite."""
        if blame := int(self._blame):
            raise Diverged(f"{self._names[blame - 1]} is not finite")

    def _index(self, player: str, names: tuple[str, ...]) -> Tensor:
        full = tuple(f"{player}/{name}" for name in names)
        if full not in self._indices:
            start = len(self._names) + 1
            self._names.extend(full)
            self._indices[full] = torch.arange(start, start + len(full), device=self._blame.device)
        return self._indices[full]


class Player:
    """A network that learns in its own turn and is frozen, but still normalises as in training, outside it."""

    def __init__(self, name: str, module: nn.Module, settings: Optimizer, num_updates: int, health: Health) -> None:
        """`num_updates` is the length of the run in this player's updates: the schedule's horizon."""
        self.name = name
        self.module = module.train()
        self.settings = settings
        self.num_updates = num_updates
        self.updates = 0
        self.health = health
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.norms = [layer for layer in module.modules() if isinstance(layer, NormLayer) and layer.track_running_stats]
        self.optimizer = optimizers.build(self.parameters, settings)
        self.engine: Engine | None = None

    def start(self, engine: Engine) -> None:
        """Takes the engine that wraps the network, and freezes the network until its first turn."""
        self.engine = engine
        self._learn(False)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, this network's parameters take gradients and its running statistics move."""
        self._learn(True)
        try:
            yield
        finally:
            self._learn(False)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward in the player's own turn."""
        assert self.engine is not None
        return self.engine(inputs)

    def guest(self, inputs: Tensor) -> Tensor:
        """Forward in someone else's turn: the bare network, because engines expect to be the one that learns."""
        output: Tensor = self.module(inputs)
        return output

    def descend(self, terms: Terms) -> None:
        """One update along the gradient of `terms.total`, unless a loss so far was not finite."""
        assert self.engine is not None
        self.optimizer.found_inf = self.health.watch(self.name, terms)  # type: ignore[attr-defined]  # torch.amp's hook
        self.engine.backward(terms.total)
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = optimizers.learning_rate(self.settings, self.updates / self.num_updates)
        self.engine.step()
        self.updates += 1

    def _learn(self, learning: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad = learning
        for layer in self.norms:  # a training-mode layer that does not track uses the batch and leaves its buffers be
            layer.track_running_stats = learning
