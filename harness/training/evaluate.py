"""Teacher and student through the same metrics, and their agreement; on real images, or on generated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import task as tasks
from harness.config import Config, image_shape, sides
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.networks import sizes
from harness.networks.layers import evaluating
from harness.task import Dataset, Task
from harness.training.data import evaluation_loader

NUM_GENERATED = 2048
"""Number of generated images on which agreement is measured where there is no data, in batches of `batch_size`."""


Sizes = dict[str, list[int]]


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation."""

    agreement: float | None
    """Share of scored positions at which teacher and student name the same class; None without both of them."""
    agreement_on: Literal["test", "generated"]
    teacher: dict[str, Any] = field(default_factory=dict)
    """The task's metrics; empty without data or without a teacher."""
    student: dict[str, Any] = field(default_factory=dict)
    confusion: Tensor | None = None
    """[K, K + 1]: scored positions of each of the data's classes by the teacher's answer, the last being none of them.

    Without a teacher, by the student's; None without data.
    """
    classes: tuple[str, ...] = ()
    """The names of the data's classes; empty without data."""
    test_images: int | None = None
    """Number of test images; None without data."""
    sizes: dict[str, list[Sizes]] = field(default_factory=dict)
    """By role, every combination of sizes, [height, width], that occurred where logits are maps or images were resized.

    `image` is the test image's, `network` what the network was given, `labels` what its logits were brought to.
    """


def measure(
    config: Config,
    teacher: nn.Module | None,
    student: nn.Module,
    generate: Callable[[int, int], Tensor] | None,
    runtime: Runtime,
) -> Scores:
    """Scores on the whole test set of `config.data`, or agreement on `generate(batch size, index of the batch)`.

    Every process has to call: each scores its share of the test set, or all of the generated images.
    """
    networks = {"student": student} | ({"teacher": teacher} if teacher else {})
    if config.data.name != "none":
        task = tasks.load(config.task)
        data = task.dataset(config, "test")
        size, rank, world_size = _batch_size(config, data), runtime.rank, runtime.world_size
        batches = evaluation_loader(data, size, rank, world_size, workers=config.data.workers)
        scores = on_test_set(task, len(data.classes), networks, batches, runtime, sides(config.input.size))
        return replace(scores, classes=tuple(data.classes))
    if teacher is None or generate is None:
        return Scores(None, "generated")
    count = -(-NUM_GENERATED // config.batch_size)
    return Scores(agreement(teacher, student, (generate(config.batch_size, i) for i in range(count))), "generated")


def on_test_set(
    task: Task,
    classes: int,
    networks: dict[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    size: tuple[int, int],
) -> Scores:
    """Metrics over all batches of (x, labels) for the networks by role, "student" and perhaps "teacher".

    `classes` are those of the data. Images are resized to the nearest size that a network takes, else to `size`, which
    it takes, and logits that are maps to the size of the labels. Raises UserError where logits are not numbers.
    """
    metrics = {role: task.metrics(classes) for role in networks}
    fitted = {role: Fitted(network, size) for role, network in networks.items()}
    same, scored, images = torch.zeros(3, dtype=torch.long, device=runtime.device)
    not_numbers = {role: torch.zeros_like(images) for role in networks}  # images with logits that are NaN
    judged = "teacher" if "teacher" in networks else "student"
    confusion = torch.zeros(classes * (classes + 1), dtype=torch.long, device=runtime.device)
    weights = next(networks["student"].parameters(), torch.empty(0))  # an ONNX file shows none
    dtype = weights.dtype  # fp64 networks take no fp32 images
    with evaluating(networks.values()):
        for x, y in batches:
            x, labels = x.to(runtime.device, dtype), y.to(runtime.device)
            logits = {role: network(x, labels.shape[1:]) for role, network in fitted.items()}
            valid = labels != task.ignore_index if task.ignore_index is not None else torch.ones_like(labels).bool()
            answers = {role: values.argmax(1) for role, values in logits.items()}
            for role, values in logits.items():
                metrics[role].update(values, labels)
                not_numbers[role] += values.isnan().flatten(1).any(1).sum()
            images += len(x)
            first, *others = answers.values()
            same += sum(((first == other) & valid).sum() for other in others)
            scored += valid.sum()
            pairs = labels[valid] * (classes + 1) + answers[judged][valid].clamp(max=classes)  # no class of the data's
            confusion += torch.bincount(pairs, minlength=len(confusion))
    found = {role: metric.compute() for role, metric in metrics.items()}  # torchmetrics sums over the processes itself
    counts = runtime.gather((same.item(), scored.item(), images.item(), *(num.item() for num in not_numbers.values())))
    num_same, num_scored, num_images, *num_wrong = (sum(column) for column in zip(*counts, strict=True))
    for role, num in zip(networks, num_wrong, strict=True):
        if num:
            raise UserError(
                f"the {role} answers {num} of {num_images} test images with logits that are NaN, which name no class: "
                "are its weights, mean and std right? In precision=bf16 try fp32"
            )
    share = num_same / num_scored if len(networks) == 2 and num_scored else None
    used = {role: _merged(runtime.gather(network.sizes)) for role, network in fitted.items()}
    used = {role: sizes_met for role, sizes_met in used.items() if sizes_met}
    matrix = runtime.total(confusion).view(classes, -1).cpu()
    return Scores(
        share, "test", found.get("teacher", {}), found.get("student", {}), matrix, test_images=num_images, sizes=used
    )


def _merged(lists: list[list[Sizes]]) -> list[Sizes]:
    """Every combination of sizes that occurred anywhere, once."""
    every = [sizes_met for part in lists for sizes_met in part]
    return [sizes_met for index, sizes_met in enumerate(every) if sizes_met not in every[:index]]


class Fitted:
    """A network for images of any size, in eval mode; `sizes` are those that occurred.

    Where it takes no size near to an image's, the image is resized to `size`, which it takes.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        self.network, self.size = network, size
        self.sizes: list[Sizes] = []
        self._taken: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, x: Tensor, wanted: Sequence[int]) -> Tensor:
        """x [B, C, H, W] -> logits [B, K], or [B, K, *wanted]; images and logits are resized where that is needed."""
        given = tuple(x.shape[2:])
        if given not in self._taken:
            self._taken[given] = sizes.nearest(self.network, x) or self.size
        taken = self._taken[given]
        y: Tensor = self.network(x if taken == given else _resize(x, taken))
        is_map = y.dim() == 4
        record = {"image": list(given), "network": list(taken)} | ({"labels": list(wanted)} if is_map else {})
        if record not in self.sizes and (is_map or taken != given or given != self.size):
            self.sizes.append(record)
        return y if not is_map or tuple(y.shape[2:]) == tuple(wanted) else _resize(y, wanted)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def _batch_size(config: Config, data: Dataset) -> int:
    """Images in a batch of evaluation: no more pixels than a batch of the run has."""
    _, height, width = image_shape(config)
    pixels = data[0][0][0].numel() if len(data) else height * width
    return max(1, min(config.batch_size, config.batch_size * height * width // pixels))


def agreement(teacher: nn.Module, student: nn.Module, images: Iterable[Tensor]) -> float:
    """Share of positions of generated images at which teacher and student name the same class."""
    same = total = 0
    with evaluating([teacher, student]):
        for x in images:
            equal = teacher(x).argmax(1) == student(x).argmax(1)
            same, total = same + int(equal.sum()), total + equal.numel()
    return same / total
