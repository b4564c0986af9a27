"""Students that start from their teachers, on real data sets: `python -m benchmarks.results`.

    DDAD_DATA=/path/to/data python -m benchmarks.results                          # every pair and method, 300 s each
    DDAD_DATA=/path/to/data python -m benchmarks.results --seconds 1500 --pairs cifar10-resnet32-half --methods warm

Each run is a `ddad distill` of one thread. Its rounds are those that the method does in so many seconds of processor
time, the steps before its first round taken off, by a speed that is measured first in the same call, so that what else
the machine does counts little. Rows are added to benchmarks/results/PAIR.jsonl as runs end; what is there is not run
again, and a run that was ended goes on from its folder. A pair whose teacher is to be taught has it taught first.
Prints one table over all pairs and writes it to benchmarks/RESULTS-starts.md, with a figure beside the rows.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import methods, pace
from benchmarks.comparison import spread
from benchmarks.methods import Run, Suite
from harness import files
from harness.compare.markdown import pipe_table
from harness.errors import UserError
from harness.run.palette import COLOURS

TABLE = Path(__file__).with_name("RESULTS-starts.md")

INTRODUCTION = """# Students that start from their teachers

Written by `python -m benchmarks.results`, which says how its figures come about. Scores are of final states on whole
test sets, in percent (accuracy; mean IoU on CamVid and NYUv2), with the standard deviation over seeds in parentheses;
seconds are of the processor time of one thread (the rows in benchmarks/results/ have versions, commit and date). A name
that ends in `half` is a student of half its teacher's multiply-adds, cut out of it.

The rows of `dfad`, `cmi`, `fast` and `kd` have the student's settings of `warm`: its learning rate, schedule, clipping
and comparison of blocks. Rows that begin with `warm` and a sign are `warm` with one part taken away.

![curves](results/starts.png)
"""

STUDENT = (
    "student.lr=0.02", "student.schedule=cosine", "student.average=0", "student.features=100", "student.clip=5",
)  # fmt: skip
"""The student's settings of `warm`, for every method: a published learning rate of 0.1 undoes what it starts with."""

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "warm": ("ddad:warm", ()),
    "warm + mixup": ("ddad:warm", ("replay.mixup=true",)),
    "fresh": ("ddad:fresh", ()),
    "dfad": ("dfad", STUDENT),
    "cmi": ("cmi", STUDENT),
    "fast": ("fast", STUDENT),
    "kd": ("kd", STUDENT),
    "warm - adversary": ("ddad:warm", ("weights.adversarial=0",)),
    "warm - batch norm": ("ddad:warm", ("weights.batch_norm=0",)),
    "warm - generator": ("ddad:warm", ("generator.lr=1e-12", "generator.warmup=0")),
    "warm - features": ("ddad:warm", ("student.features=0",)),
    "warm - reconstruction": ("ddad:warm", ("student.reconstruct=0",)),
    "warm, 300 rounds of warm-up": ("ddad:warm", ("generator.warmup=300",)),
    "warm, 300 rounds of warm-up, mixup": ("ddad:warm", ("generator.warmup=300", "replay.mixup=true")),
    "warm - warm-up": ("ddad:warm", ("generator.warmup=0",)),
    "warm - crops": ("ddad:warm", ("replay.augment=false",)),
}
"""Method and settings of a row's name. Without its generator, `warm` has the images of one that never learns."""

AKAMASTER = ("teacher.mean=[0.485,0.456,0.406]", "teacher.std=[0.229,0.224,0.225]")
KARANCHAHAL = ("teacher.mean=[0.4914,0.4822,0.4465]", "teacher.std=[0.2023,0.1994,0.2010]")
KARANCHAHAL_100 = ("teacher.mean=[0.507,0.487,0.441]", "teacher.std=[0.267,0.256,0.276]")
"""What the published checkpoints' input was normalised with."""

HALF = ("student.network=pruned", "student.arguments={macs: 0.5}")


def _third_party(data: str, classes: int, network: str, file: str, *words: str) -> Suite:
    weights = Path(os.environ.get("DDAD_DATA", "data")) / "weights" / file
    given = (f"classes={classes}", f"data.name={data}", f"teacher.network={network}", f"teacher.checkpoint={weights}")
    return Suite("classification", (0,), 0, (*given, *FAST, *words), evaluations=8)


FAST = ("precision=bf16", "generator.width=32")
"""Half of fp32's time on a CPU that has bf16, and a smaller generator than the default."""

_RESNET32 = ("cifar10", 10, "resnet32", "cifar10/akamaster/resnet32-d509ac18.th", *AKAMASTER)
_WRN28 = ("cifar10", 10, "wrn28_1", "cifar10/karanchahal/WRN28_1_cifar10.pth", *KARANCHAHAL)
_RESNET26 = (
    "cifar100", 100, "examples/karanchahal_resnet.py:resnet26", "cifar100/karanchahal/resnet26_cifar100.pth",
    *KARANCHAHAL_100,
)  # fmt: skip

