"""What a classifier is scored by, counted over the whole test set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

BINS = 15
"""Bins of the calibration error (Guo et al., 2017, "On calibration of modern neural networks")."""


class Counts:
    """Running counts behind every metric, on the device of the logits; summed over ranks when computed."""

    def __init__(self, classes: int) -> None:
        # Torchmetrics takes seconds to import, and most commands score nothing.
        from torchmetrics.classification import MulticlassCalibrationError, MulticlassStatScores

        self._top1 = MulticlassStatScores(classes, average=None)
        self._top5 = MulticlassStatScores(classes, average="micro", top_k=5) if classes > 5 else None
        self._calibration = MulticlassCalibrationError(classes, n_bins=BINS, norm="l1")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits [B, K], class indices [B]."""
        self._top1.to(logits.device).update(logits, target)
        if self._top5 is not None:
            self._top5.to(logits.device).update(logits, target)
        # Given logits, torchmetrics would take a batch of them that happens to lie in 0..1 for probabilities.
        self._calibration.to(logits.device).update(logits.float().softmax(1), target)

    def compute(self) -> dict[str, Any]:
        """`accuracy`, `top5`, `per_class_accuracy` [K] and `calibration_error`, all fractions of 1.

        `top5` is null up to 5 classes, a class's accuracy where there is no image of it. The calibration error is the
        mean over images of |accuracy - confidence| in their confidence bin (ECE).
        """
        counts = self._top1.compute()  # [K, 5]: true positives, false positives, ..., images
        right, images = counts[:, 0].tolist(), counts[:, 4].tolist()
        top5 = None if self._top5 is None else self._top5.compute().tolist()
        return {
            "accuracy": sum(right) / sum(images),
            "top5": None if top5 is None else top5[0] / top5[4],
            "per_class_accuracy": [hits / of if of else None for hits, of in zip(right, images, strict=True)],
            "calibration_error": float(self._calibration.compute()),
        }
