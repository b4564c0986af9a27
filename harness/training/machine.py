"""Networks, players and image sources of a run, built from its configuration; one turn of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from harness.algorithm.latents import mix, seed_dropout
from harness.algorithm.turns import Terms, combine, generator_turn, student_turn
from harness.config import PRUNED, Config, Optimizer
from harness.distributed.runtime import Runtime
from harness.methods import Turn
from harness.networks import fit, maps, roles, start
from harness.networks.cutting import Structure
from harness.networks.given import NOTHING, Given
from harness.networks.reconstruct import reconstruct
from harness.training import doubts, inversion
from harness.training.average import Average
from harness.training.players import Health, Player
from harness.training.pool import Pool
from harness.training.sources import Sources, class_centres, drawn
from harness.training.teacher import build as build_teacher


@dataclass(frozen=True)
class Networks:
    """The current networks, unsharded and without engines, for evaluation, pictures and export."""

    teacher: nn.Module | None
    student: nn.Module
    generator: nn.Module | None
    config: Config
    runtime: Runtime
    pool: Pool | None = None

    @property
    def generates(self) -> bool:
        """Whether `generate` can return images: there is a generator, or a pool that is not empty."""
        return self.generator is not None or bool(self.pool and self.pool.filled)

    def generate(self, count: int, *keys: int | str) -> Tensor:
        """Images x [count, C, H, W] from the generator, or from the pool; the keys seed the draws."""
        if self.generator is None:
            assert self.pool
            return self.pool.sample(count, *keys)
        z, _ = drawn(self.config, class_centres(self.config), range(count), count, *keys)
        with torch.no_grad():
            images: Tensor = self.generator(z.to(self.runtime.device, self.runtime.dtype))
            return images


class Machine:
    """All networks of a run with their optimisers and image sources; `play` is one turn."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        turns: list[Turn],
        teacher: nn.Module | None,
        structure: Structure | None = None,
        given: Given = NOTHING,
    ) -> None:
        """`teacher`: the teacher with its weights; None if the targets are labels. `given`: modules from Python.

        `structure`: that of a pruned student, if it is known; else rank 0 determines it for all processes.
        """
        self.config, self.runtime, self.turns, self.given = config, runtime, turns, given
        self.health = Health(runtime.device)
        if config.student.network == PRUNED and structure is None and teacher:
            structure = runtime.first(lambda: roles.pruned(config, teacher))
        self.structure = structure
        self.start = runtime.together(lambda: start.begin(config, teacher, structure, given.source("student")))
        modules = {"student": self.start.module}
        if "generator" in self._trained():
            modules["generator"] = runtime.together(lambda: roles.generator(config))
        generates = any(turn.kind == "generator" for turn in turns)
        moving = runtime.together(partial(self._check_passes, teacher if generates else None, generates))
        theirs = own = maps.NOTHING
        if teacher:
            theirs, own = maps.compared(config, teacher, self.start.module, self.start.blocks)
        self.doubts = [*(doubts.of_settings(config) if teacher else []), *maps.doubt(config, self.start.module, own)]
        """Lines for people about settings that may not be what was meant."""
        self.teacher = build_teacher(config, runtime, teacher, generates, theirs) if teacher else None
        self.players = {name: self._player(name, module) for name, module in modules.items()}
        self.student, self.generator = self.players["student"], self.players.get("generator")
        self.student.compared, self.student.moving = own, moving
        for name, player in self.players.items():
            if share := getattr(config, name).average:
                player.average = Average(player.module, share * player.num_updates)
        self.sources = Sources(config, runtime, turns, self.generator, self.teacher)
        self.doubts += self.sources.pool.doubts if self.sources.pool else []
        self.inversion = inversion.build(config, runtime, turns, self.teacher, self.student, self.sources.pool)
        if self.inversion:
            self.generator = self.players["generator"] = self.inversion.player

    def _check_passes(self, teacher: nn.Module | None, generates: bool) -> list[str]:
        """UserError where a network does not answer in training, or a gradient that a turn needs is cut off in it.

        `teacher`: one that judges images. Returns the buffers of the student that move in train mode (`fit`).
        """
        student, module = f"student.network={self.config.student.network}", self.start.module
        moving = fit.check_training(student, module, self.config)
        fit.check_gradients(student, module, self.config, generates, weights=True)
        if teacher:
            name = f"teacher.network={self.config.teacher.network}"
            fit.check_gradients(name, teacher, self.config, images=True, weights=False)
        return moving

    def play(self, round_index: int, turn_index: int, part: int = 0) -> Terms:
        """One turn on one micro-batch; every random draw in it is a function of (seed, round, turn, part, index)."""
        if (turn_index, part) == (0, 0) and not self.inversion and roles.restarts(self.config, round_index):
            assert self.generator
            self.generator.begin_from(roles.generator(self.config, round_index).state_dict())
        turn, where = self.turns[turn_index], (round_index, turn_index, part)
        rank_index = part * self.runtime.world_size + self.runtime.rank
        seed_dropout(self.runtime.device, mix("dropout", self.config.seed, round_index, turn_index, rank_index))
        loss = partial(self._loss, turn, round_index)
        if turn.kind == "supervised":
            x, labels = self.sources.real(*where)
            return student_turn(self.student, x, labels, loss)
        if turn.kind == "student":
            return student_turn(self.student, *self.sources.lesson(*where), loss)
        assert self.teacher is not None
        if self.inversion:
            return self.inversion.play(*where, loss)
        assert self.generator is not None
        z, y = self.sources.latents(*where)
        view = partial(self.sources.judged, *where)
        return generator_turn(
            self.teacher.judge, self.student, self.generator, z, lambda t, s, x: loss(t, s, x, y), view
        )

    @property
    def num_preparations(self) -> int:
        """Steps before the first round: the generator's warm-up rounds, and the reconstruction of a pruned student."""
        return self.config.generator.warmup + bool(self.structure and self.config.student.reconstruct)

    def prepare(self, step: int) -> None:
        """A step before the first round. Warm-up rounds have numbers up to -1; they train only the generator."""
        if step == self.config.generator.warmup:
            self._reconstruct()
            return
        for turn_index, turn in enumerate(self.turns):
            for part in range(self.config.micro_batches) if turn.kind == "generator" else ():
                self.play(step - self.config.generator.warmup, turn_index, part)

    def _reconstruct(self) -> None:
        """Fits the layers of a pruned student on images of the generator, and loads the result into the student."""
        assert self.structure and self.teacher and self.generator
        teacher, student = self._whole_teacher(), self._whole(self.student, self._trained()["student"])
        assert teacher is not None
        batches = [self.sources.images("reconstruct", index) for index in range(self.config.student.reconstruct)]
        with torch.no_grad():
            reconstruct(teacher, student, self.structure["kept"], batches, self.runtime.total)
        self.student.begin_from(student.state_dict())

    def networks(self) -> Networks:
        """The current networks; with several processes, trained ones are copies. All processes must call this."""
        whole = {name: self._whole(self.players[name], build) for name, build in self._trained().items()}
        found = (self._whole_teacher(), whole["student"], whole.get("generator"))
        return Networks(*found, self.config, self.runtime, self.sources.pool)

    def _trained(self) -> dict[str, Callable[[Config], nn.Module]]:
        """The function that builds each trained network, by name."""
        generates = any(turn.source == "latents" for turn in self.turns)
        source = self.given.student_source(self.config)
        student = partial(roles.student, structure=self.structure, source=source)
        found: dict[str, Callable[[Config], nn.Module]] = {"student": student}
        return found | ({"generator": roles.generator} if generates else {})

    def _whole(self, player: Player, build: Callable[[Config], nn.Module]) -> nn.Module:
        """A copy of a player's network with its final weights and without collective layers, for use on one process."""
        if self.runtime.world_size == 1 and not player.average:
            return player.module
        module = self.runtime.arrange(build(self.config)).train()
        module.load_state_dict(player.outcome())
        return module

    def _whole_teacher(self) -> nn.Module | None:
        """The teacher for use on one process; a sharded teacher is built again."""
        if self.teacher is None or not self.runtime.shards_teacher:
            return self.teacher.module if self.teacher else None
        build = partial(roles.teacher, self.config, source=self.given.source("teacher"))
        return self.runtime.prepare_frozen(self.runtime.together(build))

    def _loss(self, turn: Turn, round_index: int, *answers: object) -> Terms:
        return combine(turn.terms(self.config, round_index, *answers), self.runtime.reduce)

    def _player(self, name: str, module: nn.Module) -> Player:
        settings: Optimizer = getattr(self.config, name)
        learns = sum((turn.kind == "generator") == (name == "generator") for turn in self.turns)
        warmup = self.config.generator.warmup if name == "generator" else 0
        engine = self.runtime.engine(name, module, settings)
        return Player(name, engine, settings, learns * (self.config.rounds + warmup), self.health)
