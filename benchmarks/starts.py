"""What a pruned student is worth before its first update: `python -m benchmarks.starts`.

    DDAD_DATA=/path/to/data OMP_NUM_THREADS=1 python -m benchmarks.starts

CIFAR-10, ResNet-32 (github.com/akamaster) to half of its multiply-adds: as pruned; with its batch-norm statistics
counted anew, or its layers fitted by least squares, on noise and on images of a generator after some rounds of warm-up.
Prints accuracy on the first 2,000 test images, agreement with the teacher on them, and seconds of processor time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks import results
from harness import methods, resolve
from harness import task as tasks
from harness.compare.markdown import pipe_table
from harness.config import Config
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.networks.layers import evaluating
from harness.networks.reconstruct import reconstruct
from harness.training.data import evaluation_loader
from harness.training.machine import Machine

NUM_TEST, NUM_BATCHES = 2_000, 6
"""Test images that are scored, and batches that a student is fitted on."""

WARMUPS = (0, 20, 80)
"""Rounds in which the generator has learnt."""

WORDS = ("variant=fresh", *results.WHOLE, "generator.width=32", "rounds=1", "precision=bf16")


def build(warmup: int) -> Machine:
    """The machine of the pair, with nothing prepared."""
    words = [*results.PAIRS["cifar10-resnet32-half"].words, *WORDS, f"generator.warmup={warmup}"]
    config = resolve.resolve("classification", None, resolve.read_overrides(words))
    turns = methods.find(config.method, config.variant)[0].turns(config)
    return Machine(config, Runtime(config), turns, roles.teacher(config))


def score(config: Config, teacher: nn.Module, student: nn.Module) -> tuple[float, float]:
    """(accuracy, agreement) on the first test images."""
    right = same = count = 0
    with evaluating([teacher, student]):
        for x, labels in evaluation_loader(tasks.load(config.task).dataset(config, "test"), batch_size=250):
            t, s = teacher(x).argmax(1), student(x).argmax(1)
            right, same, count = right + int((s == labels).sum()), same + int((s == t).sum()), count + len(x)
            if count >= NUM_TEST:
                break
    return right / count, same / count


def recalibrated(student: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """The student with running statistics of these images alone."""
    for layer in student.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.track_running_stats = True
    student.train()
    with torch.no_grad():
        for x in batches:
            student(x)
    return student.eval()


def fitted(change: str, built: Machine, batches: Sequence[Tensor]) -> nn.Module:
    """A copy of the machine's student, changed on these images."""
    assert built.teacher and built.structure
    student = copy.deepcopy(built.student.module)
    if change == "statistics":
        return recalibrated(student, batches)
    if change == "layers":
        with torch.no_grad():
            reconstruct(built.teacher.module, student, built.structure["kept"], batches)
    return student


def rows(built: Machine, images: str, batches: Sequence[Tensor], spent: float) -> Iterator[list[str]]:
    """The lines of one kind of images, which took `spent` seconds to make."""
    assert built.teacher
    for change in ("statistics", "layers") if batches else ("none",):
        began = time.process_time()
        student = fitted(change, built, batches)
        seconds = spent + time.process_time() - began
        accuracy, agreement = score(built.config, built.teacher.module, student)
        yield [images, change, f"{100 * accuracy:.1f}", f"{100 * agreement:.1f}", f"{seconds:.0f}"]


def main() -> None:
    """Prints the table."""
    lines: list[list[str]] = []
    for warmup in WARMUPS:
        built, began = build(warmup), time.process_time()
        for step in range(warmup):
            built.prepare(step)
        made = [built.sources.images("starts", index) for index in range(NUM_BATCHES)]
        spent = time.process_time() - began
        if warmup == 0:
            source = torch.Generator().manual_seed(0)
            noise = torch.randn(NUM_BATCHES, *made[0].shape, generator=source)
            lines += [*rows(built, "none", [], 0.0), *rows(built, "noise", list(noise), 0.0)]
        lines += rows(built, f"generator, {warmup} rounds", made, spent)
    header = ["images", "fitted anew", "accuracy, %", "agreement, %", "seconds"]
    print("\n".join(pipe_table(header, lines, num_text=2)))


if __name__ == "__main__":
    main()
