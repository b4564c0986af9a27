"""What the harness costs: rounds of `ddad distill` against a bare loop of the same networks, alternating.

    python -m benchmarks.overhead [--pair digits] [--rounds 60] [--repeats 5] [--tracking sqlite:///overhead.db]
    python -m benchmarks.overhead --within --pair resnet56-resnet20 --rounds 10 --repeats 3

Both use the same networks, losses, optimisers, batch and number of turns. The bare loop is written the plain way,
in one function, without logging, checkpoints, progress, alarms, tracking or resume. Prints a line a repeat and the
median ratio of seconds. `digits` needs its teacher (`ddad teach digits`), the other pair has one of random weights.

The bare loop is eager and contiguous, so the ratio holds what the harness gains too. `--within` compares the command's
rounds with the same rounds of the same machinery and nothing between them: what logging, checkpoints, progress,
alarms, pictures and tracking cost alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from harness import resolve, task
from harness.commands.profile import measure
from harness.config import Config, image_shape
from harness.config.parse import Overlay
from harness.networks import build, roles
from harness.training.distill import rounds

PAIRS: dict[str, tuple[str, Overlay]] = {
    "digits": ("digits", {}),
    "resnet56-resnet20": (
        "classification",
        {"classes": 10, "teacher": {"network": "resnet56", "checkpoint": "untrained"},
         "student": {"network": "resnet20"}, "batch_size": 16},
    ),
}  # fmt: skip
"""(recipe, values) by name."""


def bare(config: Config) -> float:
    """Seconds of all rounds in a hand-written loop."""
    torch.manual_seed(config.seed)
    teacher = roles.teacher(config).eval().requires_grad_(False)
    student = build.network(task.load(config.task), config.student.network, config.classes, image_shape(config)[0])
    generator = roles.generator(config)
    student_optimizer = torch.optim.SGD(student.parameters(), config.student.lr, 0.9, weight_decay=5e-4)
    generator_optimizer = torch.optim.Adam(generator.parameters(), config.generator.lr)
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(student_optimizer, config.rounds * config.student_steps),
        torch.optim.lr_scheduler.CosineAnnealingLR(generator_optimizer, config.rounds),
    ]
    distances: list[Tensor] = []

    def judge(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            assert (
                isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None
            )
            mean = inputs[0].mean((0, 2, 3))
            var = (inputs[0] - mean[:, None, None]).square().mean((0, 2, 3))
            distances.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(judge)
    began = time.perf_counter()
    for _ in range(config.rounds):
        student.requires_grad_(True)
        for _ in range(config.student_steps):
            with torch.no_grad():
                x = generator(torch.randn(config.batch_size, config.generator.latent_size))
                t = teacher(x)
            loss = (t - student(x)).abs().mean()
            student_optimizer.zero_grad()
            loss.backward()
            student_optimizer.step()
            schedules[0].step()
        student.requires_grad_(False)
        distances.clear()
        x = generator(torch.randn(config.batch_size, config.generator.latent_size))
        t = teacher(x)
        loss = torch.stack(distances).sum() - (t - student(x)).abs().mean()
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()
        schedules[1].step()
    return time.perf_counter() - began


def harnessed(config: Config) -> float:
    """Seconds of all rounds as the command runs them, with everything it does between and after them."""
    with tempfile.TemporaryDirectory() as folder:
        *_, last = rounds(config, Path(folder) / "run")
    return last.seconds


def within(config: Config) -> float:
    """Seconds of all rounds of the same machinery, with nothing between them."""
    built = measure.machine(config, print)
    began = time.perf_counter()
    for index in range(config.rounds):
        measure.play(built, index)
    return time.perf_counter() - began


def main() -> None:
    """Alternates the two and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="digits")
    parser.add_argument("--within", action="store_true", help="against the same rounds with nothing between them")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tracking", default="none")
    options = parser.parse_args()
    recipe, over = PAIRS[options.pair]
    config = resolve.resolve(recipe, None, {**over, "rounds": options.rounds, "tracking": {"uri": options.tracking}})
    base: Callable[[Config], float] = within if options.within else bare
    base(dataclasses.replace(config, rounds=2))  # warms up
    ratios = []
    for repeat in range(options.repeats):
        plain, ours = base(config), harnessed(config)
        ratios.append(ours / plain)
        print(f"repeat {repeat}: bare {plain:.2f} s, harness {ours:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}, range {min(ratios):.3f} to {max(ratios):.3f}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
