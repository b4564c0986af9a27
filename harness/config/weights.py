"""Weights of the terms, each a number or a schedule over rounds."""

from __future__ import annotations

from dataclasses import dataclass

Weight = float | list[list[float]]
"""A number, or a schedule [[round, value], ...]: each value holds from its round (0 first) until the next."""


@dataclass(frozen=True)
class Weights:
    """Weights of the generator's terms (docs/method.md); a term of weight 0 is not computed."""

    adversarial: Weight = 1.0
    """The student's disagreement with the teacher, which the generator seeks."""
    batch_norm: Weight = 1.0
    """Distance of the batch statistics in the teacher from its running ones: the teacher as discriminator."""
    one_hot: Weight = 0.0
    """Cross entropy of the teacher's answer with its own argmax."""
    class_balance: Weight = 0.0
    """Negative entropy of the batch's mean prediction."""
    sample_entropy: Weight = 0.0
    """Mean entropy of the single predictions."""
    activation: Weight = 0.0
    """Minus the mean absolute penultimate feature."""
    tv: Weight = 0.0
    """Total variation of the images."""
    l2: Weight = 0.0
    """L2 norm of the images."""
    target: Weight = 0.0
    """Cross entropy of the teacher's answer with the class an image is made for, around which its latent is drawn."""
    contrastive: Weight = 0.0
    """Two views of an image against those of all others, this batch's and earlier ones; where images are inverted."""


def ever(weight: Weight) -> bool:
    """Whether a weight counts in any round."""
    return any(value for _, value in weight) if isinstance(weight, list) else bool(weight)
