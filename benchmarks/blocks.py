"""Which of a teacher's blocks a student with fewer should begin with: every choice before any update.

    DDAD_DATA=data python -m benchmarks.blocks

Accuracy on the first 1,000 test images of CIFAR-10, which chooses nothing; and, without data, agreement with the
teacher and mean KL divergence from it on 1,000 images of normal noise. Prints a Markdown table. Seconds on one core.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import config, task
from harness.networks import build, inheriting, weights

COUNT = 1000
"""Images of each kind."""

PAIRS = (
    ("resnet32", "resnet20", "akamaster/resnet32-d509ac18.th", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("wrn28_1", "wrn16_1", "karanchahal/WRN28_1_cifar10.pth", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
)
"""Teacher, student, the teacher's file below DDAD_DATA/weights/cifar10, and its normalisation."""


def rows() -> Iterator[tuple[str, ...]]:
    """Teacher and student, blocks, accuracy, agreement, divergence."""
    tasks = task.load("classification")
    noise = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for teacher_name, student_name, file, mean, std in PAIRS:
        teacher, student = (build.network(tasks, name, 10, 3).eval() for name in (teacher_name, student_name))
        weights.load(teacher, Path(os.environ["DDAD_DATA"], "weights/cifar10", file), teacher_name)
        overlay = {"task": "classification", "classes": 10, "data": {"name": "cifar10"}}
        data = tasks.dataset(config.build({**overlay, "teacher": {"mean": list(mean), "std": list(std)}}), "test")
        pairs = [data[index] for index in range(COUNT)]
        images, labels = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
        theirs = logits(teacher, noise)
        deep, short = (len(list(next(_stages(network)).children())) for network in (teacher, student))
        for later in itertools.combinations(range(1, deep), short - 1):
            blocks = [0, *later]
            inheriting.inherit(student, teacher, (student_name, teacher_name), blocks)
            ours = logits(student, noise)
            divergence = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")
            yield (
                f"{teacher_name} -> {student_name}",
                ", ".join(map(str, blocks)),
                f"{(logits(student, images).argmax(1) == labels).float().mean():.1%}",
                f"{(ours.argmax(1) == theirs.argmax(1)).float().mean():.1%}",
                f"{divergence:.2f}",
            )


@torch.no_grad()
def logits(network: nn.Module, x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, K], in eval mode."""
    return torch.cat([network(part) for part in x.split(100)])


def _stages(network: nn.Module) -> Iterator[nn.Module]:
    """The stages of blocks."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Sequential) and "0" in dict(module.named_children()) and "layer" in name:
            yield module


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| networks | the teacher's blocks | accuracy | agreement on noise | divergence |\n|---|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |", flush=True)
