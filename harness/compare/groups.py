"""Runs grouped into the rows of a table. `ddad compare`.

Runs whose configurations are equal but for the seed are one row. Fields that do not determine the result
(`harness.config.BOOKKEEPING`) do not count, and a file counts by its content where the run recorded its hash.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness import config as config_module
from harness import task as tasks
from harness.compare.runs import AGREEMENT, GENERATED, NO_TEACHER, SECONDS, TEACHER, TEACHING, Objective, Run
from harness.errors import UserError

MAX_TEACHER_DIFFERENCE = 0.001
"""By which a teacher's scores on one test set may differ from machine to machine."""


@dataclass(frozen=True)
class Spread:
    """A score over seeds: mean and standard deviation."""

    mean: float
    deviation: float | None
    """The standard deviation with n - 1 in the denominator; None for a single value."""
    count: int


@dataclass(frozen=True)
class Row:
    """The runs of one configuration, in order of their seeds."""

    runs: list[Run]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of all these runs, except for the seed."""
        return self.runs[0].config

    @property
    def teacher(self) -> float | None:
        """The teacher's score, the same for all these runs; None where there is none."""
        return self.runs[0].scores.get(TEACHER)

    def spread(self, score: str) -> Spread | None:
        """A score over the runs that have it; None where none has."""
        values = [run.scores[score] for run in self.runs if score in run.scores]
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Spread(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Comparison:
    """What a table and a figure show."""

    primary: str
    """The score by which runs are compared: the task's primary metric, or agreement where there is none."""
    shared: dict[str, Any]
    """The fields that are equal in all rows, without the seed."""
    differing: list[str]
    """The paths of the fields that differ between rows."""
    scores: list[str]
    """The scores that some run has, in the order of columns."""
    rows: list[Row]
    trials: list[Run]
    """The trials of sweeps, including those that were stopped early."""
    objective: Objective | None = None
    """Where there is a sweep."""


def compare(runs: Sequence[Run], objective: Objective | None, warn: Callable[[str], None]) -> Comparison:
    """Groups runs into rows, in the order in which they came; trials of sweeps by their objective, the best first.

    Of runs with the same configuration and seed the last counts. Raises UserError where tasks differ.
    """
    whole = [run for run in runs if run.excluded is None]
    first = whole[0]
    for run in whole:
        if run.config["task"] != first.config["task"]:
            described = [f"{each.name} is {each.config['task']}" for each in (first, run)]
            raise UserError(f"runs of different tasks ({', '.join(described)}): compare those of one task")
    groups: dict[str, dict[int, Run]] = {}
    for run in whole:
        group = groups.setdefault(run.key, {})
        if run.seed in group:
            warn(f"{group[run.seed].name} and {run.name} are the same configuration and seed: the latter counts")
        group[run.seed] = run
    rows = [Row([group[seed] for seed in sorted(group)]) for group in groups.values()]
    for row in rows:
        _check_teacher(row, warn)
    task = tasks.load(first.config["task"])
    objectives = [objective.score] if objective else []
    scores = dict.fromkeys([*objectives, *task.reported_metrics, AGREEMENT, GENERATED, TEACHER, SECONDS])
    present = [score for score in scores if any(score in run.scores for run in whole)]
    fallback = AGREEMENT if AGREEMENT in present else GENERATED
    primary = task.primary_metric if task.primary_metric in present else fallback
    if objective:
        rows.sort(key=lambda row: spread.mean if (spread := row.spread(objective.score)) else -1.0, reverse=True)
    paths = differing(whole)
    shared = {path: value for path, value in first.config.items() if path not in ("seed", *paths)}
    trials = [run for run in runs if run.sweep and run.excluded not in (NO_TEACHER, TEACHING)]
    return Comparison(primary, shared, paths, present, rows, trials, objective)


def _check_teacher(row: Row, warn: Callable[[str], None]) -> None:
    """Warns where the teacher of a row's runs has different scores: its seeds do not change them."""
    scored = sorted((run for run in row.runs if TEACHER in run.scores), key=lambda run: run.scores[TEACHER])
    if not scored:
        return
    least, most = scored[0], scored[-1]
    low, high = least.scores[TEACHER], most.scores[TEACHER]
    if high - low > MAX_TEACHER_DIFFERENCE:
        warn(
            f"{least.name} and {most.name} differ in the seed alone, and their teachers have {low:.2%} and {high:.2%}: "
            "were other test images scored?"
        )


def differing(runs: Sequence[Run]) -> list[str]:
    """The paths at which configurations differ, in the order of the fields, seed and schema left out."""
    order = list(config_module.flat(config_module.Config()))
    paths = {path for run in runs for path in run.config if path not in ("seed", "schema")}
    known = sorted(paths, key=lambda path: (order.index(path) if path in order else len(order), path))
    return [path for path in known if len({json.dumps(run.config.get(path)) for run in runs}) > 1]
