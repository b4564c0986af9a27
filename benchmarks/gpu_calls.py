"""A quarter of an hour on one GPU, in two calls. What a call has found is kept when it is cut short.

    python -m benchmarks.gpu_calls first --minutes 9       # the step against the plain loop, then CIFAR-10
    python -m benchmarks.gpu_calls second --minutes 4.5    # CIFAR-100
    python -m benchmarks.gpu_calls first --rehearse        # on a CPU, everything small

A call is a list of parts. The jobs of a part (`benchmarks.gpu --list` has their names) run at the same time, each in a
process of its own on the one card, which small networks do not fill; what is timed runs by itself. Every job has a file
of rows, which it copies into $OUT as soon as it has a row; at the end of a part these rows are joined in
benchmarks/results/gpu.jsonl, also copied there. A job that is done is not run again. What has to be carried in is what
`benchmarks.gpu` says of cifar10 and cifar100: the repository, two checkpoints and the test batches, 45 MiB together.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gpu
from benchmarks.methods import add, read


@dataclass(frozen=True)
class Part:
    """Jobs of `benchmarks.gpu` that run at the same time, and for how long."""

    jobs: tuple[str, ...]
    minutes: float
    """After which the part ends, with what it has."""
    seconds: float = 60.0
    """Of each student's rounds."""


CALLS: dict[str, list[Part]] = {
    "first": [
        Part(("step/resnet34-resnet18/bf16",), 0.7),
        Part(("step/resnet34-resnet18/bf16-graphs",), 1.5),
        Part(("step/resnet56-resnet20/bf16-graphs",), 1.5),
        Part(
            (
                "cifar10/ddad:blocks/0", "cifar10/cmi/0", "cifar10-inherited/ddad:warm/0", "cifar10-inherited/dfad/0",
                "cifar10-half/ddad:warm/0",
            ),
            4.8,
            180.0,
        ),
    ],
    "second": [Part(("cifar100-half/ddad:warm/0", "cifar100-half/dfad/0", "cifar100/cmi/0"), 4.2, 180.0)],
}  # fmt: skip
"""What each call does, in order. Its minutes sum to less than the call's."""


GRACE = 15.0
"""Seconds in which a job that was told to stop can still write its rows."""


def play(part: Part, deadline: float, rehearse: bool) -> None:
    """Runs the jobs of a part until its time or the call's is over, and joins their rows."""
    end = deadline if rehearse else min(deadline, time.monotonic() + 60 * part.minutes)  # a CPU takes what it takes
    done = {row["job"] for row in read(gpu.ROWS)}
    names = {job: re.sub("[/:]", "-", job) for job in part.jobs}  # what is carried back must have plain names
    files = {job: gpu.WORK / "rows" / f"{name}.jsonl" for job, name in names.items() if job not in done}
    words = ["--minutes", f"{(end - time.monotonic()) / 60:.3f}", "--seconds", f"{part.seconds:g}"]
    words += ["--rehearse"] * rehearse
    running = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", "--only", job, "--rows", str(file), *words])
        for job, file in files.items()
    ]
    for process in running:
        try:
            process.wait(max(0.0, end - time.monotonic()) + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for file in files.values():
        for row in read(file):
            add(gpu.ROWS, row)
    if (out := os.environ.get("OUT")) and gpu.ROWS.exists():
        shutil.copyfile(gpu.ROWS, Path(out) / gpu.ROWS.name)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--rehearse", action="store_true", help="everything small, also without a GPU")
    given = parser.parse_args()
    deadline = time.monotonic() + 60 * given.minutes
    for part in CALLS[given.call]:
        if deadline - time.monotonic() > GRACE:
            play(part, deadline - GRACE, given.rehearse)
    print(gpu.report(gpu.ROWS))


if __name__ == "__main__":
    main()
