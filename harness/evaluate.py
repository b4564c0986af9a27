"""Teacher and student through the same metrics, and their agreement; on real images, or on generated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import task as tasks
from harness.config import Config
from harness.data import evaluation_loader
from harness.task import Task

NUM_GENERATED = 2048
"""Generated images an agreement without data is measured on, in batches of the run's own size."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    agreement: float | None
    """Share of scored positions at which teacher and student name the same class; None without both of them."""
    agreement_on: Literal["test", "generated"]
    teacher: dict[str, Any] = field(default_factory=dict)
    """The task's metrics; empty without data or without a teacher."""
    student: dict[str, Any] = field(default_factory=dict)


def measure(
    config: Config,
    teacher: nn.Module | None,
    student: nn.Module,
    device: torch.device,
    generate: Callable[[int, int], Tensor] | None,
) -> Scores:
    """Scores on the whole test set of `config.data`, or agreement on `generate(batch size, index of the batch)`."""
    networks = {"student": student} | ({"teacher": teacher} if teacher else {})
    if config.data.name != "none":
        task = tasks.load(config.task)
        batches = evaluation_loader(task.dataset(config, "test"), config.batch_size, workers=config.data.workers)
        return on_test_set(task, config.classes, networks, batches, device)
    if teacher is None or generate is None:
        return Scores(None, "generated")
    count = -(-NUM_GENERATED // config.batch_size)
    return Scores(agreement(teacher, student, (generate(config.batch_size, i) for i in range(count))), "generated")


def on_test_set(
    task: Task,
    classes: int,
    networks: dict[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Scores:
    """Metrics over all batches of (x, labels) for the networks by role, "student" and perhaps "teacher"."""
    metrics = {role: task.metrics(classes) for role in networks}
    same, scored = torch.zeros(2, dtype=torch.long, device=device)
    dtype = next(networks["student"].parameters()).dtype  # fp64 networks take no fp32 images
    with evaluating(networks.values()):
        for x, y in batches:
            x, labels = x.to(device, dtype), y.to(device)
            logits = {role: network(x) for role, network in networks.items()}
            for role, values in logits.items():
                metrics[role].update(values, labels)
            valid = labels != task.ignore_index if task.ignore_index is not None else torch.ones_like(labels).bool()
            first, *others = (values.argmax(1) for values in logits.values())
            same += sum(((first == other) & valid).sum() for other in others)
            scored += valid.sum()
    found = {role: metric.compute() for role, metric in metrics.items()}
    share = same.item() / scored.item() if len(networks) == 2 else None
    return Scores(share, "test", found.get("teacher", {}), found.get("student", {}))


def agreement(teacher: nn.Module, student: nn.Module, images: Iterable[Tensor]) -> float:
    """Share of positions of generated images at which teacher and student name the same class."""
    same = total = 0
    with evaluating([teacher, student]):
        for x in images:
            equal = teacher(x).argmax(1) == student(x).argmax(1)
            same, total = same + int(equal.sum()), total + equal.numel()
    return same / total


@contextmanager
def evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Networks in evaluation mode without gradients; afterwards in the mode they were in."""
    modes = [(network, network.training) for network in networks]
    try:
        for network, _ in modes:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for network, training in modes:
            network.train(training)
