"""Each method: its turns, its losses, its defaults. A new method is one entry of METHODS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from harness import task
from harness.algorithm import losses
from harness.algorithm.terms import Answer, Ask, Term, Weighted
from harness.config import Config, Weight, ever, sides, weight_at
from harness.config.parse import Overlay, merge
from harness.errors import UserError, nearest
from harness.methods import baselines


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


@dataclass(frozen=True)
class Method:
    """A list of turns a round, and named settings."""

    turns: Callable[[Config], list[Turn]]
    variants: Mapping[str, Overlay] = field(default_factory=lambda: {"paper": {}})
    """Values by variant, over the recipe's. Field defaults are DDAD's `paper`."""
    data_free: bool = True
    has_teacher: bool = True
    """Whether a teacher answers; else labels do."""


def student_terms(config: Config, round_index: int, t: Answer, s: Answer) -> dict[str, Weighted]:
    """D(t, s), which the student lowers, and attention transfer where it has a weight."""
    name = config.student_discrepancy or config.discrepancy
    temperature = config.student_temperature or config.temperature
    terms: dict[str, Weighted] = {"discrepancy": (1.0, losses.discrepancy(t.logits, s.logits, name, temperature))}
    if weight := weight_at(config.student.attention, round_index):
        terms["attention"] = (weight, losses.attention(t.maps, s.maps))
    return terms


def generator_terms(
    config: Config, round_index: int, t: Answer, s: Ask, x: Tensor, y: Tensor | None
) -> dict[str, Weighted]:
    """-w_adv A(D(t, s)) + w_bn R_bn(x) + optional terms; one of weight 0 in this round is not computed.

    `y`: the classes [B] that the images are made for, where `weights.target` counts in some round.
    `entropy` and `top_class` are only watched: a generator that collapses shows there.
    """
    terms: dict[str, Callable[[], Term]] = {
        **({} if y is None else {"target": lambda: losses.cross_entropy(t.logits, y, None)}),
        "adversarial": lambda: losses.adversarial(
            t.logits,
            s().logits,
            config.discrepancy,
            config.temperature,
            config.adversarial_transform,
            config.adversarial_where,
        ),
        "batch_norm": lambda: losses.batch_norm(t.moments, config.batch_norm_form),
        "one_hot": lambda: losses.one_hot(t.logits),
        "class_balance": lambda: losses.class_balance(t.logits),
        "sample_entropy": lambda: losses.sample_entropy(t.logits),
        "activation": lambda: losses.activation(t.features),
        "tv": lambda: losses.total_variation(x),
        "l2": lambda: losses.image_norm(x),
    }
    weights = _weights(config, round_index)
    weights["adversarial"] *= -1
    weighted = {name: (weights[name], term()) for name, term in terms.items() if weights[name]}
    return weighted | {"entropy": (0.0, losses.entropy(t.logits)), "top_class": (0.0, losses.top_class(t.logits))}


def image_terms(
    config: Config, round_index: int, t: Answer, s: Ask, x: Tensor, y: Tensor, contrast: Callable[[], Term]
) -> dict[str, Weighted]:
    """The generator's terms, and the contrastive one."""
    weight = weight_at(config.weights.contrastive, round_index)
    terms = generator_terms(config, round_index, t, s, x, y)
    return {"contrastive": (weight, contrast()), **terms} if weight else terms


def supervised_terms(config: Config, round_index: int, s: Answer, labels: Tensor) -> dict[str, Weighted]:
    """CE(s, y) over labels that are scored."""
    return {"cross_entropy": (1.0, losses.cross_entropy(s.logits, labels, task.load(config.task).ignore_index))}


def _weights(config: Config, round_index: int) -> dict[str, float]:
    """The weights of a round, by term."""
    weights = {name: weight_at(weight, round_index) for name, weight in vars(config.weights).items()}
    if round_index < config.adversarial_after * config.rounds:
        weights["adversarial"] = 0.0
    return weights


