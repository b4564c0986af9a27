"""Estimated traffic of a network between processes: bytes of a round by strategy, and the bandwidth they need.

    python -m benchmarks.bandwidth [--batch 32] [--tflops 50] [--share 0.2]

Networks are built and counted, nothing is sent. A ring all-reduce of P bytes among W processes sends 2 (W - 1) / W P
from each, a gather or a scatter half of that. A round's arithmetic comes from torch's counter; `--tflops` is what a
device is taken to sustain, `--batch` the images a process has, `--share` the part of that time in which a process may
be sending. What is hidden behind arithmetic, latencies and the loss's own few numbers are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness import methods, resolve
from harness.algorithm.moments import NormLayer
from harness.compare.markdown import pipe_table
from harness.config import Config
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.training.machine import Machine

RECIPES = ("cifar10-resnet34-resnet18", "camvid-resnet50-mobilenetv2")
WORLDS = (8, 64, 512)


def passes(strategy: str, stage: int = 0) -> tuple[float, float]:
    """How often a network's bytes cross the wire (in halves of an all-reduce): in its own turn, in those of others.

    Under stage 3 and FSDP weights are gathered for forward and for backward, and gradients scattered.
    """
    sharded = strategy == "fsdp" or stage == 3
    return (3.0, 1.0) if sharded else (2.0, 0.0)


def sent(sizes: Mapping[str, float], steps: int, own: float, others: float, teacher: bool) -> float:
    """Bytes a process sends in a round, but for the factor (W - 1) / W: `steps` student turns, one of the generator.

    The student runs forward and backward in the generator's turn, the generator only forward in each student turn.
    """
    student = sizes["student"] * (steps * own + 2 * others)
    generator = sizes["generator"] * (own + steps * others)
    return student + generator + (sizes["teacher"] * (steps + 2) if teacher else 0.0) + 2 * sizes["norms"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tflops", type=float, default=50.0)
    parser.add_argument("--share", type=float, default=0.2)
    given = parser.parse_args()
    strategies = {
        "ddp; ZeRO 0, 1, 2": (*passes("ddp"), False),
        "fsdp; ZeRO 3": (*passes("fsdp"), False),
        "fsdp, sharded teacher": (*passes("fsdp"), True),
    }
    header = ["pair", "strategy", "MB a round and process, W = 8 / 64 / 512", "Gbit/s a process, W = 8 / 64 / 512"]
    lines, notes = [], []
    for recipe in RECIPES:
        config = resolve.untrained(resolve.resolve(recipe, None, {"tracking": {"uri": "none"}, "batch_size": 2}))
        flops, sizes, reductions = _count(config)
        seconds = flops / config.batch_size * given.batch / (given.tflops * 1e12)
        for name, (own, others, teacher) in strategies.items():
            total = sent(sizes, config.student_steps, own, others, teacher)
            loads = [total * (world - 1) / world for world in WORLDS]
            megabytes = " / ".join(f"{load / 1e6:.0f}" for load in loads)
            rates = " / ".join(f"{load * 8 / (seconds * given.share) / 1e9:.0f}" for load in loads)
            lines.append([recipe, name, megabytes, rates])
        notes.append(
            f"{recipe}: {flops / config.batch_size / 1e9:.1f} GFLOP an image and round, so {seconds:.3f} s a round "
            f"of {given.batch} images a process; {reductions} reductions of losses and batch norm a round"
        )
    print("\n".join([*pipe_table(header, lines, num_text=2), "", *notes]))


def _count(config: Config) -> tuple[float, dict[str, float], int]:
    """(floating-point operations of a round, bytes by network and of batch norm's sums, small reductions a round)."""
    turns = methods.find(config.method, config.variant)[0].turns(config)
    machine = Machine(config, Runtime(config), turns, roles.teacher(config))
    with FlopCounterMode(display=False) as counter:
        for turn_index in range(len(turns)):
            machine.play(0, turn_index)
    assert machine.teacher and machine.generator
    modules = {
        "teacher": machine.teacher.module, "student": machine.student.module, "generator": machine.generator.module,
    }  # fmt: skip
    sizes = {
        name: 4.0 * sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()
    }
    steps = config.student_steps
    # Forward in every turn; backward of the student in all, of the generator in its own.
    student, generator = _norms(modules["student"]), _norms(modules["generator"])
    sizes["norms"] = 4.0 * (
        2 * (steps + 1) * sum(2 * c + 1 for c in student) + (steps + 2) * sum(2 * c + 1 for c in generator)
    )
    reductions = 2 * (steps + 1) * len(student) + (steps + 2) * len(generator) + len(turns)
    return float(counter.get_total_flops()), sizes, reductions


def _norms(module: nn.Module) -> list[int]:
    return [layer.num_features for layer in module.modules() if isinstance(layer, NormLayer)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
