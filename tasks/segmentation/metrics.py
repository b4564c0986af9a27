"""What a segmentation network is scored by, counted over all pixels of the whole test set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

VOID = 255
"""The label of a pixel that is not scored, whatever number a data set has for it on disk."""


class Counts:
    """One confusion matrix over all pixels, on the device of the logits; summed over ranks when computed."""

    def __init__(self, classes: int) -> None:
        # Torchmetrics takes seconds to import, and most commands score nothing.
        from torchmetrics.classification import MulticlassConfusionMatrix

        self._classes = classes
        # One more class than the data has: that of outputs which are none of the data's, and which are never right.
        # Labels were checked when they were read, image by image; here it would cost a sort of every batch.
        self._matrix = MulticlassConfusionMatrix(classes + 1, ignore_index=VOID, validate_args=False)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits [B, K, H, W] with K at least the data's classes, class indices or VOID [B, H, W]."""
        self._matrix.to(logits.device).update(logits.argmax(1).clamp(max=self._classes), target)

    def compute(self) -> dict[str, Any]:
        """`miou`, `per_class_iou` [K] and `pixel_accuracy`, fractions of 1; VOID pixels count nowhere.

        A class's IoU is its pixels that are right over those that are its own or called so. It is 0 where the class was
        called but never true, and null, left out of the mean, where neither. All are null where every pixel is void.
        """
        counts = self._matrix.compute().double().cpu()  # [K + 1, K + 1]: truth down, answer across
        right = counts.diagonal()[: self._classes]
        union = counts.sum(0)[: self._classes] + counts.sum(1)[: self._classes] - right
        shares = [(hit / of).item() if of else None for hit, of in zip(right, union, strict=True)]
        there = [share for share in shares if share is not None]
        return {
            "miou": sum(there) / len(there) if there else None,
            "per_class_iou": shares,
            "pixel_accuracy": (right.sum() / counts.sum()).item() if counts.sum() else None,
        }