def _check_sought(config: Config) -> None:
    """UserError where in some round the generator has nothing to seek."""
    weights: list[Weight] = list(vars(config.weights).values())
    changes = {0.0} | {start for weight in weights if isinstance(weight, list) for start, _ in weight}
    for start in sorted(changes):
        if start < config.rounds and not any(_weights(config, math.ceil(start)).values()):
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
    if ever(config.student.attention) and not config.replay.augment:
        raise UserError(
            f"student.attention={config.student.attention}: the pool keeps no feature maps: set student.attention=0, "
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


def _refuse_replay(config: Config, reason: str) -> None:
    if config.replay.share:
        raise UserError(f"replay.share={config.replay.share:g}: method={config.method} has no replay, {reason}: set 0")


def _alternating(config: Config) -> list[Turn]:
    """k student turns, the last of them replayed where some are, and one generator turn, fresh z each time."""
    _check_generator(config)
    fresh, replayed = (Turn("student", source, student_terms) for source in ("latents", "pool"))
    count = _num_replayed(config)
    students = [fresh] * (config.student_steps - count) + [replayed] * count
    return [*students, Turn("generator", "latents", generator_terms)]


def _from_one_batch(config: Config) -> list[Turn]:
    """k student turns, and one generator turn on the last one's z: with k = 1 both learn from the same batch."""
    return [*_alternating(config)[:-1], Turn("generator", "same", generator_terms)]


def _after_the_generator(config: Config) -> list[Turn]:
    """One generator turn, then k student turns on its z, which make the same images for all k."""
    _check_generator(config)
    _refuse_replay(config, "its student learns from one batch until the generator has made another")
    students = [Turn("student", "same", student_terms)] * config.student_steps
    return [Turn("generator", "latents", generator_terms), *students]


def _inverting(source: Literal["pixels", "fresh", "meta"]) -> Callable[[Config], list[Turn]]:
    """One batch of images into the pool, by many steps, then k student turns from the pool."""

    def turns(config: Config) -> list[Turn]:
        _check_sought(config)
        _check_maps(config)
        _refuse_replay(config, "its student learns from the pool in every turn")
        _check_classes(config)
        return [Turn("generator", source, image_terms)] + [
            Turn("student", "pool", student_terms)
        ] * config.student_steps

    return turns


def _on_real_data(config: Config) -> list[Turn]:
    """k student turns on real images."""
    _refuse_replay(config, "it generates no images")
    return [Turn("student", "data", student_terms)] * config.student_steps


def _supervised(config: Config) -> list[Turn]:
    """One turn on real images and labels."""
    return [Turn("supervised", "data", supervised_terms)]


_SWIFT: Overlay = {
    "replay": {"share": 0.8},
    "student": {"lr": 0.2, "schedule": "constant", "average": 0.05},
}
"""DDAD whose student learns four times of five from earlier images, at a steady pace, and is averaged."""

_AIMED: Overlay = merge(_SWIFT, {"weights": {"batch_norm": 3.0, "target": 0.5, "class_balance": 1.4}})
"""`swift` whose generator is told which class each image is to be of, and minds the teacher's statistics more."""

METHODS: dict[str, Method] = {
    "ddad": Method(_alternating, {"paper": {}, "swift": _SWIFT, "aimed": _AIMED}),
    "dfad": Method(_alternating, {"paper": {"weights": {"batch_norm": 0.0}}}),
    "dafl": Method(_from_one_batch, baselines.DAFL),
    "zskt": Method(_after_the_generator, baselines.ZSKT),
    "dfq": Method(_alternating, baselines.DFQ),
    "deepinversion": Method(_inverting("pixels"), baselines.DEEPINVERSION),
    "cmi": Method(_inverting("fresh"), baselines.CMI),
    "fast": Method(_inverting("meta"), baselines.FAST),
    "kd": Method(_on_real_data, {"paper": {"discrepancy": "kl", "temperature": 4.0}}, data_free=False),
    "supervised": Method(_supervised, data_free=False, has_teacher=False),
}
"""`supervised` is what `ddad teach` runs."""


def find(name: str, variant: str) -> tuple[Method, Overlay]:
    """A method and its variant's values; UserError naming the nearest where there is none."""
    if name not in METHODS:
        raise UserError(f"method={name!r}: no such method{nearest(name, METHODS)}")
    variants = METHODS[name].variants
    if variant not in variants:
        raise UserError(f"variant={variant!r}: {name} has no such variant{nearest(variant, variants)}")
    return METHODS[name], variants[variant]
