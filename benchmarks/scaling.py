"""What several processes bring and cost: images/s, collectives and bytes of a round, share of time in communication.

    python -m benchmarks.scaling [--worlds 1 2] [--batch 64] [--rounds 3] [--repeats 3] [--output FILE.json]

ResNet-56 into ResNet-20 at 32x32 (random weights: the time is the same), one thread and one core a process, every
process on this host. The batch a process is fixed, so that the global batch grows: with batch norm over the global
batch; with `sync_batch_norm=false`; and with as many runs of one process that know nothing of each other, which is all
that this host can do. And the global batch is fixed, so that each process has less. Starts its own processes; the
repeats of all settings alternate, and medians are printed, of the ratios to a repeat's own single process too.
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
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from harness import config, methods
from harness.compare.markdown import pipe_table
from harness.config.parse import Overlay
from harness.distributed.runtime import Runtime, leave
from harness.networks import roles
from harness.training.machine import Machine

PAIR: Overlay = {
    "task": "classification",
    "classes": 10,
    "teacher": {"network": "resnet56", "checkpoint": "untrained"},
    "student": {"network": "resnet20"},
    "input": {"size": 32},
}


SERIES = {"fixed a process": True, "the same, batch norm of its own": False, "the same, runs apart": True,
          "fixed in all": True}  # fmt: skip
"""What is measured, and whether batch norm is synchronised in it."""


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    series: str
    world_size: int
    batch_size: int
    """The global batch of a run."""

    @property
    def num_runs(self) -> int:
        """Runs at the same time."""
        return self.world_size if self.series == "the same, runs apart" else 1


def measure(setting: Setting, num_rounds: int, meeting: Path) -> dict[str, Any]:
    """One setting on the processes there are; the same on every rank but for times."""
    torch.set_num_threads(1)
    _pin()
    overlay: Overlay = {
        "batch_size": setting.batch_size, "rounds": num_rounds + 2, "sync_batch_norm": SERIES[setting.series],
    }  # fmt: skip
    settings = config.build({**PAIR, **overlay})
    turns = methods.METHODS[settings.method].turns(settings)
    machine = Machine(settings, Runtime(settings), turns, roles.teacher(settings))
    num_losses, reduce = 0, machine.runtime.reduce

    def counted(sums: Tensor) -> Tensor:
        nonlocal num_losses
        num_losses += 1
        return reduce(sums)

    machine.runtime.reduce = counted
    _round(machine, 0)
    _meet(meeting, setting)
    began, busy = time.perf_counter(), time.process_time()
    for index in range(1, num_rounds + 1):
        _round(machine, index)
    seconds, busy = ((time.perf_counter() - began) / num_rounds, (time.process_time() - busy) / num_rounds)
    num_losses, began = 0, time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        _round(machine, num_rounds + 1)
    profiled = time.perf_counter() - began
    sums = [event for event in trace.events() if event.name.endswith(":all_reduce")]
    return {
        "images_per_second": setting.batch_size * len(turns) / seconds,
        "cpu_ms": 1e3 * busy / (setting.batch_size * len(turns) / machine.runtime.world_size),
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
    parser.add_argument("--worker", type=json.loads, metavar="SETTING", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        one = measure(Setting(*given.worker), given.rounds, given.output)
        (given.output / f"{_index()}.json").write_text(json.dumps(one))
        leave()
        return
    first, *more = sorted(given.worlds)
    settings = [Setting("fixed a process", world, given.batch * world) for world in (first, *more)]
    for world in more:
        settings.append(Setting("the same, batch norm of its own", world, given.batch * world))
        settings.append(Setting("the same, runs apart", world, given.batch))
    settings += [Setting("fixed in all", world, given.batch * max(given.worlds)) for world in (first, *more)]
    rows: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in settings}
    for _ in range(given.repeats):
        for setting in settings:
            rows[setting].append(_start(setting, given.rounds))
    if given.output:
        found = [{**asdict(setting), "runs": runs} for setting, runs in rows.items()]
        given.output.write_text(json.dumps(found, indent=1))
    _print(rows)


def _print(rows: dict[Setting, list[dict[str, Any]]]) -> None:
    """The table; each series is compared with the smallest world of its own, or of the one it is a part of."""
    header = [
        "batch", "processes", "global batch", "images/s (least to most)", "of one process (least to most)",
        "CPU ms an image (least to most)", "collectives a round (losses)", "MiB a round", "time in communication",
    ]  # fmt: skip
    lines = []
    for setting, runs in rows.items():
        whole = "fixed in all" if setting.series == "fixed in all" else "fixed a process"
        base = next(found for other, found in rows.items() if other.series == whole)
        first, share = runs[0], statistics.median(run["share"] for run in runs)
        ratios = [run["images_per_second"] / one["images_per_second"] for run, one in zip(runs, base, strict=True)]
        lines.append([
            setting.series, str(setting.world_size), str(setting.batch_size),
            _spread([run["images_per_second"] for run in runs], 1), _spread(ratios, 2),
            _spread([run["cpu_ms"] for run in runs], 2),
            f"{first['collectives']} ({first['of_losses']} in {first['turns']} turns)",
            f"{first['mib']:.2f}", f"{share:.1%}",
        ])  # fmt: skip
    print("\n".join(pipe_table(header, lines, num_text=1)))
    busy = [run["others"] for runs in rows.values() for run in runs]
    print(f"\nOther programs kept {statistics.median(busy):.2f} cores busy (at most {max(busy):.2f}).")


def _spread(values: list[float], digits: int) -> str:
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def _start(setting: Setting, num_rounds: int) -> dict[str, Any]:
    """Runs a setting; its images/s in all, and how many cores other programs kept busy meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "-m", "benchmarks.scaling", "--worker", json.dumps(astuple(setting)),
            "--rounds", str(num_rounds), "--output", folder,
        ]  # fmt: skip
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.world_size)]
        environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
        began, before, own = time.monotonic(), psutil.cpu_times(), os.times()
        parts = []
        for number in range(setting.num_runs):
            command = [sys.executable, *(launcher if setting.num_runs == 1 else []), *words]
            variables = {**environment, "APART": str(number)} if setting.num_runs > 1 else environment
            parts.append(subprocess.Popen(command, env=variables, stdout=sys.stderr))
        if any(part.wait() for part in parts):
            sys.exit(f"a process of {setting} failed")
        seconds, after, later = time.monotonic() - began, psutil.cpu_times(), os.times()
        all_of_it = sum(after[:3]) - sum(before[:3])  # user, nice, system
        others = all_of_it - sum(later[:4]) + sum(own[:4])
        found: list[dict[str, Any]] = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
        speed = sum(run["images_per_second"] for run in found[: setting.num_runs])
        return {**found[0], "images_per_second": speed, "others": max(0.0, others) / seconds}


def _index() -> int:
    """Which of a setting's processes this is."""
    return int(os.environ.get("APART") or os.environ["RANK"])


def _pin() -> None:
    """A core for this process and all of its threads: moving about costs a process its caches."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[_index() % len(cores)]})


def _meet(folder: Path, setting: Setting) -> None:
    """All processes of a setting go on together; those of runs apart cannot tell each other."""
    (folder / f"{_index()}.ready").touch()
    while len(list(folder.glob("*.ready"))) < setting.world_size:
        time.sleep(0.001)


def _round(machine: Machine, index: int) -> None:
    for turn_index in range(len(machine.turns)):
        machine.play(index, turn_index)


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
