"""The arithmetic of a comparison of methods: from rows of results to a table and a figure.

A row is one run: suite, budget, method, variant, seed, trials, score, agreement, seconds, memory (MiB, None where it
is not known) and its curve, [[seconds, agreement], ...]. Scores and agreements are shares of 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.compare.markdown import pipe_table
from harness.run.palette import COLOURS

Row = Mapping[str, Any]

REACHED = 0.95
"""Share of the best method's final agreement at which a method counts as arrived."""

HEADER = [
    "method", "trials", "seeds", "student", "agreement", "below the best", "seconds", "seconds to 95 %", "peak MiB",
]  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and where it lies with 95 % confidence; None from a single pair."""

    mean: float
    interval: tuple[float, float] | None

    @property
    def tie(self) -> bool:
        """Whether the interval holds 0: these seeds do not tell the two apart."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


def paired(best: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """other - best over the seeds that both have, with Student's t; None where they share none."""
    values = [other[seed] - best[seed] for seed in sorted(best.keys() & other.keys())]
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(mean, None)
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(mean, (mean - half, mean + half))


def arrival(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Seconds at which a curve first is at `target` or above; None where it never is."""
    return next((seconds for seconds, agreement in curve if agreement >= target), None)


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one suite and budget by method and variant, the best mean score first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = row["method"] if row["variant"] == "paper" else f"{row['method']} ({row['variant']})"
        found.setdefault(name, []).append(row)
    return dict(sorted(found.items(), key=lambda item: -statistics.fmean(row["score"] for row in item[1])))


def table(rows: Sequence[Row]) -> str:
    """A markdown table; percentages, mean and standard deviation over seeds, the best method first."""
    methods = by_method(rows)
    best_rows = next(iter(methods.values()))
    best = {row["seed"]: row["score"] for row in best_rows}
    target = REACHED * statistics.fmean(row["agreement"] for row in best_rows)
    lines = []
    for name, runs in methods.items():
        difference = paired(best, {row["seed"]: row["score"] for row in runs})
        arrivals = [arrival(row["curve"], target) for row in runs]
        reached = [seconds for seconds in arrivals if seconds is not None]
        lines.append(
            [
                name,
                str(max(row["trials"] for row in runs)),
                " ".join(str(row["seed"]) for row in sorted(runs, key=lambda row: row["seed"])),
                spread([row["score"] for row in runs]),
                spread([row["agreement"] for row in runs]),
                "best" if runs is best_rows else told(difference),
                f"{statistics.fmean(row['seconds'] for row in runs):.0f}",
                f"{statistics.median(reached):.0f}" if len(reached) == len(runs) else "-",
                "-" if any(row["memory"] is None for row in runs) else f"{max(row['memory'] for row in runs):.0f}",
            ]
        )
    return "\n".join(pipe_table(HEADER, lines))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent; of a single value no deviation."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def told(difference: Difference | None) -> str:
    """A difference in percentage points with its interval; a tie is called one."""
    if difference is None:
        return "no seed in common"
    mean = f"{100 * difference.mean:+.2f}"
    if difference.interval is None:
        return f"{mean} (one seed)"
    low, high = (f"{100 * bound:+.2f}" for bound in difference.interval)
    return f"{mean} [{low}, {high}]" + (", a tie" if difference.tie else "")


STYLES = [(colour, dashes) for dashes in ("-", "--", ":", "-.") for colour in COLOURS]
"""Of lines in one picture, no two alike."""


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Agreement by seconds: a colour for each method, a line for each seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (colour, dashes), (name, runs) in zip(STYLES, by_method(rows).items(), strict=False):
        for index, row in enumerate(runs):
            seconds, agreements = zip(*row["curve"], strict=True)
            shown, label = [100 * value for value in agreements], name if index == 0 else None
            axes.plot(seconds, shown, dashes, color=colour, alpha=0.7, label=label)
    axes.set(xlabel="seconds", ylabel="agreement with the teacher, %", ylim=(0, 100), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
