"""Runs of named settings at equal processor time, in one table and one figure, for benchmarks.results and .parts.

Each run is a `ddad distill` of one thread. Its rounds are those that the method does in so many seconds of processor
time, the steps before its first round taken off, by a speed that is measured first in the same call, so that what else
the machine does counts little. Rows are added to benchmarks/results/PAIR.jsonl as runs end; what is there is not run
again, and a run that was ended goes on from its folder. A pair whose teacher is to be taught has it taught first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import methods, pace
from benchmarks.comparison import STYLES, spread
from benchmarks.methods import Run, Suite
from harness import files
from harness.compare.markdown import pipe_table
from harness.errors import UserError

HEADER = ["pair", "method", "seeds", "teacher", "student", "agreement", "seconds", "rounds", "student updates"]


@dataclass(frozen=True)
class Study:
    """Pairs of networks, and the methods that are run on each."""

    pairs: Mapping[str, Suite]
    """By the name of its results file; each is a Suite of benchmarks.methods too while the study runs."""
    methods: Mapping[str, tuple[str, tuple[str, ...]]]
    """Method and settings of a row's name."""
    possible: Callable[[str], list[str]]
    """The methods of a pair, where none are named."""
    introduction: str
    """What stands above the table."""
    table_file: Path
    figure_file: Path
    in_view: float = 100.0
    """Points below its best curve that a panel shows, so that a run that failed does not flatten the others."""

    def table(self) -> str:
        """Every row of every pair, a line for each pair, budget and method, the best student of a pair first."""
        lines: list[list[str]] = []
        for pair in self.pairs:
            groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
            for row in rows(pair):
                groups.setdefault((_seconds(row["budget"]), row["name"]), []).append(row)
            for (seconds, name), found in sorted(
                groups.items(), key=lambda item: (item[0][0], -_mean(item[1], "score"))
            ):
                seeds = " ".join(str(row["seed"]) for row in sorted(found, key=lambda row: row["seed"]))
                scores = [spread([row[key] for row in found]) for key in ("score", "agreement")]
                teacher = f"{100 * found[0]['teacher'][found[0]['metric']]:.2f}"
                counts = [f"{_mean(found, key):.0f}" for key in ("rounds", "student_updates")]
                lines.append([pair, name, seeds, teacher, *scores, f"{seconds:g}", *counts])
        return "\n".join([self.introduction, *pipe_table(HEADER, lines, num_text=3), ""])

    def draw(self) -> None:
        """Agreement over seconds, a panel a pair, a line a run, which ends where its budget does."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import LogLocator, NullFormatter

        pairs = [pair for pair in self.pairs if rows(pair)]
        width = min(2, len(pairs))
        panels = [pairs[start : start + width] for start in range(0, len(pairs), width)]
        heights = [max(3.2, *(0.17 * len(self.styles(pair)) + 0.6 for pair in line)) for line in panels]  # of legends
        figure, grid = plt.subplots(
            len(panels), width, figsize=(7 * width, sum(heights)), height_ratios=heights, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for pair, axes in zip(pairs, grid.flat, strict=False):
            styles, named = self.styles(pair), set[str]()
            for row in rows(pair):
                done, agreement = curve(row)
                (colour, dashes), first = styles[row["name"]], row["name"] not in named
                axes.plot(done, agreement, dashes, color=colour, label=row["name"] if first else None)
                named.add(row["name"])
            axes.set(title=pair, xlabel="seconds", ylabel="agreement, %", xscale="log")
            points = [value for line in axes.lines for value in line.get_ydata()]
            axes.set_ylim(bottom=min(value for value in points if value >= max(points) - self.in_view) - 1)
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        for axes in grid.flat[len(pairs) :]:
            axes.remove()
        self.figure_file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.figure_file, dpi=130)
        plt.close(figure)

    def styles(self, pair: str) -> dict[str, tuple[str, str]]:
        """Colour and dashes of each method in the panel of a pair, no two alike."""
        present = {row["name"] for row in rows(pair)}
        return dict(zip([name for name in self.methods if name in present], STYLES, strict=False))

    def execute(self, pair: str, name: str, seed: int, seconds: float) -> dict[str, Any]:
        """The row of a run of so many seconds of processor time, from the results file where it is there."""
        budget, (method, words) = f"seconds={seconds:g}", self.methods[name]
        for row in rows(pair):
            if (row["budget"], row["name"], row["seed"]) == (budget, name, seed):
                return row
        run = Run(pair, method, seed, words)
        settings = run.config(1)
        before = pace.preparation(settings)
        rounds = pace.rounds_in(settings, pace.speeds(settings, methods.RATE_ROUNDS), seconds - before)
        every = max(1, rounds // self.pairs[pair].evaluations)
        row = {"budget": budget, "name": name, "preparation": before, **methods.execute(run, rounds, every)}
        methods.add(methods.RESULTS / f"{pair}.jsonl", row)
        return row

    def main(self, command: str, description: str | None) -> None:
        """The command line of a study."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--pairs", nargs="+", choices=self.pairs, default=list(self.pairs))
        parser.add_argument("--methods", nargs="+", choices=self.methods, default=None)
        parser.add_argument("--seeds", nargs="+", type=int, default=[0])
        parser.add_argument("--seconds", type=float, default=300.0)
        given = parser.parse_args()
        methods.SUITES.update(self.pairs)
        try:
            for seed in given.seeds:
                for pair in given.pairs:
                    methods.teach(pair, [])
                    for name in given.methods or self.possible(pair):
                        row = self.execute(pair, name, seed, given.seconds)
                        print(f"{pair}, {name}, seed {seed}: {row['score']:.2%}, {row['rounds']} rounds", flush=True)
            text = self.table()
            files.write(self.table_file, text)
            self.draw()
            print(text)
        except UserError as error:
            sys.exit(f"{command}: {error}")


def rows(pair: str) -> list[dict[str, Any]]:
    """All rows of a pair's results."""
    return methods.read(methods.RESULTS / f"{pair}.jsonl")


def curve(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds of a row's evaluations, and agreement in percent."""
    before = row.get("preparation", 0.0)  # rows until 2026-11-30 do not say; it is 4 to 12 s of them
    seconds = [before + (_seconds(row["budget"]) - before) * index / row["rounds"] for index, _ in row["curve"]]
    return seconds, [100 * value for _, value in row["curve"]]


def _seconds(budget: str) -> float:
    return float(budget.removeprefix("seconds="))


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)
