"""A run's moving parts, built from its configuration: the networks, the players, and one turn of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from harness import generators, moments, networks
from harness import task as tasks
from harness.adversarial import generator_turn, student_turn, supervised_turn
from harness.config import Config, Optimizer, ever, image_shape
from harness.data import TrainingBatches
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.evaluate import evaluating
from harness.latents import latents, mix, shard
from harness.methods import Turn
from harness.players import Health, Player
from harness.resolve import UNTRAINED
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
        if teacher:
            check_fit(f"teacher.network={config.teacher.network}", teacher, config)
        self.teacher = _observed(config, runtime, teacher) if teacher else None
        task = tasks.load(config.task)
        shape = image_shape(config)
        with seeded(config.seed, "student"):
            spec = config.student
            module = networks.build(task, spec.network, config.classes, shape[0], spec.arguments)
        check_fit(f"student.network={spec.network}", module, config)
        self.student = self._player("student", module, config.student)
        self.generator = None
        if any(turn.source == "latents" for turn in turns):
            with seeded(config.seed, "generator"):
                module = build_generator(config)
            self.generator = self._player("generator", module, config.generator)
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


def build_teacher(config: Config) -> nn.Module:
    """The teacher with its weights; UserError where the file is missing or does not fit the network."""
    spec = config.teacher
    assert spec.checkpoint is not None
    with seeded(config.seed, "teacher"):
        module = networks.build(
            tasks.load(config.task), spec.network, config.classes, image_shape(config)[0], spec.arguments
        )
    if spec.checkpoint != UNTRAINED:
        networks.load_weights(module, Path(spec.checkpoint), f"teacher.network={spec.network}")
    return module


def check_fit(name: str, module: nn.Module, config: Config) -> None:
    """UserError unless a network takes images [B, C, H, W] of the run's size and answers with logits [B, K, ...]."""
    given, expected = [2, *image_shape(config)], [2, config.classes]
    with evaluating([module]):
        try:
            answer: object = module(torch.zeros(given))
        except Exception as error:  # whatever a layer raises over a shape
            reason = " ".join(str(error).split())
            raise UserError(f"{name} cannot take images {given}, which follow from input.size: {reason}") from None
    if not isinstance(answer, Tensor):
        raise UserError(f"{name} answers with a {type(answer).__name__}, expected logits {expected}")
    if list(answer.shape[:2]) != expected:
        raise UserError(
            f"{name} answers with {list(answer.shape)}, expected logits {expected} of {expected[1]} classes"
        )


def build_generator(config: Config) -> nn.Module:
    """The generator with fresh weights; UserError where it cannot make images of the input size."""
    spec = config.generator
    try:
        return generators.build(spec.network, spec.latent_size, image_shape(config), spec.width)
    except ValueError as error:
        raise UserError(str(error)) from None


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Inside, torch's global generator starts from the keys; outside it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(*keys))
        yield


def _observed(config: Config, runtime: Runtime, teacher: nn.Module) -> Observed:
    weights = config.weights
    if ever(weights.batch_norm) and not moments.has_batch_norm(teacher):
        raise UserError(
            f"teacher.network={config.teacher.network!r} has no batch norm with running statistics to judge images by: "
            "set weights.batch_norm=0, or bring a teacher that has"
        )
    return Observed(runtime.place(teacher), features=ever(weights.activation), moments=ever(weights.batch_norm))
