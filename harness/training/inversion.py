"""Image turns: many steps of the generator's turn make a batch of images; the best of them go to the pool.

The parameters of a batch are its pixels; or latents, and a generator with new or meta-learned initial weights; or the
noisy layers of a generator of class embeddings, and that generator, which goes on from batch to batch. A batch
starts from draws that are functions of (seed, round, turn, part, row in the global batch), so its state is not saved in
checkpoints; what lasts from batch to batch is the player's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from harness.algorithm import losses, views
from harness.algorithm.generators import Noisy
from harness.algorithm.latents import classes, classes_in_turn, latents, part_shard, send, shard, uniform
from harness.algorithm.moments import LayerMoments, shift_and_var
from harness.algorithm.turns import Answer, Ask, Term, Terms, generator_turn
from harness.config import Config, ever, image_shape
from harness.distributed.batches import BatchEngine
from harness.distributed.runtime import Runtime
from harness.methods import INVERTED, Turn
from harness.networks import preprocessing, roles
from harness.networks.embeddings import embeddings
from harness.networks.layers import observe_features
from harness.training.batch import Batch, Best, Head
from harness.training.players import Player
from harness.training.pool import Pool
from harness.training.teacher import Teacher

CONTRAST_TEMPERATURE = 0.1
"""Temperature of the similarities of projected features (CMI's public code)."""

Loss = Callable[[Answer, Ask, Tensor, Tensor, Callable[[], Term]], Terms]
"""(t, s, x, target classes of the images, function that builds the contrastive term) -> terms."""


class Interrupted(Exception):
    """A turn was interrupted; the state is that before the turn."""


class Inversion:
    """Makes batches of images by many steps; `play` is one turn."""

    def __init__(
        self, config: Config, runtime: Runtime, source: str, teacher: Teacher, student: Player, pool: Pool
    ) -> None:
        """`source`: one of INVERTED, see `harness.methods.Turn`."""
        self.config, self.runtime, self.source = config, runtime, source
        self.teacher, self.student, self.pool = teacher, student, pool
        self.size = config.batch_size // config.micro_batches
        self.rows = shard(self.size, runtime.rank, runtime.world_size)
        self.steps = num_steps(config)
        self._black = send(preprocessing.black(config).to(runtime.dtype), runtime.device)
        self.embeddings = runtime.together(lambda: embeddings(config)) if source == "noisy" else None
        self.generator = None if source == "pixels" else runtime.replica(self._new())
        self.lasting = self._lasting()
        self.batch = Batch(self._drawn(0, 0, 0), self.generator, self._view)
        if "head" in self.lasting:
            self.batch.add_module("head", self.lasting["head"])
        latent_lr, num_batches = config.inversion.latent_lr, config.rounds * config.micro_batches
        self.engine = BatchEngine(
            self.batch, self.batch.start, config.generator, latent_lr, runtime.world_size, self.lasting, self.generator
        )
        self.player = Player("generator", self.engine, config.generator, num_batches * self.steps, student.health)
        self.interrupted: Callable[[], bool] = lambda: False
        # State of the current turn, of the current batch, and of its last step:
        self._before = (0, self.engine.weights(), self.engine.moments())
        self._earlier = 0  # number of batches before it
        self._moments: Sequence[LayerMoments] = ()
        self._features = torch.zeros(())

    def play(self, round_index: int, turn_index: int, part: int, loss: Loss) -> Terms:
        """Makes one batch of images for each part; returns the terms of the last step.

        Raises Interrupted if `interrupted` is true between two steps; all parts of the turn are then undone.
        """
        where = (round_index, turn_index, part)
        if part == 0:
            weights, moments = (_copies(state) for state in (self.engine.weights(), self.engine.moments()))
            self._before = self.player.updates, weights, moments
        self._begin(*where)
        learning_rate, y = self.player.learning_rate(), self._classes(*where)
        best, self._features = Best(y.device), torch.zeros((), device=y.device)
        for step in range(self.steps):
            if step and self.interrupted():
                self.player.updates, weights, moments = self._before
                self.engine.load(weights, moments)
                raise Interrupted
            view, local = self._uniform(8, "views", *where, step).split(4, 1)
            terms = generator_turn(self._judge, self.student, self.player, view, partial(self._loss, loss, y, local))
            best.take(terms.total.detach(), self.batch.images.detach(), self._features)
        self.engine.finish(learning_rate * self.steps)  # scaled as in the public code
        with torch.no_grad():
            self._remember(best.features)
        self.pool.answered(*where, self._answer(self.pool.keep(*where, best.images)))
        return terms

    @torch.no_grad()
    def _answer(self, x: Tensor) -> Answer:
        return self.teacher.answer(x)

    def _judge(self, x: Tensor) -> Answer:
        """The teacher's outputs; with `momentum` its moments are averaged with those of earlier batches."""
        t, momentum = self.teacher.judge(x), self.config.inversion.momentum
        self._moments = t.moments
        if not momentum or not self._earlier:
            return t
        past = [value for name, value in self.lasting["memory"].named_buffers() if name != "bank"]
        pairs = zip(t.moments, past, strict=True)
        return replace(t, moments=[replace(layer, past=value, momentum=momentum) for layer, value in pairs])

    def _loss(self, loss: Loss, y: Tensor, local: Tensor, t: Answer, s: Ask, x: Tensor) -> Terms:
        """The terms of a step; y [b]: target classes of the images; `local` [b, 4]: draws of their local view."""
        return loss(t, s, x, y, lambda: self._contrast(t, local))

    def _contrast(self, t: Answer, draws: Tensor) -> Term:
        """The contrastive term between the view of this step and a local view of the same images."""
        view = views.local(self.batch.images, draws, self.config.input.mirror)
        with observe_features(self.teacher.module) as found:
            self.teacher.module(view)
        features = torch.stack([_pooled(found[-1]), _pooled(t.features)]).to(self.runtime.dtype)  # bf16 in autocast
        self._features = features.detach()
        bank = self.lasting["memory"].get_buffer("bank")
        held = min(self._earlier * self.size, bank.shape[1])
        head = self.lasting["head"]
        local, whole = head(features)
        return losses.contrastive(local, whole, self.rows, self.size, head(bank[:, :held]), CONTRAST_TEMPERATURE)

    def _begin(self, round_index: int, turn_index: int, part: int) -> None:
        """Sets the initial values of the batch and a new optimiser state."""
        with torch.no_grad():
            self.batch.start.copy_(self._drawn(round_index, turn_index, part))
        if self.generator is not None:
            self._begin_generator(round_index, turn_index, part)
        self.engine.begin()
        self._earlier = round_index * self.config.micro_batches + part

    def _begin_generator(self, round_index: int, turn_index: int, part: int) -> None:
        """Sets the weights with which the generator begins a batch."""
        where = (round_index, turn_index, part)
        if isinstance(self.generator, Noisy):
            if part == 0 and roles.restarts(self.config, round_index):
                self.generator.load_state_dict(self._new(round_index).state_dict())
            num_layers, *sizes = self.generator.weight.shape
            keys = (self.config.seed, "noisy layers", *where)
            self.generator.draw(latents(range(num_layers), num_layers, math.prod(sizes), *keys))
        elif self.generator is not None:
            fresh = self.lasting["start"] if self.source == "meta" else roles.generator(self.config, *where)
            self.generator.load_state_dict(fresh.state_dict())

    def _new(self, *keys: int) -> nn.Module:
        """A generator with fresh weights."""
        generator = roles.generator(self.config, *keys)
        if self.embeddings is None:
            return generator
        sizes = self.embeddings.shape[1], self.config.generator.latent_size
        return Noisy(generator, sizes, self.rows, self.size, self.config.classes)

    def _drawn(self, round_index: int, turn_index: int, part: int) -> Tensor:
        """Pixels [b, C, H, W] or latents [b, Z] from N(0, I); or the embeddings [b, E] of the target classes."""
        if self.embeddings is not None:
            return self._here(self.embeddings[self._classes_of_rows(round_index, turn_index, part)])
        shape = image_shape(self.config) if self.source == "pixels" else (self.config.generator.latent_size,)
        keys = (self.config.seed, "latents", round_index, turn_index)
        drawn = latents(self._global(part), self.config.batch_size, math.prod(shape), *keys)
        return self._here(drawn.view(-1, *shape))

    def _classes(self, round_index: int, turn_index: int, part: int) -> Tensor:
        """Target classes y [b] of the images; all classes are equally frequent in the global batch."""
        return send(self._classes_of_rows(round_index, turn_index, part), self.runtime.device)

    def _classes_of_rows(self, round_index: int, turn_index: int, part: int) -> Tensor:
        """`_classes`, on the CPU; images of one noisy layer have different classes."""
        keys = (self.config.seed, "classes", round_index, turn_index)
        if self.embeddings is not None:
            return classes_in_turn(self.rows, self.config.classes, *keys, part)
        return classes(self._global(part), self.config.batch_size, self.config.classes, *keys)

    def _uniform(self, count: int, name: str, round_index: int, turn_index: int, part: int, step: int) -> Tensor:
        keys = (self.config.seed, name, round_index, turn_index, step)
        return self._here(uniform(self._global(part), self.config.batch_size, count, *keys))

    def _global(self, part: int) -> range:
        """This process's rows of a part, in the global batch."""
        return part_shard(self.size, part, self.runtime.rank, self.runtime.world_size)

    def _here(self, drawn: Tensor) -> Tensor:
        return send(drawn.to(self.runtime.dtype), self.runtime.device)

    def _view(self, x: Tensor, draws: Tensor) -> Tensor:
        """The view of the images in a step."""
        if self.config.inversion.views == "none":
            return x
        return views.of(self.config.inversion.views, x, draws, self.config.input.mirror, self._black.to(x.dtype))

    def _lasting(self) -> nn.ModuleDict:
        """State that lasts over batches: weights of the generator, contrastive head, bank and average moments."""
        lasting = nn.ModuleDict()
        if self.source == "meta":
            lasting["start"] = self.runtime.arrange(roles.generator(self.config))
        if isinstance(self.generator, Noisy):
            lasting["life"] = nn.ModuleList([self.generator.norm, self.generator.generator])
        contrasts, averages = ever(self.config.weights.contrastive), self.config.inversion.momentum > 0
        if contrasts or averages:
            seen = self.teacher.judge(self._here(torch.zeros(2, *image_shape(self.config))))
            memory = nn.Module()
            if contrasts:
                num_features = _pooled(seen.features).shape[1]
                with roles.seeded(self.config.seed, "head"):
                    lasting["head"] = self.runtime.arrange(Head(num_features))
                memory.register_buffer("bank", seen.logits.new_zeros(2, self.config.inversion.bank, num_features))
            for index, layer in enumerate(seen.moments if averages else ()):
                memory.register_buffer(f"past_{index}", layer.sums.new_zeros(2, len(layer.running_var)))
            lasting["memory"] = memory
        return lasting

    def _remember(self, best: Tensor) -> None:
        """Adds the features `best` of the best images to the bank, and the last statistics to the average."""
        past = dict(self.lasting["memory"].named_buffers()) if "memory" in self.lasting else {}
        if (bank := past.pop("bank", None)) is not None:
            features = best.new_zeros(2, self.size, bank.shape[2])
            features[:, self.rows.start : self.rows.stop] = best
            features = self.runtime.reduce(features.flatten()).view(features.shape)
            rows = torch.arange(self.size, device=bank.device)[-bank.shape[1] :]
            bank[:, (self._earlier * self.size + rows) % bank.shape[1]] = features[:, rows]
        if past:
            sizes = [layer.sums.numel() for layer in self._moments]
            sums = self.runtime.reduce(torch.cat([layer.sums.detach() for layer in self._moments])).split(sizes)
            for average, part, layer in zip(past.values(), sums, self._moments, strict=True):
                now = torch.stack(shift_and_var(part, layer))
                average.copy_(now.lerp(average, self.config.inversion.momentum) if self._earlier else now)


def build(
    config: Config, runtime: Runtime, turns: Sequence[Turn], teacher: Teacher | None, student: Player,
    pool: Pool | None,
) -> Inversion | None:  # fmt: skip
    """The Inversion of a run whose turns make batches by many steps; else None."""
    source = inverts(turns)
    if source is None:
        return None
    assert teacher and pool
    return Inversion(config, runtime, source, teacher, student, pool)


def inverts(turns: Sequence[Turn]) -> str | None:
    """The source of the turn that makes a batch by many steps, one of INVERTED; None if there is no such turn."""
    return next((turn.source for turn in turns if turn.source in INVERTED), None)


def num_steps(config: Config) -> int:
    """Image steps for a batch: `inversion.steps`, proportionally fewer in a run of few rounds."""
    share = min(1.0, config.rounds / config.inversion.rounds)
    return max(1, round(config.inversion.steps * share))


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors: on a CPU they may share memory with the parameters."""
    return {name: value.clone() for name, value in state.items()}


def _pooled(features: Tensor | None) -> Tensor:
    """[b, F] or [b, F, h, w] -> [b, F]."""
    assert features is not None
    return features if features.dim() == 2 else features.flatten(2).mean(2)
