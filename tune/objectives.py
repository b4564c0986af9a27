"""The data-free objectives: how similar a student is to its teacher on a probe, as one number from 0 to 1.

A position is an image, or a pixel where logits are maps. Each objective gives every position a score and a weight. The
weighted mean of the scores is computed for each class that the teacher predicts and averaged over these classes, so
that classes which the teacher predicts rarely count as much as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Answers = tuple[Tensor, Tensor, Tensor | None]
"""Student's logits [B, K, ...]; the classes that the teacher predicts [B, ...]; its log-probabilities [B, K, ...]."""


@dataclass(frozen=True)
class Objective:
    """An objective. `measure` takes student's logits, teacher's classes and teacher's log-probabilities."""

    text: str
    """In words."""
    measure: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    """(scores, weights) of the positions, both [B, ...]."""
    exponential: bool = False
    """Whether the objective is the exponential of the mean score: the order is the same, and 0 is the lowest value."""


def agreement(logits: Tensor, classes: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """1 where student and teacher predict the same class, else 0; all positions have the same weight."""
    equal = logits.argmax(1) == classes
    return equal.double(), torch.ones_like(equal, dtype=torch.double)


def confident_agreement(logits: Tensor, classes: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `agreement`; the weight of a position is the probability that the teacher gives to its class there."""
    assert teacher is not None
    return agreement(logits, classes, teacher)[0], teacher.amax(1).exp().double()


def negative_divergence(logits: Tensor, classes: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """-KL(teacher || student) = -sum_k p_k (log p_k - log q_k), in nats; -inf where the student's are not finite."""
    assert teacher is not None
    student = logits.float().log_softmax(1)
    divergence = (teacher.exp() * (teacher - student)).sum(1).double()
    return -divergence.nan_to_num(torch.inf), torch.ones_like(divergence)


OBJECTIVES: dict[str, Objective] = {
    "agreement": Objective("agreement", agreement),
    "kl": Objective("exp(-KL(teacher || student))", negative_divergence, exponential=True),
    "confidence": Objective("agreement weighted by the teacher's confidence", confident_agreement),
}
"""Every data-free objective by name."""

WITHOUT_PROBABILITIES = "agreement"
"""The objective that needs the teacher's classes only: what a probe of an older version has."""


def evaluate(answers: Iterable[Answers]) -> dict[str, float]:
    """The value of each objective over batches of answers; only WITHOUT_PROBABILITIES where a probe has none."""
    sums: dict[str, Tensor] = {}
    for logits, classes, teacher in answers:
        if teacher is not None:
            teacher = teacher.float().log_softmax(1)  # storage has rounded them: their sum is 1 again
        for name in OBJECTIVES if teacher is not None else (WITHOUT_PROBABILITIES,):
            scores, weights = OBJECTIVES[name].measure(logits, classes, teacher)
            added = _by_class(classes, torch.stack([scores * weights, weights]), logits.shape[1])
            sums[name] = sums[name] + added if name in sums else added
    return {name: _value(OBJECTIVES[name], *total) for name, total in sums.items()}


def _by_class(classes: Tensor, values: Tensor, count: int) -> Tensor:
    """Sums of values [2, B, ...] over the positions of each class [2, count]."""
    flat = classes.long().flatten()
    return torch.stack([torch.bincount(flat, weights=one.flatten(), minlength=count) for one in values])


def _value(objective: Objective, scores: Tensor, weights: Tensor) -> float:
    present = weights > 0
    mean = (scores[present] / weights[present]).mean()
    return float(mean.exp() if objective.exponential else mean)
