"""Weights of the terms, each a number or a schedule over rounds."""

from __future__ import annotations

from dataclasses import dataclass

Weight = float | list[list[float]]
"""A number, or a schedule [[round, value], ...]: each value holds from its round (0 first) until the next."""


@dataclass(frozen=True)
class Weights:
    """Weights of the generator's terms (docs/method.md); a term of weight 0 is not computed."""

    adversarial: Weight = 1.0
    """Discrepancy of student and teacher, which the generator maximises."""
    batch_norm: Weight = 1.0
    """Distance of the batch statistics in the teacher from its running statistics."""
    one_hot: Weight = 0.0
    """Cross entropy of the teacher's logits with their argmax."""
    class_balance: Weight = 0.0
    """Negative entropy of the mean prediction over the batch."""
    sample_entropy: Weight = 0.0
    """Mean entropy of the predictions."""
    activation: Weight = 0.0
    """Minus the mean absolute penultimate feature."""
    tv: Weight = 0.0
    """Total variation of the images."""
    l2: Weight = 0.0
    """L2 norm of the images."""
    target: Weight = 0.0
    """Cross entropy of the teacher's logits with the target class of an image; its latent is drawn for that class."""
    contrastive: Weight = 0.0
    """Contrastive loss between two views of an image and the views of other images (docs/method.md)."""


def ever(weight: Weight) -> bool:
    """Whether a weight is above 0 in any round."""
    return any(value for _, value in weight) if isinstance(weight, list) else bool(weight)
