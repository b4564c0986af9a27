"""Player: a trained network with its optimiser, its learning-rate schedule and the engine that runs it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from harness.algorithm.moments import NormLayer
from harness.algorithm.turns import Answer, Terms
from harness.config import Optimizer
from harness.distributed.engines import Engine
from harness.errors import Diverged
from harness.networks.maps import NOTHING, answer
from harness.training.average import Average


class Health:
    """A latch on the device: once a loss or a gradient is not finite, no network is updated, and the message names it.

    Losses and gradient norms are global, so every process latches in the same turn.
    """

    def __init__(self, device: torch.device) -> None:
        self.raises = True  # an estimate goes on: only its time counts, and random weights may overflow
        self._names: list[str] = []
        self._indices: dict[tuple[str, ...], Tensor] = {}
        self._blame = torch.zeros((), dtype=torch.long, device=device)  # 0, or 1 + index of the first bad term

    def watch(self, player: str, terms: Terms) -> Tensor:
        """Takes in a turn's terms; returns 1.0 where updates have ended, else 0.0, as optimisers' `found_inf`."""
        names = tuple(f"{player}/{name}" for name in (*terms.values, "total"))
        return self._latch(names, torch.stack([*terms.values.values(), terms.total.detach()]))

    def watch_gradient(self, player: str, norm: Tensor) -> None:
        """Takes in the gradient norm of an update, a scalar; the engine skips one that is not finite."""
        self._latch((f"the gradient of {player} ({player}/gradient_norm)",), norm.view(1))

    def verify(self) -> None:
        """Raises Diverged, naming the term or the gradient, where one was not finite."""
        if (blame := int(self._blame)) and self.raises:
            raise Diverged(f"{self._names[blame - 1]} is not finite")

    def _latch(self, names: tuple[str, ...], values: Tensor) -> Tensor:
        bad = ~values.isfinite()
        first = self._index(names).take(bad.long().argmax())  # [...] would wait for the device
        self._blame = torch.where((self._blame == 0) & bad.any(), first, self._blame)
        if not self._blame.is_cuda:  # reading costs nothing here; elsewhere it waits for the log interval
            self.verify()
        return (self._blame != 0).float()

    def _index(self, names: tuple[str, ...]) -> Tensor:
        if names not in self._indices:
            start = len(self._names) + 1
            self._names.extend(names)
            self._indices[names] = torch.arange(start, start + len(names), device=self._blame.device)
        return self._indices[names]


class Player:
    """A network that is trained in its own turn; outside it, it is frozen and still normalises as in training."""

    def __init__(self, name: str, engine: Engine, settings: Optimizer, num_updates: int, health: Health) -> None:
        """`num_updates` is the length of the run in this player's updates: the schedule's horizon."""
        self.name = name
        self.engine = engine
        self.module = engine.module.train()
        self.settings = settings
        self.num_updates = num_updates
        self.updates = 0
        self.gradient_norm: Tensor | None = None  # of the last update, before clipping
        self.health = health
        self.average: Average | None = None  # of its weights, where it is the average that the run is for
        self.compared = NOTHING  # the layers whose outputs its terms compare
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.norms = [m for m in self.module.modules() if isinstance(m, NormLayer) and m.track_running_stats]
        self.moving: Sequence[str] = ()  # buffers, besides those of batch norm, that each forward writes to
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
        return self.engine(inputs)

    def answer(self, x: Tensor) -> Answer:
        """Forward in the player's own turn: logits, and the outputs of the layers that are compared."""
        return Answer(self(x)) if self.compared is NOTHING else answer(self, x, self.compared)

    def frozen_forward(self, inputs: Tensor) -> Tensor:
        """Forward in the turn of another network, past the engine, which synchronises gradients that it expects.

        Buffers that move in every forward in train mode (those of instance norm, of spectral norm) are copies here.
        """
        if self.moving:
            own = dict(self.module.named_buffers())
            copies = {name: own[name].clone() for name in self.moving}
            output: Tensor = functional_call(self.module, copies, (inputs,))
            return output
        return self.engine.frozen_forward(inputs)

    def averaged_forward(self, inputs: Tensor) -> Tensor:
        """`frozen_forward` with the average of its weights, where the run takes one."""
        return self.average.forward(inputs) if self.average else self.frozen_forward(inputs)

    def descend(self, terms: Terms) -> None:
        """One update along the gradient of `terms.total`, unless a loss or a gradient so far was not finite.

        Where a batch comes in parts, the last of them brings the update.
        """
        ended = self.health.watch(self.name, terms)
        if self.engine.backward(terms.total):
            self.gradient_norm = self.engine.step(self.learning_rate(), ended)
            self.health.watch_gradient(self.name, self.gradient_norm)
            self.updates += 1
            if self.average:
                self.average.update(self.updates)

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Takes these parameters and buffers instead of its own, as before a first update; every process has to call.

        Moments are set to 0, which is what optimisers begin with.
        """
        self.engine.load(weights, {name: value.zero_() for name, value in self.engine.moments().items()})
        if self.average:
            self.average.load(weights)

    def outcome(self) -> dict[str, Tensor]:
        """The weights that are evaluated and exported: the last ones or their average; every process has to call."""
        return self.average.weights() if self.average else self.engine.weights()

    def learning_rate(self, updates: int | None = None) -> float:
        """The schedule's rate after a number of updates; None: after those so far, which is the next update's."""
        done = self.updates if updates is None else updates
        return scheduled_rate(self.settings, done / self.num_updates)

    def _learn(self, learning: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad = learning
        for layer in self.norms:  # a training-mode layer that does not track uses the batch and leaves its buffers be
            layer.track_running_stats = learning


def scheduled_rate(settings: Optimizer, progress: float) -> float:
    """The learning rate at a fraction of the run in [0, 1)."""
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2
    if settings.schedule == "multistep":
        return settings.lr * settings.gamma ** bisect_right(settings.milestones, progress)
    return settings.lr
