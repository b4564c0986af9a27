"""A run's moving parts, built from its configuration: the networks, the players, and one turn of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from harness import building, moments, networks
from harness import task as tasks
from harness.adversarial import generator_turn, student_turn, supervised_turn
from harness.config import Config, Optimizer, ever
from harness.data import TrainingBatches
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.latents import latents, mix, shard
from harness.methods import Turn
from harness.players import Health, Player
from harness.terms import Answer, Terms, settle


class Observed:
    """The frozen teacher as a function x -> Answer; it leaves no state behind."""

    def __init__(self, module: nn.Module, features: bool, moments: bool) -> None:
        """Which answers beside the logits the generator's terms need."""
        self.module, self.features, self.moments = module, features, moments

    def __call__(self, x: Tensor) -> Answer:
        """x [B, C, H, W] -> Answer; features and moments only where gradients flow, in the generator's turn."""
        if not torch.is_grad_enabled():
            return Answer(self.module(x))
        with ExitStack() as stack:
            found = stack.enter_context(moments.observe(self.module)) if self.moments else []
            features = stack.enter_context(networks.observe_features(self.module)) if self.features else []
            return Answer(self.module(x), features[-1] if features else None, found)


class Machine:
    """Everything that computes in a run; `play` is one turn."""

    def __init__(self, config: Config, runtime: Runtime, turns: list[Turn], teacher: nn.Module | None) -> None:
        """`teacher`: the network to learn from, with its weights; None where labels teach."""
        self.config, self.runtime, self.turns = config, runtime, turns
        self.health = Health(runtime.device)
        self.teacher = self._observed(teacher) if teacher else None
        self.student = self._player("student", building.student(config), config.student)
        self.generator = None
        if any(turn.source == "latents" for turn in turns):
            self.generator = self._player("generator", building.generator(config), config.generator)
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    @property
    def players(self) -> dict[str, Player]:
        """The trained networks by name."""
        return {player.name: player for player in (self.student, self.generator) if player}

    def play(self, round_index: int, turn_index: int) -> Terms:
        """One turn; every random draw in it is a function of (seed, round, turn, index)."""
        turn, place = self.turns[turn_index], (round_index, turn_index)
        torch.manual_seed(mix("dropout", self.config.seed, *place, self.runtime.rank))
        loss = partial(self._settle, turn, round_index)
        if turn.kind == "supervised":
            return supervised_turn(self.student, *self._real(*place), loss)
        assert self.teacher is not None
        if turn.kind == "generator":
            assert self.generator is not None
            return generator_turn(self.teacher, self.student, self.generator, self._latents(*place), loss)
        images = partial(self._invent, *place) if turn.source == "latents" else lambda: self._real(*place)[0]
        return student_turn(self.teacher, self.student, images, loss)

    def generate(self, count: int, *keys: int | str) -> Tensor:
        """Images x [count, C, H, W] from the generator as it stands, a function of its weights and the keys alone."""
        assert self.generator is not None
        z = latents(range(count), count, self.config.generator.latent_size, self.config.seed, *keys)
        with torch.no_grad():
            return self.generator.guest(z.to(self.runtime.device, self.runtime.dtype))

    def _settle(self, turn: Turn, round_index: int, *answers: Answer | Tensor) -> Terms:
        return settle(turn.terms(self.config, round_index, *answers), self.runtime.reduce)

    def _latents(self, round_index: int, turn_index: int) -> Tensor:
        total = self.config.batch_size
        rows = shard(total, self.runtime.rank, self.runtime.world_size)
        keys = (self.config.seed, "latents", round_index, turn_index)
        z = latents(rows, total, self.config.generator.latent_size, *keys)
        return z.to(self.runtime.device, self.runtime.dtype)

    def _invent(self, round_index: int, turn_index: int) -> Tensor:
        assert self.generator is not None
        return self.generator.guest(self._latents(round_index, turn_index))

    def _real(self, round_index: int, turn_index: int) -> tuple[Tensor, Tensor]:
        """The next batch of real images and labels; a resumed run takes the stream up where it stood."""
        if self._batches is None:
            data = tasks.load(self.config.task).dataset(self.config, "train", augment=True)
            stream = TrainingBatches(
                data, self.config.batch_size, self.config.seed, self.config.data.workers,
                self.runtime.rank, self.runtime.world_size,
            )  # fmt: skip
            self._batches = stream.batches(round_index * len(self.turns) + turn_index)
        x, labels = next(self._batches)
        return x.to(self.runtime.device, self.runtime.dtype), labels.to(self.runtime.device)

    def _player(self, name: str, module: nn.Module, settings: Optimizer) -> Player:
        learns = sum((turn.kind == "generator") == (name == "generator") for turn in self.turns)
        module = self.runtime.arrange(module)
        player = Player(name, module, settings, learns * self.config.rounds, self.health)
        player.start(self.runtime.engine(module, player.optimizer))
        return player

    def _observed(self, teacher: nn.Module) -> Observed:
        """What the generator's terms need is observed in the teacher; UserError where it cannot be had."""
        generates = any(turn.kind == "generator" for turn in self.turns)
        judged = generates and ever(self.config.weights.batch_norm)
        if judged and not moments.has_batch_norm(teacher):
            raise UserError(
                f"teacher.network={self.config.teacher.network!r} has no batch norm with running statistics to judge "
                "images by: set weights.batch_norm=0, or bring a teacher that has"
            )
        features = generates and ever(self.config.weights.activation)
        return Observed(self.runtime.place(teacher), features=features, moments=judged)
