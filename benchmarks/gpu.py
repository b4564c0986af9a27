"""What needs a GPU, in slices that each end in time and go on where the last one stopped.

    python -m benchmarks.gpu --minutes 8.5                      # the next jobs that are not done, in order
    python -m benchmarks.gpu --minutes 8.5 --only cifar10       # those whose name begins like this
    python -m benchmarks.gpu --list                             # which jobs there are, and what came of them

First the rounds of benchmarks.step, at sizes that fill a card, each variant beside the plain loop; then, by suite,
every data-free method, and `kd` where there are training images, for equal seconds of rounds: a method's speed is
measured before, and gives the number of its rounds. Teachers are third-party checkpoints under $DDAD_DATA/weights, or
are taught on the way.

It needs torch, torchvision, accelerate, timm and torchmetrics, with what these bring (safetensors and pyyaml among it),
and where something is compiled a C compiler; no SciPy, OmegaConf, MLflow, Ray, matplotlib or
segmentation-models-pytorch. What has to be carried in:

    this repository
    weights/cifar10/akamaster, weights/cifar100/karanchahal     under $DDAD_DATA
    cifar-10-batches-py, cifar-100-python                       test batches are enough, but for `paper-` and `kd`
    caltech101/101_ObjectCategories, CamVid                     for the suites of these names
    nyuv2/image, nyuv2/seg13                                    likewise; not splits.mat, which takes SciPy to read

Each can be carried alone: a job whose files are missing is left out, with the reason, and is done once they are there.
One that fails, by memory, a compiler or losses that are apart, is noted with its reason and not begun again; take its
row out for another try. Rows are added to benchmarks/results/gpu.jsonl, and copied into $OUT where that is set: with
that file in its place the next slice, on this machine or a fresh one, does what is left. Run folders and taught
teachers are under build/gpu: while the machine lasts, a run that a slice interrupted is taken up there; on a fresh one
it begins anew, and so does a teacher that is still needed (a row names its own by sha256).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pace, step
from benchmarks.comparison import table
from benchmarks.gpu_suites import STEPS, SUITES, Suite
from benchmarks.methods import RESULTS, add, machine, read
from harness import resolve, task
from harness.commands.profile import measure, timing
from harness.config import Config, build
from harness.config.parse import Overlay, merge
from harness.errors import UserError, one_line
from harness.run import metrics
from harness.training import distill
from harness.training.data import data_root
from harness.training.record import class_names

ROWS, WORK = RESULTS / "gpu.jsonl", Path("build") / "gpu"

EVALUATIONS = 10
"""Points of a curve."""

CLOSING = 60.0
"""Seconds that a run needs beside its rounds: building, its method's speed, evaluations, the end."""

STEP = 40.0
"""Seconds that a variant's steps need, compiling not among them."""

WORKERS = min(8, os.cpu_count() or 1)
"""Processes that read images, test images too: in this one they would take as long as the rounds."""


@dataclass(frozen=True)
class Budget:
    """How much each job gets."""

    seconds: float = 60.0
    """Of rounds, for every method."""
    rate_rounds: int = 20
    """Rounds from which a method's speed is taken."""
    step_rounds: int = 20
    variants: tuple[str, ...] = tuple(step.VARIANTS)
    precision: str = "bf16"
    """Of the suites' runs."""
    batch_size: int | None = None
    """Of everything, in place of what fills a card."""
    warmup: int | None = None
    """The most rounds of a generator's warm-up."""

    def over(self) -> Overlay:
        """What a suite's runs have of it."""
        small: Overlay = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return {"precision": self.precision, **small}

    def shortened(self, settings: Config) -> Config:
        """The settings with no longer a warm-up; a method without one keeps none."""
        own = settings.generator
        warmup = own.warmup if self.warmup is None else min(own.warmup, self.warmup)
        return dataclasses.replace(settings, generator=dataclasses.replace(own, warmup=warmup))


REHEARSAL = Budget(seconds=1.0, rate_rounds=1, step_rounds=1, batch_size=8, warmup=1)
"""What shows on a CPU that every job works."""


@dataclass(frozen=True)
class Job:
    """Something to be done once; `work` gets the time at which it has to stop, and gives rows, none if it did stop."""

    name: str
    least: float
    """Seconds below which it is not begun."""
    work: Callable[[float], list[dict[str, Any]]]


