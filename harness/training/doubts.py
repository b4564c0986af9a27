"""What a confusion matrix tells of a network whose weights, input or classes are not what was said of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

POSITIONS = 10
"""Scored positions a class, below which an order of the classes may look better by chance."""

RECALL, GAIN = 0.75, 0.25
"""Least mean recall under another order of the classes, and least gain over the given order, for a warning."""


def doubt(confusion: Tensor | None, name: str, warn: Callable[[str], None], dense: bool = False) -> None:
    """Warns of a network that names one class alone, or whose classes seem to be in another order.

    Of a `dense` prediction, also of a class that no label has: its IoU is 0 in the mean. `confusion`: that of
    `evaluate.Scores`; `name` stands for the network.
    """
    if confusion is None or not confusion.any():
        return
    counts = confusion.double()
    present = counts.sum(1).nonzero().flatten()
    called = counts[:, :-1].sum(0)
    absent = [index for index in called.nonzero().flatten().tolist() if index not in present]
    if dense and absent:
        warn(
            f"{name} answers with class {absent[0]}, of which the test labels have no pixel: its IoU counts as 0 in "
            "the mean; where it is void, give the names of the others in classes.txt (data.name=folders)"
        )
    if len(counts.sum(0).nonzero()) == 1 and counts.diagonal().sum() < counts.sum():
        warn(
            f"{name} names one class for all test images: are its weights, channels, size, mean and std (of pixels "
            "from 0 to 1) those that it was trained with?"
        )
    elif len(present) > 1 and counts.sum() >= POSITIONS * len(present):
        _doubt_order(counts[present], present, name, warn)


def _doubt_order(counts: Tensor, present: Tensor, name: str, warn: Callable[[str], None]) -> None:
    """Warns if another order fits clearly better: class i goes with answer j if each is the other's most frequent."""
    recall = counts / counts.sum(1, keepdim=True)
    rows = torch.arange(len(present))
    highest, answers = recall.max(1)
    matched = recall.argmax(0)[answers] == rows
    own, best = recall[rows, present].mean().item(), (highest * matched).mean().item()
    if best >= RECALL and best - own >= GAIN:
        row = int((matched & (answers != present)).nonzero()[0])
        warn(
            f"{name} seems to have its classes in another order than the data: its mean recall is {own:.0%}, and in "
            f"another {best:.0%}, with the data's class {present[row]} as its class {answers[row]}"
        )
