"""A run's moving parts, built from its configuration: the networks, the players, and one turn of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Networks:
    """The networks as they stand, whole and without engines, for evaluation, pictures and export."""

    teacher: nn.Module | None
    student: nn.Module
    generator: nn.Module | None
    config: Config
    runtime: Runtime

    def generate(self, count: int, *keys: int | str) -> Tensor:
        """Images x [count, C, H, W] from the generator, a function of its weights and the keys alone."""
        assert self.generator is not None
        z = latents(range(count), count, self.config.generator.latent_size, self.config.seed, *keys)
        with torch.no_grad():
            images: Tensor = self.generator(z.to(self.runtime.device, self.runtime.dtype))
            return images


class Machine:
    """Everything that computes in a run; `play` is one turn."""

    def __init__(self, config: Config, runtime: Runtime, turns: list[Turn], teacher: nn.Module | None) -> None:
        """`teacher`: the network to learn from, with its weights; None where labels teach."""
        self.config, self.runtime, self.turns = config, runtime, turns
        self.health = Health(runtime.device)
        modules = runtime.together(lambda: {name: build(config) for name, build in self._trained().items()})
        self.teacher = self._observed(teacher) if teacher else None
        self.players = {name: self._player(name, module) for name, module in modules.items()}
        self.student, self.generator = self.players["student"], self.players.get("generator")
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    def play(self, round_index: int, turn_index: int, part: int = 0) -> Terms:
        """One turn on one micro-batch; every random draw in it is a function of (seed, round, turn, part, index)."""
        turn, place = self.turns[turn_index], (round_index, turn_index)
        shard_index = part * self.runtime.world_size + self.runtime.rank
        torch.manual_seed(mix("dropout", self.config.seed, *place, shard_index))
        loss = partial(self._settle, turn, round_index)
        if turn.kind == "supervised":
            return supervised_turn(self.student, *self._real(*place, part), loss)
        assert self.teacher is not None
        if turn.kind == "generator":
            assert self.generator is not None
            return generator_turn(self.teacher, self.student, self.generator, self._latents(*place, part), loss)
        invents = turn.source == "latents"
        images = partial(self._invent, *place, part) if invents else lambda: self._real(*place, part)[0]
        return student_turn(self.teacher, self.student, images, loss)

    def networks(self) -> Networks:
        """The networks as they stand. Every process has to ask; with several, trained ones are copies."""
        whole = {name: self._whole(player, self._trained()[name]) for name, player in self.players.items()}
        return Networks(self._whole_teacher(), whole["student"], whole.get("generator"), self.config, self.runtime)

    def _trained(self) -> dict[str, Callable[[Config], nn.Module]]:
        """What builds each of the networks that are trained."""
        generates = any(turn.source == "latents" for turn in self.turns)
        found: dict[str, Callable[[Config], nn.Module]] = {"student": building.student}
        return found | ({"generator": building.generator} if generates else {})

    def _whole(self, player: Player, build: Callable[[Config], nn.Module]) -> nn.Module:
        """A player's network for use by one process alone: its own layers may need all processes at once."""
        if self.runtime.world_size == 1:
            return player.module
        module = self.runtime.arrange(build(self.config)).train()
        module.load_state_dict(player.engine.weights())
        return module

    def _whole_teacher(self) -> nn.Module | None:
        """The teacher for use by one process alone; where it is in shards, built once more while it is needed."""
        if self.teacher is None or not self.runtime.shards_teacher:
            return self.teacher.module if self.teacher else None
        return self.runtime.place(self.runtime.together(lambda: building.teacher(self.config)))

    def _settle(self, turn: Turn, round_index: int, *answers: Answer | Tensor) -> Terms:
        return settle(turn.terms(self.config, round_index, *answers), self.runtime.reduce)

    def _latents(self, round_index: int, turn_index: int, part: int) -> Tensor:
        total, size = self.config.batch_size, self.config.batch_size // self.config.micro_batches
        own = shard(size, self.runtime.rank, self.runtime.world_size)
        rows = range(part * size + own.start, part * size + own.stop)
        keys = (self.config.seed, "latents", round_index, turn_index)
        z = latents(rows, total, self.config.generator.latent_size, *keys)
        return z.to(self.runtime.device, self.runtime.dtype)

    def _invent(self, round_index: int, turn_index: int, part: int) -> Tensor:
        assert self.generator is not None
        return self.generator.guest(self._latents(round_index, turn_index, part))

    def _real(self, round_index: int, turn_index: int, part: int) -> tuple[Tensor, Tensor]:
        """The next batch of real images and labels; a resumed run takes the stream up where it stood."""
        if self._batches is None:
            data = tasks.load(self.config.task).dataset(self.config, "train", augment=True)
            parts = self.config.micro_batches
            stream = TrainingBatches(
                data, self.config.batch_size // parts, self.config.seed, self.config.data.workers,
                self.runtime.rank, self.runtime.world_size,
            )  # fmt: skip
            self._batches = stream.batches((round_index * len(self.turns) + turn_index) * parts + part)
        x, labels = next(self._batches)
        return x.to(self.runtime.device, self.runtime.dtype), labels.to(self.runtime.device)

    def _player(self, name: str, module: nn.Module) -> Player:
        settings: Optimizer = getattr(self.config, name)
        learns = sum((turn.kind == "generator") == (name == "generator") for turn in self.turns)
        engine = self.runtime.engine(name, module, settings)
        return Player(name, engine, settings, learns * self.config.rounds, self.health)

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
        placed = self.runtime.place_teacher(teacher, judges=generates)
        return Observed(placed, features=features, moments=judged)