def jobs(suites: Mapping[str, Suite], steps: Mapping[str, int], budget: Budget, seeds: Sequence[int]) -> Iterator[Job]:
    """All of them, the step comparison first, then seed by seed so that any part of it is a comparison."""
    for pair, batch in steps.items():
        for variant in budget.variants:
            yield Job(f"step/{pair}/{variant}", STEP, _step(pair, batch, variant, budget))
    for name, suite in suites.items():
        if suite.weights is None:
            yield Job(f"{name}/teach", 30.0, _teach(name, suite, budget))
        for seed in seeds:
            for method in suite.methods:
                yield Job(f"{name}/{method}/{seed}", budget.seconds + CLOSING, _run(name, suite, method, seed, budget))


def config(name: str, suite: Suite, method: str, seed: int, over: Overlay) -> Config:
    """The configuration of a suite's run; UserError where a file it needs is missing."""
    checkpoint = str(WORK / f"{name}.safetensors")
    if suite.weights:
        root = data_root(resolve.resolve(suite.recipe, None, {}))
        checkpoint = str(root / "weights" / suite.weights)
        if not Path(checkpoint).exists():
            raise UserError(f"{checkpoint} is not there")
    name, _, variant = method.partition(":")
    quiet = {
        "method": name, "variant": variant or "paper", "seed": seed,
        "teacher": {"checkpoint": checkpoint}, "tracking": {"uri": "none"},
        "pictures": False, "data": {"workers": WORKERS},
    }  # fmt: skip
    return resolve.resolve(suite.recipe, None, merge(merge(suite.over, quiet), over))


def work_through(queue: Iterator[Job], deadline: float, only: str, rows: Path) -> list[str]:
    """Does what is not done until the deadline (time.monotonic); returns the names of jobs that are left.

    `only`: the name of a job, or else what the names of jobs begin with.
    """
    every, done, left = list(queue), {row["job"] for row in read(rows)}, []
    chosen = [job for job in every if job.name == only] or [job for job in every if job.name.startswith(only)]
    for job in chosen:
        if job.name in done:
            continue
        if deadline - time.monotonic() < job.least:
            left.append(job.name)
            continue
        began = time.monotonic()
        try:
            found = job.work(deadline)
        except UserError as error:
            print(f"{job.name}: left out: {error}", flush=True)
            continue
        except Exception as error:  # whatever a library says on a machine that it was never tried on: the next may do
            reason = f"{type(error).__name__}: {one_line(error)}"
            found = [{"failed": reason, "seconds": time.monotonic() - began}]
            print(f"{job.name}: failed: {reason}", flush=True)
        for row in found:
            add(rows, {"job": job.name, **row, **machine()})
        if not found:
            left.append(job.name)
        elif out := os.environ.get("OUT"):
            shutil.copyfile(rows, Path(out) / rows.name)
        print(f"{job.name}: {'done' if found else 'interrupted'}, {time.monotonic() - began:.0f} s", flush=True)
    return left


def _step(pair: str, batch: int, variant: str, budget: Budget) -> Callable[[float], list[dict[str, Any]]]:
    def work(deadline: float) -> list[dict[str, Any]]:
        size = budget.batch_size or batch
        rows = step.measure(pair, size, [variant], budget.step_rounds)
        rows[-1] |= _share(pair, size, variant, rows[-1]["seconds"])
        print(step.table(rows), flush=True)
        return rows

    return work


def _share(pair: str, batch: int, variant: str, seconds: float) -> dict[str, float]:
    """Operations of a round, the machine's peak in its precision, and the share of it that such rounds reach."""
    switched = merge(step.VARIANTS[variant], {"speed": {"compile": None, "cuda_graphs": None, "tf32": None}})
    settings = build(merge(merge(step.PAIRS[pair], {"batch_size": batch}), switched))
    built = measure.machine(settings, print)
    with FlopCounterMode(display=False) as counted:
        measure.play(built, 0)
    usual = step.products()
    step.multiply(step.TF32)  # in which convolutions of fp32 numbers are
    peak, _ = timing.peaks(built.runtime.device, built.runtime.dtype, settings.precision)
    step.multiply(usual)
    flop = counted.get_total_flops()
    return {"flop": flop, "peak": peak, "share": flop / seconds / peak}


