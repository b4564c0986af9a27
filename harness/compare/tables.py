"""A comparison as a table: for the terminal, in markdown, and as comma-separated values."""

from __future__ import annotations

import csv
import functools
import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.compare.groups import Comparison, Row
from harness.compare.markdown import pipe_table
from harness.compare.runs import SECONDS, TEACHER
from harness.errors import UserError, nearest

UNLIMITED_WIDTH = 10_000
"""Columns of a terminal that is never too narrow."""

CAPTION_FIELDS = (
    "task",
    "recipe",
    "method",
    "variant",
    "data.name",
    "rounds",
    "batch_size",
    "teacher.network",
    "student.network",
)
"""The fields that the caption states if they are equal in all rows."""


def formatter(name: str | None, output: Path | None) -> Callable[[Comparison], str]:
    """The function that writes a table in the format `name`, by default that of the file's suffix.

    Raises UserError for an unknown format.
    """
    name = name or (ENDINGS.get(output.suffix.lower(), "terminal") if output else "terminal")
    if name not in FORMATS:
        raise UserError(f"--format {name}: no such format{nearest(name, FORMATS)}")
    if name == "terminal" and output is None and sys.stdout.isatty():
        return functools.partial(terminal, width=shutil.get_terminal_size().columns)
    return FORMATS[name]


def terminal(comparison: Comparison, width: int = UNLIMITED_WIDTH) -> str:
    """A table in box characters, at most `width` columns wide, its explanation below."""
    from rich.console import Console
    from rich.table import Column, Table

    header, rows = _cells(comparison)
    num_text = len(_paths(comparison))
    if all(len(row.runs) == 1 for row in comparison.rows):
        header, num_text = ["run", *header], num_text + 1
        rows = [[row.runs[0].name, *cells] for row, cells in zip(comparison.rows, rows, strict=True)]
    table = Table(*(Column(name, justify="left" if i < num_text else "right") for i, name in enumerate(header)))
    for cells in rows:
        table.add_row(*cells)
    page = io.StringIO()
    console = Console(file=page, width=width, markup=False, emoji=False, highlight=False)  # values may hold [brackets]
    console.print(table)
    console.print(caption(comparison))
    return page.getvalue().rstrip()


def markdown(comparison: Comparison) -> str:
    """A pipe table, figures aligned to the right, its explanation below."""
    header, rows = _cells(comparison)
    return "\n".join([*pipe_table(header, rows, len(_paths(comparison))), "", caption(comparison)])


def comma_separated(comparison: Comparison) -> str:
    """CSV for programs: every score's mean, deviation and count, fractions of 1 and seconds in full, empty for none."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    figures = [f"{title(comparison, score)} {part}" for score in comparison.scores for part in ("mean", "std", "n")]
    paths = _paths(comparison)
    writer.writerow([*paths, "seeds", "runs", *figures])
    for row in comparison.rows:
        cells = [_exact(row.config.get(path)) for path in paths]
        cells += [" ".join(str(run.seed) for run in row.runs), " ".join(run.name for run in row.runs)]
        for score in comparison.scores:
            spread = row.spread(score)
            cells += (
                [str(spread.mean), "" if spread.deviation is None else str(spread.deviation), str(spread.count)]
                if spread
                else ["", "", "0"]
            )
        writer.writerow(cells)
    return page.getvalue().rstrip("\n")


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma_separated,
}

ENDINGS = {".md": "markdown", ".csv": "csv"}
"""The format for a file's suffix."""


def caption(comparison: Comparison) -> str:
    """How to read the figures, and which fields are equal in all rows."""
    many = any(len(row.runs) > 1 for row in comparison.rows)
    how = (
        "Mean ± standard deviation (n - 1) over n seeds." if many else "One seed a row (n = 1): no deviation is known."
    )
    parts = [how]
    if comparison.objective:
        parts.append(f"The objective is {comparison.objective.text}.")
    shared = [f"{path} {value(comparison.shared[path])}" for path in CAPTION_FIELDS if path in comparison.shared]
    teachers = {row.teacher for row in comparison.rows}
    if len(teachers) == 1 and (score := teachers.pop()) is not None:
        shared.append(f"teacher's {comparison.primary} {100 * score:.2f} %")
    return " ".join(parts) + f" Alike in all rows: {', '.join(shared)}."


def label(comparison: Comparison, row: Row) -> str:
    """A row in a few words, for a legend."""
    return ", ".join(f"{path} {value(row.config.get(path))}" for path in _paths(comparison))


def heading(comparison: Comparison, score: str) -> str:
    """The name of a score with its unit; a sweep's objective is marked, and as an oracle if it needed real data."""
    if score == SECONDS:
        return score
    return f"{title(comparison, score)}, %"


def title(comparison: Comparison, score: str) -> str:
    """The name of a score for people."""
    if score == TEACHER:
        return f"teacher's {comparison.primary.replace('_', ' ')}"
    words = score.replace("_", " ")
    if comparison.objective and comparison.objective.score == score:
        return f"{words} ({'oracle ' if score == comparison.primary else ''}objective)"
    return words


def value(of: Any) -> str:
    """A configuration's value for people: numbers to four digits."""
    if isinstance(of, list):
        return f"[{', '.join(value(each) for each in of)}]"
    return f"{of:.4g}" if isinstance(of, float) else _exact(of)


def _exact(of: Any) -> str:
    return of if isinstance(of, str) else json.dumps(of)


def _paths(comparison: Comparison) -> list[str]:
    """The columns of configuration: the fields that differ, else recipe and method."""
    return comparison.differing or ["recipe", "method"]


def _cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows in words: configuration, number of seeds, scores."""
    paths, scores = _paths(comparison), list(comparison.scores)
    if len({row.teacher for row in comparison.rows}) == 1 and TEACHER in scores:
        scores.remove(TEACHER)  # the caption states it
    header = [*paths, "n", *(heading(comparison, score) for score in scores)]
    rows = [
        [
            *(value(row.config.get(path)) for path in paths),
            str(len(row.runs)),
            *(_figure(row, score) for score in scores),
        ]
        for row in comparison.rows
    ]
    return header, rows


def _figure(row: Row, score: str) -> str:
    """`98.61 ± 0.44`, followed by the number of runs if some have no such score."""
    spread = row.spread(score)
    if spread is None:
        return "-"
    factor, digits = (1, 1) if score == SECONDS else (100, 2)
    text = f"{factor * spread.mean:.{digits}f}"
    if spread.deviation is not None and score != TEACHER:  # a row has one teacher
        text += f" ± {factor * spread.deviation:.{digits}f}"
    return text if spread.count == len(row.runs) else f"{text} (n = {spread.count})"
