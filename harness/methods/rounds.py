"""The turns of a round, for each kind of method, and the checks of the configuration for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from harness import task
from harness.algorithm.turns import Weighted
from harness.config import BatchSource, Config, ever, flat
from harness.errors import UserError
from harness.methods.terms import (
    generator_terms,
    image_terms,
    student_terms,
    supervised_terms,
    weight_changes,
    weights_of,
)


@dataclass(frozen=True)
class Turn:
    """Which network is trained, on which images, by which terms."""

    kind: Literal["student", "generator", "supervised"]
    """One of the turns of `harness.algorithm.turns`."""
    source: Literal["latents", "same", "pool", "data"] | BatchSource
    """Fresh latents; the latents of the last turn of the round that drew some; the pool; real images; or one of
    INVERTED."""
    terms: Callable[..., dict[str, Weighted]]
    """(config, round, answers ...) -> weighted terms by name."""


INVERTED: tuple[str, ...] = get_args(BatchSource)
"""Sources of a batch that many steps optimise for the pool (`harness.training.inversion`)."""


def _check_generator_terms(config: Config) -> None:
    """Raises UserError if in some round all terms of the generator have weight 0."""
    if config.generator.warmup and not any(weights_of(config, -1).values()):
        raise UserError(
            f"generator.warmup={config.generator.warmup}: without the adversarial term the generator has no loss: "
            "set weights.batch_norm above 0, or generator.warmup=0"
        )
    for start in weight_changes(config):
        if not any(weights_of(config, math.ceil(start)).values()):
            raise UserError(f"weights: all are 0 from round {start:g}, the generator has no loss: set one above 0")


def _num_replayed(config: Config) -> int:
    """Student turns of a round that draw from the pool; raises UserError if the share is less than one turn."""
    share, steps = config.replay.share, config.student_steps
    count = math.floor(share * steps + 1e-9)
    if share and not count:
        enough = f"to {1 / steps:g} or more" if steps > 1 else "to 0, or student_steps to 2 or more"
        raise UserError(f"replay.share={share:g} of student_steps={steps} is no turn: set it {enough}")
    if share:
        _check_maps(config)
    else:
        _check_views(config, "replay.share=0, so no student turn draws from the pool")
    return count


def _check_views(config: Config, no_pool: str) -> None:
    """Raises UserError if views of replayed images are asked for where no turn replays any, for the reason given."""
    if config.replay.augment:
        raise UserError(f"replay.augment=true: {no_pool}: set replay.augment=false")


def _check_maps(config: Config) -> None:
    for path, weight in config.student.comparisons.items():
        if ever(weight) and not config.replay.augment:
            raise UserError(
                f"student.{path}={weight}: the pool keeps no feature maps: set student.{path}=0, "
                "or replay.augment=true, which runs the teacher again"
            )


def _check_classes(config: Config) -> None:
    """Raises UserError if images are made for one class, and the task predicts a class for each pixel."""
    if ever(config.weights.target) and task.is_dense(config.task):
        raise UserError(
            f"weights.target={config.weights.target}: an image is made for one class, and the task {config.task} "
            "predicts a class for every pixel: set weights.target=0"
        )


OF_A_BATCH = (
    "inversion.source", "inversion.steps", "inversion.rounds", "inversion.latent_lr", "inversion.momentum",
    "inversion.bank",
)  # fmt: skip
"""Fields of a batch that is made by many steps."""

OF_A_GENERATOR = ("generator.warmup", "student.reconstruct", "generator_steps", "generator.average", "shared_latents")
"""Fields that a method can only take if one generator makes all images of its student turns."""


def _check_generator(config: Config) -> None:
    """Raises UserError for settings that a generator which is trained over the whole run does not support."""
    _refuse(config, "draws latents, not class embeddings", "generator.embeddings")
    _refuse(config, "makes no batch by many steps", *OF_A_BATCH)
    _check_generator_terms(config)
    _check_classes(config)
    if not ever(config.weights.target):
        _refuse(config, "has weights.target=0, so no image is made for a class", "generator.class_distance")
    if ever(config.weights.contrastive):
        raise UserError(
            f"weights.contrastive={config.weights.contrastive}: method={config.method} keeps no views to compare: set 0"
        )


def _refuse(config: Config, reason: str, *paths: str) -> None:
    """Raises UserError for the first of these fields that is not at its default."""
    given, usual = flat(config), flat(Config())
    for path in paths:
        if given[path] != usual[path]:
            raise UserError(f"{path}={_word(given[path])}: method={config.method} {reason}: set {_word(usual[path])}")


def _word(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _refuse_replay(config: Config, reason: str) -> None:
    if config.replay.share:
        raise UserError(f"replay.share={config.replay.share:g}: method={config.method} has no replay, {reason}: set 0")


def _refuse_pool(config: Config, reason: str) -> None:
    _refuse_replay(config, reason)
    _check_views(config, f"method={config.method} has no replay, {reason}")


def _refuse_generation(config: Config) -> None:
    """UserError for a setting that only a method with generated images has."""
    _refuse(config, "has no generator for the whole run", *OF_A_GENERATOR, "generator.restart", "generator.embeddings",
            "generator.class_distance")  # fmt: skip
    _refuse_pool(config, "it generates no images")
    _refuse(config, "generates no images", "inversion.views", *OF_A_BATCH)


def alternating(config: Config) -> list[Turn]:
    """k student turns, the last ones from the pool if there is replay, then n generator turns; fresh z in each.

    With `shared_latents`: n generator turns, then those of the student, all on the z of the first.
    """
    _check_generator(config)
    count = _num_replayed(config)
    num_fresh, replayed = config.student_steps - count, [Turn("student", "pool", student_terms)] * count
    drawing, same = (Turn("generator", source, generator_terms) for source in ("latents", "same"))
    if config.shared_latents:
        improving = [drawing, *[same] * (config.generator_steps - 1)]
        return [*improving, *[Turn("student", "same", student_terms)] * num_fresh, *replayed]
    return [*[Turn("student", "latents", student_terms)] * num_fresh, *replayed, *[drawing] * config.generator_steps]


def dual(config: Config) -> list[Turn]:
    """DDAD's rounds: those of `alternating`, or of `inverting` where `inversion.source` names what batches are made of.

    Its two discriminators are the terms of either.
    """
    source = config.inversion.source
    return _inverted(config, source) if source else alternating(config)


def from_one_batch(config: Config) -> list[Turn]:
    """k student turns, then n generator turns on the z of the last of them."""
    _refuse(config, "has an order of turns of its own", "shared_latents")
    steps = config.generator_steps
    return [*alternating(config)[:-steps], *[Turn("generator", "same", generator_terms)] * steps]


def after_the_generator(config: Config) -> list[Turn]:
    """n generator turns, then k student turns on the z of the last: all k have the same images."""
    _check_generator(config)
    _refuse(config, "has an order of turns of its own", "shared_latents")
    _refuse_pool(config, "its student turns use the images of the generator's last turn")
    students = [Turn("student", "same", student_terms)] * config.student_steps
    return [*[Turn("generator", "latents", generator_terms)] * config.generator_steps, *students]


def inverting(source: BatchSource) -> Callable[[Config], list[Turn]]:
    """One turn that makes a batch of images for the pool by many steps, then k student turns from the pool."""

    def turns(config: Config) -> list[Turn]:
        _refuse(config, "has a source of its own", "inversion.source")
        return _inverted(config, source)

    return turns


def _inverted(config: Config, source: BatchSource) -> list[Turn]:
    """The turns of `inverting`, for every method that has them."""
    _refuse(config, "has no generator for the whole run", *OF_A_GENERATOR)
    _refuse(config, "draws latents without centres of classes", "generator.class_distance")
    if not ever(config.weights.contrastive):
        _refuse(config, "has weights.contrastive=0, so no features are compared", "inversion.bank")
    if source in ("noisy", "pixels"):
        _refuse(config, "has no latents that learn", "inversion.latent_lr")
    if source == "noisy" and config.batch_size // config.micro_batches < 2:
        raise UserError(
            f"batch_size={config.batch_size}, micro_batches={config.micro_batches}: the generator normalises class "
            "embeddings over a part of a batch: let one have 2 images or more"
        )
    if source != "noisy":
        _refuse(config, "has no generator that lasts", "generator.restart")
        _refuse(config, "has no class embeddings", "generator.embeddings")
    _check_generator_terms(config)
    _check_maps(config)
    _refuse_replay(config, "all its student turns use the pool")
    _check_classes(config)
    return [Turn("generator", source, image_terms), *[Turn("student", "pool", student_terms)] * config.student_steps]


def on_real_data(config: Config) -> list[Turn]:
    """k student turns on real images."""
    _refuse_generation(config)
    return [Turn("student", "data", student_terms)] * config.student_steps


def supervised(config: Config) -> list[Turn]:
    """One turn on real images and labels."""
    _refuse_generation(config)
    return [Turn("supervised", "data", supervised_terms)]