def _teach(name: str, suite: Suite, budget: Budget) -> Callable[[float], list[dict[str, Any]]]:
    def work(deadline: float) -> list[dict[str, Any]]:
        settings = config(name, suite, suite.methods[0], 0, budget.over())
        last = None
        for last in distill.teach(settings, WORK / f"{name}-teach", _until(deadline)):
            if last.stopped:
                return []
        return [{"result": last.result, "seconds": last.seconds}] if last else [{"result": None}]

    return work


def _run(name: str, suite: Suite, method: str, seed: int, budget: Budget) -> Callable[[float], list[dict[str, Any]]]:
    def work(deadline: float) -> list[dict[str, Any]]:
        same = budget.over()
        plain = budget.shortened(config(name, suite, method, 0, same))
        if not Path(str(plain.teacher.checkpoint)).exists() and not _teach(name, suite, budget)(deadline):
            return []
        class_names(plain)  # missing test images are told before anything is measured
        note = WORK / f"{name}-{method}-rate.json"
        if not note.exists():
            measured = json.dumps([pace.preparation(plain), pace.speeds(plain, budget.rate_rounds)])
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(measured)
        prepared, speeds = json.loads(note.read_text())
        count = pace.rounds_in(plain, speeds, budget.seconds - prepared)
        over = {
            "rounds": count, "log_every": max(1, count // 50), "evaluate_every": max(1, count // EVALUATIONS),
            "checkpoint": {"every": max(1, count // 4), "keep": 1},
        }  # fmt: skip
        settings = budget.shortened(config(name, suite, method, seed, merge(same, over)))
        last, folder = None, WORK / f"{name}-{method}-{seed}"
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for last in distill.rounds(settings, folder, _until(deadline), print):
            if last.stopped:
                return []
        assert last and last.result
        result = last.result
        score = result["student"][task.load(settings.task).primary_metric]
        curve = [[row["seconds"], row["evaluation/agreement"]] for row in metrics.read(folder / "metrics.jsonl")
                 if "evaluation/agreement" in row]  # fmt: skip
        return [{
            "suite": name, "budget": f"seconds={budget.seconds:g}", "method": settings.method,
            "variant": settings.variant, "seed": seed, "trials": 0, "score": score, "agreement": result["agreement"],
            "memory": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
            "seconds": last.seconds, "curve": curve, "rounds": count, "precision": budget.precision,
            "teacher": result["teacher"],
        }]  # fmt: skip

    return work


def _until(deadline: float) -> Callable[[], str | None]:
    return lambda: "the slice is over" if time.monotonic() > deadline - 10 else None


def report(rows: Path) -> str:
    """Tables of what was found: the step comparison, and each suite's methods."""
    every = read(rows)
    found = [row for row in every if "failed" not in row]
    names = dict.fromkeys(row["suite"] for row in found if "suite" in row)
    suites = [f"{name}\n{table([row for row in found if row.get('suite') == name])}" for name in names]
    steps = [row for row in found if row["job"].startswith("step/")]
    shares = [f"{row['pair']}, {row['variant']}: {row['flop'] / row['seconds'] / 1e12:.3g} TFLOP/s, {row['share']:.0%} "
              f"of a large matrix product" for row in steps if "share" in row]  # fmt: skip
    failed = [f"{row['job']} failed: {row['failed']}" for row in every if "failed" in row]
    return "\n\n".join([step.table(steps), *("\n".join(lines) for lines in (shares, failed) if lines), *suites])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="after which nothing is begun and a run is stopped")
    parser.add_argument("--only", default="", metavar="NAME", help="a job, or those whose names begin with this")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=Budget.seconds, help="of rounds, for every method")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file that rows are added to")
    parser.add_argument("--rehearse", action="store_true", help="everything small, also without a GPU")
    parser.add_argument("--list", action="store_true", help="print the jobs and the tables, and do nothing")
    given = parser.parse_args()
    budget = REHEARSAL if given.rehearse else Budget(seconds=given.seconds)
    queue = jobs(SUITES, STEPS, budget, given.seeds)
    if given.list:
        done = {row["job"] for row in read(given.rows)}
        print("\n".join(f"{'done' if job.name in done else '    '} {job.name}" for job in queue))
    elif not (given.rehearse or torch.cuda.is_available()):
        sys.exit("benchmarks.gpu: this machine has no GPU")
    else:
        left = work_through(queue, time.monotonic() + 60 * given.minutes, given.only, given.rows)
        print(f"left: {', '.join(left) or 'nothing'}")
    print(report(given.rows))


if __name__ == "__main__":
    main()
