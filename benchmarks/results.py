"""Students that start from their teachers, on real data sets: `python -m benchmarks.results`.

    DDAD_DATA=/path/to/data python -m benchmarks.results --seconds 1800                  # every pair and method
    DDAD_DATA=/path/to/data python -m benchmarks.results --seconds 600 --pairs cifar10-half --methods ddad:warm dfad

Each run is a `ddad distill` of one thread. Its rounds are those that the method does in so many seconds of processor
time, by a speed that is measured first in the same call, so that what else the machine does counts little. Rows are
added to benchmarks/results/PAIR.jsonl as runs end; what is there is not run again, and a run that was ended goes on
from its folder. Prints one table over all pairs, and writes it to benchmarks/RESULTS-starts.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import methods, pace
from benchmarks.comparison import spread
from benchmarks.methods import Run, Suite
from harness import files
from harness.compare.markdown import pipe_table
from harness.errors import UserError

TABLE = Path(__file__).with_name("RESULTS-starts.md")

METRIC = "accuracy"

INTRODUCTION = """# Students that start from their teachers

Written by `python -m benchmarks.results`, which says how its figures come about. Scores are of final states on whole
test sets, in percent; seconds are of the processor time of one thread (the rows in benchmarks/results/ have versions,
commit and date). A name that ends in `half` is a student of half its teacher's multiply-adds, cut out of it.
"""

METHODS = ["ddad:warm", "dfad", "cmi", "fast"]

AKAMASTER = ("teacher.mean=[0.485,0.456,0.406]", "teacher.std=[0.229,0.224,0.225]")
KARANCHAHAL = ("teacher.mean=[0.4914,0.4822,0.4465]", "teacher.std=[0.2023,0.1994,0.2010]")
KARANCHAHAL_100 = ("teacher.mean=[0.507,0.487,0.441]", "teacher.std=[0.267,0.256,0.276]")
"""What the published checkpoints' input was normalised with."""

HALF = ("student.network=pruned", "student.arguments={macs: 0.5}")


def _cifar10(network: str, file: str, *words: str) -> Suite:
    given = ("classes=10", "data.name=cifar10", f"teacher.network={network}", f"teacher.checkpoint={_weights(file)}")
    return Suite("classification", (0,), 0, (*given, *words), evaluations=8)


def _cifar100(network: str, file: str, *words: str) -> Suite:
    given = ("classes=100", "data.name=cifar100", f"teacher.network={network}", f"teacher.checkpoint={_weights(file)}")
    return Suite("classification", (0,), 0, (*given, *words), evaluations=8)


def _weights(file: str) -> str:
    return str(Path(os.environ.get("DDAD_DATA", "data")) / "weights" / file)


_RESNET32 = ("resnet32", "cifar10/akamaster/resnet32-d509ac18.th", *AKAMASTER)
_WRN28 = ("wrn28_1", "cifar10/karanchahal/WRN28_1_cifar10.pth", *KARANCHAHAL)
_RESNET26 = ("examples/karanchahal_resnet.py:resnet26", "cifar100/karanchahal/resnet26_cifar100.pth", *KARANCHAHAL_100)

PAIRS: dict[str, Suite] = {
    "cifar10-resnet32-half": _cifar10(*_RESNET32, *HALF),
    "cifar10-resnet32-resnet20": _cifar10(*_RESNET32, "student.network=resnet20", "student.start=teacher"),
    "cifar10-resnet32-resnet20-fresh": _cifar10(*_RESNET32, "student.network=resnet20"),
    "cifar10-wrn28_1-wrn16_1": _cifar10(*_WRN28, "student.network=wrn16_1", "student.start=teacher"),
    "cifar100-resnet26-half": _cifar100(*_RESNET26, *HALF),
}
"""A pair of networks, and what its student starts from."""


HEADER = ["pair", "method", "seeds", "teacher", "student", "agreement", "seconds", "rounds", "student updates"]


def table() -> str:
    """Every row of every pair, a line for each pair, budget and method, the best student of a pair first."""
    lines: list[list[str]] = []
    for pair in PAIRS:
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in methods.read(methods.RESULTS / f"{pair}.jsonl"):
            groups.setdefault((row["budget"], row["method"], row["variant"]), []).append(row)
        for (budget, method, variant), rows in sorted(groups.items(), key=lambda item: -_mean(item[1], "score")):
            name = method if variant == "paper" else f"{method}:{variant}"
            seeds = " ".join(str(row["seed"]) for row in sorted(rows, key=lambda row: row["seed"]))
            scores = [spread([row[key] for row in rows]) for key in ("score", "agreement")]
            teacher = f"{100 * rows[0]['teacher'][METRIC]:.2f}"
            counts = [f"{_mean(rows, key):.0f}" for key in ("rounds", "student_updates")]
            lines.append([pair, name, seeds, teacher, *scores, budget.removeprefix("seconds="), *counts])
    return "\n".join([INTRODUCTION, *pipe_table(HEADER, lines, num_text=3), ""])


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def execute(pair: str, method: str, seed: int, seconds: float) -> dict[str, Any]:
    """The row of a run of so many seconds of processor time, from the results file where it is there."""
    file, run = methods.RESULTS / f"{pair}.jsonl", Run(pair, method, seed, ())
    name, _, variant = method.partition(":")
    for row in methods.read(file):
        if (row["budget"], row["method"], row["variant"], row["seed"]) == (
            f"seconds={seconds:g}", name, variant or "paper", seed,
        ):  # fmt: skip
            return row
    settings = run.config(1)
    rounds = pace.rounds_in(settings, pace.speeds(settings, methods.RATE_ROUNDS), seconds)
    row = {"budget": f"seconds={seconds:g}", **methods.execute(run, rounds, max(1, rounds // 8))}
    methods.add(file, row)
    return row


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD[:VARIANT]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    given = parser.parse_args()
    methods.SUITES.update(PAIRS)
    try:
        for seed in given.seeds:
            for pair in given.pairs:
                for method in given.methods:
                    row = execute(pair, method, seed, given.seconds)
                    print(f"{pair}, {method}, seed {seed}: {row['score']:.2%}, {row['rounds']} rounds", flush=True)
        text = table()
        files.write(TABLE, text)
        print(text)
    except UserError as error:
        sys.exit(f"benchmarks.results: {error}")


if __name__ == "__main__":
    main()
