"""What several processes bring and cost: images/s, collectives and bytes of a round, share of time in communication.

    python -m benchmarks.scaling [--worlds 1 2] [--batch 64] [--rounds 3] [--repeats 3] [--output FILE.json]

ResNet-56 into ResNet-20 at 32x32 (random weights: the time is the same), one thread a process, every process on this
host. Two series: the batch a process is fixed, so that the global batch grows; and the global batch is fixed, so that
each process has less. Starts its own processes; the repeats of all settings alternate, and medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from harness import building, config, methods
from harness.distributed.runtime import Runtime, leave
from harness.machine import Machine
from harness.strict import Overlay

PAIR: Overlay = {
    "task": "classification",
    "classes": 10,
    "teacher": {"network": "resnet56", "checkpoint": "untrained"},
    "student": {"network": "resnet20"},
    "input": {"size": 32},
}


def measure(batch_size: int, num_rounds: int) -> dict[str, Any]:
    """One setting on the processes there are; the same on every rank but for times."""
    torch.set_num_threads(1)
    settings = config.build({**PAIR, "batch_size": batch_size, "rounds": num_rounds + 2})
    turns = methods.METHODS[settings.method].turns(settings)
    machine = Machine(settings, Runtime(settings), turns, building.teacher(settings))
    num_losses, reduce = 0, machine.runtime.reduce

    def counted(sums: Tensor) -> Tensor:
        nonlocal num_losses
        num_losses += 1
        return reduce(sums)

    machine.runtime.reduce = counted  # type: ignore[method-assign]
    _round(machine, 0)
    machine.runtime.gather(None)  # all begin together
    began = time.perf_counter()
    for index in range(1, num_rounds + 1):
        _round(machine, index)
    seconds = (time.perf_counter() - began) / num_rounds
    num_losses, began = 0, time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        _round(machine, num_rounds + 1)
    profiled = time.perf_counter() - began
    sums = [event for event in trace.events() if event.name.endswith(":all_reduce")]
    return {
        "processes": machine.runtime.world_size,
        "batch_size": batch_size,
        "images_per_second": batch_size * len(turns) / seconds,
        "turns": len(turns),
        "collectives": len(sums),
        "of_losses": num_losses if sums else 0,
        "mib": 4 * sum(_numel(event.input_shapes) for event in sums) / 2**20,
        "share": _covered(sums) / 1e6 / profiled,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=64, help="images a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="where all measurements go, as JSON")
    parser.add_argument("--worker", type=int, metavar="BATCH", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        found = measure(given.worker, given.rounds)
        if os.environ["RANK"] == "0":
            given.output.write_text(json.dumps(found))
        leave()
        return
    series = [("fixed a process", world, given.batch * world) for world in given.worlds]
    series += [("fixed in all", world, given.batch * max(given.worlds)) for world in given.worlds]
    rows: dict[tuple[str, int, int], list[dict[str, Any]]] = {place: [] for place in series}
    for _ in range(given.repeats):
        for place in series:
            rows[place].append(_start(place[1], place[2], given.rounds))
    if given.output:
        given.output.write_text(json.dumps([{"series": place[0], "runs": runs} for place, runs in rows.items()]))
    print("| batch | processes | global batch | images/s (least to most) | of one process | collectives a round "
          "(losses) | MiB a round | time in communication |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for (name, world, batch), runs in rows.items():
        speeds = [run["images_per_second"] for run in runs]
        base = statistics.median(run["images_per_second"] for run in rows[series_start(series, name)])
        first, share = runs[0], statistics.median(run["share"] for run in runs)
        print(
            f"| {name} | {world} | {batch} | {statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f}) "
            f"| {statistics.median(speeds) / base:.2f} | {first['collectives']} ({first['of_losses']} in "
            f"{first['turns']} turns) | {first['mib']:.2f} | {share:.1%} |"
        )


def series_start(series: list[tuple[str, int, int]], name: str) -> tuple[str, int, int]:
    """The setting that others of a series are compared with: its first."""
    return next(place for place in series if place[0] == name)


def _start(world_size: int, batch_size: int, num_rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size),
            "-m", "benchmarks.scaling", "--worker", str(batch_size), "--rounds", str(num_rounds), "--output", str(out),
        ]  # fmt: skip
        environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _round(machine: Machine, index: int) -> None:
    for place in range(len(machine.turns)):
        machine.play(index, place)


def _numel(shapes: list[list[int]]) -> int:
    return sum(int(torch.Size(shape).numel()) for shape in shapes)


def _covered(events: list[Any]) -> float:
    """Microseconds in which at least one collective was under way: waiting for the others counts."""
    total, end = 0.0, 0.0
    for start, stop in sorted((event.time_range.start, event.time_range.end) for event in events):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


if __name__ == "__main__":
    main()
