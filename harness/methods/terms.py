"""The terms of each turn's loss and their weights in a round: the formulas of docs/method.md and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from harness import task
from harness.algorithm import losses
from harness.algorithm.turns import Answer, Ask, Term, Weighted
from harness.config import Config, Weight

ROUNDING = 1e-6
"""A share of the rounds may be a little more than the whole number that it stands for: 0.28 of 25."""


def weight_changes(config: Config) -> list[float]:
    """The rounds, 0 first, from which a term of the generator has another weight."""
    schedules = [weight for weight in vars(config.weights).values() if isinstance(weight, list)]
    found = {0.0, max(0.0, config.adversarial_after * config.rounds - ROUNDING)}
    found |= {start for weight in schedules for start, _ in weight}
    return sorted(start for start in found if math.ceil(start) < config.rounds)


def student_terms(config: Config, round_index: int, t: Answer, s: Answer) -> dict[str, Weighted]:
    """The terms that the student minimises: D(t, s), and comparisons of inner layers."""
    name = config.student_discrepancy or config.discrepancy
    temperature = config.student_temperature or config.temperature
    terms: dict[str, Weighted] = {"discrepancy": (1.0, losses.discrepancy(t.logits, s.logits, name, temperature))}
    weights = student_weights_of(config, round_index)
    if weight := weights["attention"]:
        terms["attention"] = (weight, losses.attention(t.maps, s.maps))
    if weight := weights["hints"]:
        terms["hints"] = (weight, losses.hints(t.maps, s.maps))
    if weight := weights["features"]:
        terms["features"] = (weight, losses.features(t.blocks, s.blocks))
    return terms


def generator_terms(
    config: Config, round_index: int, t: Answer, s: Ask, x: Tensor, y: Tensor | None
) -> dict[str, Weighted]:
    """-w_adv A(D(t, s)) + w_bn R_bn(x) + optional terms; one of weight 0 in this round is not computed.

    `y`: the target classes [B] of the images, if `weights.target` is above 0 in some round.
    `entropy` and `top_class` are only logged: they show when a generator collapses.
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
    weights = weights_of(config, round_index)
    weights["adversarial"] *= -1
    weighted = {name: (weights[name], term()) for name, term in terms.items() if weights[name]}
    return weighted | {"entropy": (0.0, losses.entropy(t.logits)), "top_class": (0.0, losses.top_class(t.logits))}


def image_terms(
    config: Config, round_index: int, t: Answer, s: Ask, x: Tensor, y: Tensor, contrast: Callable[[], Term]
) -> dict[str, Weighted]:
    """The generator's terms, and the contrastive term."""
    weight = weight_at(config.weights.contrastive, round_index)
    terms = generator_terms(config, round_index, t, s, x, y)
    return {"contrastive": (weight, contrast()), **terms} if weight else terms


def supervised_terms(config: Config, round_index: int, labels: Tensor, s: Answer) -> dict[str, Weighted]:
    """CE(s, y) over the labels that are not ignored."""
    return {"cross_entropy": (1.0, losses.cross_entropy(s.logits, labels, task.load(config.task).ignore_index))}


def weight_at(weight: Weight, round_index: int) -> float:
    """The value of a weight or of its schedule in a round."""
    if not isinstance(weight, list):
        return weight
    return [value for start, value in weight if start <= round_index][-1]


def student_weights_of(config: Config, round_index: int) -> dict[str, float]:
    """The weights of the student's terms beside the discrepancy in a round, by term."""
    weights = {name: weight_at(weight, round_index) for name, weight in config.student.comparisons.items()}
    if round_index >= config.student.features_until * config.rounds - ROUNDING:
        weights["features"] = 0.0
    return weights


def weights_of(config: Config, round_index: int) -> dict[str, float]:
    """The weights of the generator's terms in a round, by term; rounds below 0 are the warm-up."""
    weights = {name: weight_at(weight, max(round_index, 0)) for name, weight in vars(config.weights).items()}
    if round_index < config.adversarial_after * config.rounds - ROUNDING:
        weights["adversarial"] = 0.0
    return weights