PAIRS: dict[str, Suite] = {
    "cifar10-resnet32-half": _third_party(*_RESNET32, *HALF),
    "cifar10-resnet32-resnet20": _third_party(*_RESNET32, "student.network=resnet20", "student.start=teacher"),
    "cifar10-resnet32-resnet20-fresh": _third_party(*_RESNET32, "student.network=resnet20"),
    "cifar10-wrn28_1-wrn16_1": _third_party(*_WRN28, "student.network=wrn16_1", "student.start=teacher"),
    "cifar100-resnet26-half": _third_party(*_RESNET26, *HALF),
    "caltech101-resnet18-half": Suite("caltech101-resnet18-resnet10t", (0,), 0, (*FAST, *HALF), evaluations=8),
    "camvid-resnet18-half": Suite("camvid-resnet18-mobilenetv2", (0,), 0, (*FAST, *HALF), evaluations=8),
    "nyuv2-resnet18-half": Suite("nyuv2-resnet18-mobilenetv2", (0,), 0, (*FAST, *HALF), evaluations=8),
}
"""A pair of networks, and what its student starts from."""


RESNET20_HALF = _third_party("cifar10", 10, "resnet20", "cifar10/akamaster/resnet20-12fca82f.th", *AKAMASTER, *HALF)
"""The pair of benchmarks.objectives on CIFAR-10."""

HEADER = ["pair", "method", "seeds", "teacher", "student", "agreement", "seconds", "rounds", "student updates"]


def table() -> str:
    """Every row of every pair, a line for each pair, budget and method, the best student of a pair first."""
    lines: list[list[str]] = []
    for pair in PAIRS:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in _rows(pair):
            groups.setdefault((row["budget"], row["name"]), []).append(row)
        for (budget, name), rows in sorted(groups.items(), key=lambda item: (item[0][0], -_mean(item[1], "score"))):
            seeds = " ".join(str(row["seed"]) for row in sorted(rows, key=lambda row: row["seed"]))
            scores = [spread([row[key] for row in rows]) for key in ("score", "agreement")]
            teacher = f"{100 * rows[0]['teacher'][rows[0]['metric']]:.2f}"
            counts = [f"{_mean(rows, key):.0f}" for key in ("rounds", "student_updates")]
            lines.append([pair, name, seeds, teacher, *scores, budget.removeprefix("seconds="), *counts])
    return "\n".join([INTRODUCTION, *pipe_table(HEADER, lines, num_text=3), ""])


def draw(path: Path) -> None:
    """Agreement over seconds, a panel a pair, a line a run: those of the budget of which the pair has most rows."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    pairs = [pair for pair in PAIRS if _rows(pair)]
    height = math.ceil(len(pairs) / 2)
    figure, grid = plt.subplots(height, 2, figsize=(11, 3.2 * height), squeeze=False, layout="constrained")
    colour = dict(zip(METHODS, itertools.cycle(COLOURS), strict=False))
    for pair, axes in zip(pairs, grid.flat, strict=False):
        rows = _rows(pair)
        budget = Counter(row["budget"] for row in rows).most_common(1)[0][0]
        seconds, shown = float(budget.removeprefix("seconds=")), [row for row in rows if row["budget"] == budget]
        for row in shown:
            done = [seconds * index / row["rounds"] for index, _ in row["curve"]]
            agreement = [100 * value for _, value in row["curve"]]
            dashes = "--" if row["name"].startswith("warm -") else "-"
            label = row["name"] if row["seed"] == shown[0]["seed"] else None
            axes.plot(done, agreement, dashes, color=colour[row["name"]], label=label)
        axes.set(title=f"{pair}, {seconds:g} s", xlabel="seconds", ylabel="agreement, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in grid.flat[len(pairs) :]:
        axes.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _rows(pair: str) -> list[dict[str, Any]]:
    return methods.read(methods.RESULTS / f"{pair}.jsonl")


def _possible(pair: str) -> list[str]:
    """The methods of a pair: `kd` needs training images, which third-party pairs have none of."""
    return [name for name in METHODS if name != "kd" or PAIRS[pair].recipe != "classification"]


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def execute(pair: str, name: str, seed: int, seconds: float) -> dict[str, Any]:
    """The row of a run of so many seconds of processor time, from the results file where it is there."""
    budget, (method, words) = f"seconds={seconds:g}", METHODS[name]
    for row in _rows(pair):
        if (row["budget"], row["name"], row["seed"]) == (budget, name, seed):
            return row
    run = Run(pair, method, seed, words)
    settings = run.config(1)
    left = seconds - pace.preparation(settings)
    rounds = pace.rounds_in(settings, pace.speeds(settings, methods.RATE_ROUNDS), left)
    row = {"budget": budget, "name": name, **methods.execute(run, rounds, max(1, rounds // 8))}
    methods.add(methods.RESULTS / f"{pair}.jsonl", row)
    return row


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    given = parser.parse_args()
    methods.SUITES.update(PAIRS)
    try:
        for seed in given.seeds:
            for pair in given.pairs:
                methods.teach(pair, [])
                for name in given.methods or _possible(pair):
                    row = execute(pair, name, seed, given.seconds)
                    print(f"{pair}, {name}, seed {seed}: {row['score']:.2%}, {row['rounds']} rounds", flush=True)
        text = table()
        files.write(TABLE, text)
        draw(methods.RESULTS / "starts.png")
        print(text)
    except UserError as error:
        sys.exit(f"benchmarks.results: {error}")


if __name__ == "__main__":
    main()
