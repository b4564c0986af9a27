"""The statistics of benchmarks.objectives: rank correlations with their intervals, as a page.

A row is one run: score (None if it failed), objectives {kind of probe: {objective: value}}, teacher.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.compare.markdown import pipe_table
from tune.plan import DEFAULT_IMAGES, DEFAULT_OBJECTIVE

Row = Mapping[str, Any]
Candidate = tuple[str, str]
"""(objective, kind of probe)."""

MIN_RUNS = 8
"""The smallest number of runs for a correlation."""

NUM_RESAMPLES = 2000

FIRST: Candidate = ("agreement", "generator")
"""The objective that the others are compared with: the simplest."""

INTRODUCTION = f"""# Data-free objectives against the test set

Written by `python -m benchmarks.objectives`, which says how its runs come about. Each figure is Spearman's rank
correlation, over the runs of a suite, of an objective (without data) and the students' scores on the test set, with a
95 % interval by bootstrap over the runs ({NUM_RESAMPLES} resamples, percentiles). The last column compares the mean
over the suites with that of `agreement` on `generator`, by the same resamples: where its interval has 0, they are not
told apart.
"""


def candidates(rows: Sequence[Row]) -> list[Candidate]:
    """The objectives on the probes that the first row has."""
    return [(name, kind) for kind, values in rows[0]["objectives"].items() for name in values]


def correlations(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of scores [n] and each column of values [n, m > 1] -> [m]; nan for equal values."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that are constant
        matrix = stats.spearmanr(np.column_stack([scores, values])).statistic
    return np.asarray(matrix[0, 1:])


def resampled(scores: np.ndarray, values: np.ndarray, count: int = NUM_RESAMPLES) -> np.ndarray:
    """`correlations` of resamples of the runs, with replacement: [count, m], the same resamples for each column."""
    source = np.random.default_rng(0)
    draws = source.integers(len(scores), size=(count, len(scores)))
    return np.stack([correlations(scores[rows], values[rows]) for rows in draws])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of values."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def page(suites: Mapping[str, Sequence[Row]]) -> str:
    """The tables: each candidate's correlation in each suite, the best mean first; and the runs of the suites."""
    if not suites:
        return INTRODUCTION + f"\nNo suite has {MIN_RUNS} runs yet.\n"
    found, drawn, known = {}, {}, candidates([row for rows in suites.values() for row in _finished(rows)])
    for suite, rows in suites.items():
        scores, values = _arrays(_finished(rows), known)
        found[suite], drawn[suite] = correlations(scores, values), resampled(scores, values)
    means, mean_draws = np.mean(list(found.values()), 0), np.mean(list(drawn.values()), 0)
    base = known.index(FIRST)
    lines = []
    for index in np.argsort(-means):
        name, kind = known[index]
        mark = " (default)" if (name, kind) == (DEFAULT_OBJECTIVE, DEFAULT_IMAGES) else ""
        cells = [_cell(found[suite][index], drawn[suite][:, index]) for suite in suites]
        difference = mean_draws[:, index] - mean_draws[:, base]
        told = "-" if index == base else _cell(means[index] - means[base], difference, "+.2f")
        lines.append([name + mark, kind, *cells, f"{means[index]:.2f}", told])
    head = ["objective", "probe", *suites, "mean", "mean less that of agreement on generator"]
    tables = [*pipe_table(head, lines, num_text=2), "", *_runs_table(suites)]
    return "\n".join([INTRODUCTION, *tables, ""])


def _finished(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["score"] is not None]


def _arrays(rows: Sequence[Row], known: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n], and the value of each candidate [n, m]."""
    values = [[row["objectives"][kind][name] for name, kind in known] for row in rows]
    return np.array([row["score"] for row in rows]), np.array(values)


def _cell(value: float, values: np.ndarray, form: str = ".2f") -> str:
    low, high = interval(values)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _runs_table(suites: Mapping[str, Sequence[Row]]) -> list[str]:
    """What was run: the number of runs, and the spread of the scores that an objective has to order."""
    lines = []
    for suite, rows in suites.items():
        scores = sorted(100 * row["score"] for row in _finished(rows))
        spread = [f"{scores[0]:.1f}", f"{statistics.median(scores):.1f}", f"{scores[-1]:.1f}"]
        counts = [f"{rows[0]['seconds']:g}", str(len(scores)), str(len(rows) - len(scores))]
        lines.append([suite, *counts, f"{100 * _finished(rows)[0]['teacher']:.1f}", *spread])
    head = ["suite", "seconds", "runs", "diverged", "teacher, %", "lowest student, %", "median, %", "highest, %"]
    return pipe_table(head, lines, num_text=1)
