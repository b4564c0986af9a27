"""Settings that may not be what was meant, by themselves and by a confusion matrix: lines for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.config import UNTRAINED, Config
from harness.training import teaching

POSITIONS = 10
"""Scored positions a class, below which an order of the classes may look better by chance."""

RECALL, GAIN = 0.75, 0.25
"""Least mean recall under another order of the classes, and least gain over the given order, for a warning."""


def of_settings(config: Config) -> list[str]:
    """Lines about settings without effect, and about input that may have been normalised otherwise."""
    lines = []
    student = config.student_discrepancy or config.discrepancy
    kinds = [config.discrepancy] + [student] * (config.student_temperature is None)
    given = {"temperature": (config.temperature, kinds), "student_temperature": (config.student_temperature, [student])}
    for path, (value, names) in given.items():
        if value not in (None, Config.temperature) and not {"kl", "js"} & set(names):
            lines.append(f"{path}={value:g} has no effect: {names[0]} does not divide logits by it, kl and js do")
    spec = config.teacher
    taught = config.teach.automatic or not spec.network or spec.checkpoint in (None, UNTRAINED)
    if spec.mean is None and spec.std is None and not taught and not teaching.note(Path(str(spec.checkpoint))).exists():
        lines.append(UNNORMALISED)
    return lines


UNNORMALISED = (
    "teacher.mean and teacher.std are not given: the teacher is taken to have learnt from pixels in 0..1 as they are; "
    "where they were normalised, give both, such as teacher.mean=[0.485,0.456,0.406] teacher.std=[0.229,0.224,0.225]"
)


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
