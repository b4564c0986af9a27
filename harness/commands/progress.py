"""How a run looks while it goes and when it ends: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from harness import task as tasks
from harness.training.distill import Report

UNITS = {"macs": ("MMAC an image", 1e6), "bytes": ("MB", 1e6), "milliseconds": ("ms an image", 1.0)}
"""Figures of a network in result.json: the table's name of each, and its unit."""


def follow(reports: Iterable[Report]) -> Report | None:
    """Shows every report and returns the last; None where there was none."""
    return _bar(reports) if sys.stdout.isatty() else _lines(reports)


def losses(report: Report) -> str:
    """`student 1.23  generator -0.45  agreement 97.1%`, and an alarm."""
    values = report.values
    shown = [f"{name.split('/')[0]} {value:.4g}" for name, value in values.items() if name.endswith("/total")]
    shown += [f"{name.split('/')[1]} {value:.1%}" for name, value in values.items() if name.startswith("evaluation/")]
    return "  ".join([*shown, report.alarm.upper()] if report.alarm and shown else shown)


def conclusion(report: Report) -> None:
    """The table of a finished run, and where to look next."""
    result = report.result
    assert result is not None
    rows = {role: row for role in ("teacher", "student") if (row := result[role])}
    names = [f"{role} {row['network']}" + " (untrained)" * bool(row.get("untrained")) for role, row in rows.items()]
    table = Table("", *names)
    table.add_row("parameters", *(f"{row['parameters']:,}" for row in rows.values()))
    for key, (name, unit) in UNITS.items():
        table.add_row(name, *(f"{row[key] / unit:,.4g}" if key in row else "-" for row in rows.values()))
    for metric in tasks.load(result["task"]).reported_metrics:
        table.add_row(metric, *("-" if row[metric] is None else f"{row[metric]:.2%}" for row in rows.values()))
    blank = [""] * (len(rows) - 1)  # what follows is the student's
    if result["agreement"] is not None:
        table.add_row("agreement", *blank, f"{result['agreement']:.2%}")
    if "test_images" in result:
        table.add_row("test images", *blank, f"{result['test_images']:,}")
    table.add_row("seconds", *blank, f"{result['wall_seconds']:.1f}")
    console = Console(markup=False)  # a path may hold [brackets]
    console.print(table)
    if result["agreement_on"] == "generated" and result["agreement"] is not None:
        console.print("No test images: agreement is on generated ones; data.name and data.root name real ones.")
    console.print(f"run folder  {report.folder}", soft_wrap=True)
    if (report.folder / "samples").exists():
        console.print(f"pictures    {report.folder / 'samples'}, {report.folder / 'curves.png'}", soft_wrap=True)
    if (report.folder / "mlflow.json").exists():
        console.print("experiments ddad ui")


def _lines(reports: Iterable[Report]) -> Report | None:
    first = last = None
    for last in reports:
        first = first or last
        if not last.result and not last.stopped:
            print(
                f"round {last.round}/{last.rounds}  {losses(last)}  {last.rounds_per_second:.2f} rounds/s  "
                f"{remaining(first, last)} left",
                flush=True,
            )
    return last


def _bar(reports: Iterable[Report]) -> Report | None:
    columns = (
        TextColumn("round"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
        TextColumn("{task.fields[speed]:.2f} rounds/s"), TimeRemainingColumn(),
    )  # fmt: skip
    last = None
    with Progress(*columns) as progress:
        task: TaskID | None = None
        for last in reports:
            if task is None:
                task = progress.add_task("", total=last.rounds, completed=last.round, speed=0.0)
            text = losses(last) or None  # None keeps what stands there
            progress.update(task, completed=last.round, speed=last.rounds_per_second, description=text)
    return last


def remaining(first: Report, last: Report) -> str:
    """Minutes and seconds to the end at the speed since the first report, before which there may be a warm-up.

    The first report itself has the speed of all so far.
    """
    speed = last.rounds_per_second
    if last.round > first.round and last.seconds > first.seconds:
        speed = (last.round - first.round) / (last.seconds - first.seconds)
    if not speed:
        return "?"
    minutes, seconds = divmod(int((last.rounds - last.round) / speed), 60)
    return f"{minutes}:{seconds:02d}"
