"""The turns of a round, for each kind of method; a configuration that a kind cannot carry out is refused here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from harness import task
from harness.algorithm.turns import Weighted
from harness.config import Config, Weight, ever, sides
from harness.errors import UserError
from harness.methods.terms import generator_terms, image_terms, student_terms, supervised_terms, weights_of


@dataclass(frozen=True)
class Turn:
    """Who learns, from which images, by which terms."""

    kind: Literal["student", "generator", "supervised"]
    """One of the three turns of `harness.algorithm.turns`."""
    source: Literal["latents", "same", "pool", "data", "pixels", "fresh", "meta"]
    """Fresh latents through the generator, those of the round's last turn that drew some, earlier images, real ones;
    or one of INVERTED."""
    terms: Callable[..., dict[str, Weighted]]
    """(config, round, answers ...) -> weighted terms by name."""


INVERTED = ("pixels", "fresh", "meta")
"""A whole batch by many steps, for the pool (`harness.training.inversion`): of pixels, or by a generator that begins
anew with each batch, or begins where it has learnt to begin."""


def _check_sought(config: Config) -> None:
    """UserError where in some round the generator has nothing to seek."""
    weights: list[Weight] = list(vars(config.weights).values())
    changes = {0.0} | {start for weight in weights if isinstance(weight, list) for start, _ in weight}
    if config.generator.warmup and not any(weights_of(config, -1).values()):
        raise UserError(
            f"generator.warmup={config.generator.warmup}: without the student's disagreement the generator has nothing "
            "to seek: set weights.batch_norm above 0, or generator.warmup=0"
        )
    for start in sorted(changes):
        if start < config.rounds and not any(weights_of(config, math.ceil(start)).values()):
            raise UserError(
                f"weights: all are 0 from round {start:g}, the generator has nothing to seek: set one above 0"
            )


def _num_replayed(config: Config) -> int:
    """Student turns of a round that draw from the pool; UserError where the share is none of them."""
    share, steps = config.replay.share, config.student_steps
    count = math.floor(share * steps + 1e-9)
    if share and not count:
        raise UserError(f"replay.share={share:g} of student_steps={steps} is no turn: set it to {1 / steps:g} or more")
    if share:
        _check_maps(config)
    return count


def _check_maps(config: Config) -> None:
    for path, weight in (("attention", config.student.attention), ("features", config.student.features)):
        if ever(weight) and not config.replay.augment:
            raise UserError(
                f"student.{path}={weight}: the pool keeps no feature maps: set student.{path}=0, "
                "or replay.augment=true, which asks the teacher again"
            )


def _check_classes(config: Config) -> None:
    """UserError where an image is to be of one class, and the task's answer is of many."""
    height, width = sides(config.input.size)
    if ever(config.weights.target) and len(task.load(config.task).answer_shape(config.classes, height, width)) > 1:
        raise UserError(
            f"weights.target={config.weights.target}: an image is made for one class, and the task {config.task} "
            "answers for every pixel: set weights.target=0"
        )


def _check_generator(config: Config) -> None:
    """UserError where a generator that learns all along is asked for nothing, or for what it cannot do."""
    _check_sought(config)
    _check_classes(config)
    if ever(config.weights.contrastive):
        raise UserError(
            f"weights.contrastive={config.weights.contrastive}: method={config.method} keeps no views to compare: set 0"
        )


def _refuse_preparations(config: Config) -> None:
    """UserError where what needs a generator before the first round is asked for, and there is none."""
    for path, value in (
        ("generator.warmup", config.generator.warmup),
        ("student.reconstruct", config.student.reconstruct),
    ):
        if value:
            raise UserError(f"{path}={value}: method={config.method} has no generator that lasts: set 0")


def _refuse_replay(config: Config, reason: str) -> None:
    if config.replay.share:
        raise UserError(f"replay.share={config.replay.share:g}: method={config.method} has no replay, {reason}: set 0")


def alternating(config: Config) -> list[Turn]:
    """k student turns, the last of them replayed where some are, and one generator turn, fresh z each time."""
    _check_generator(config)
    fresh, replayed = (Turn("student", source, student_terms) for source in ("latents", "pool"))
    count = _num_replayed(config)
    students = [fresh] * (config.student_steps - count) + [replayed] * count
    return [*students, Turn("generator", "latents", generator_terms)]


def from_one_batch(config: Config) -> list[Turn]:
    """k student turns, and one generator turn on the last one's z: with k = 1 both learn from the same batch."""
    return [*alternating(config)[:-1], Turn("generator", "same", generator_terms)]


def after_the_generator(config: Config) -> list[Turn]:
    """One generator turn, then k student turns on its z, which make the same images for all k."""
    _check_generator(config)
    _refuse_replay(config, "its student learns from one batch until the generator has made another")
    students = [Turn("student", "same", student_terms)] * config.student_steps
    return [Turn("generator", "latents", generator_terms), *students]


def inverting(source: Literal["pixels", "fresh", "meta"]) -> Callable[[Config], list[Turn]]:
    """One batch of images into the pool, by many steps, then k student turns from the pool."""

    def turns(config: Config) -> list[Turn]:
        _refuse_preparations(config)
        _check_sought(config)
        _check_maps(config)
        _refuse_replay(config, "its student learns from the pool in every turn")
        _check_classes(config)
        return [Turn("generator", source, image_terms)] + [
            Turn("student", "pool", student_terms)
        ] * config.student_steps

    return turns


def on_real_data(config: Config) -> list[Turn]:
    """k student turns on real images."""
    _refuse_preparations(config)
    _refuse_replay(config, "it generates no images")
    return [Turn("student", "data", student_terms)] * config.student_steps


def supervised(config: Config) -> list[Turn]:
    """One turn on real images and labels."""
    _refuse_preparations(config)
    return [Turn("supervised", "data", supervised_terms)]
