"""A comparison as a figure: the score by round and by wall time, and a sweep's trials as parallel coordinates."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import files
from harness.compare import tables
from harness.compare.groups import Comparison, differing
from harness.compare.runs import AGREEMENT, GENERATED, Run
from harness.errors import UserError
from harness.run.palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCALE, SCALE_START = "viridis_r", 0.12
"""The scale of scores where there are more rows than colours: green is low, dark is high, so that the best stand out.

Its first part, which is yellow, is left out: it is hard to see on white."""

LOG_SPAN = 10.0
"""A coordinate of positive numbers that span more than this factor is logarithmic."""

ENDINGS = (".png", ".pdf", ".svg")
"""What a figure can be written as."""

LEGEND_WIDTH, TICK_WIDTH = 140, 24
"""Letters in a line of the legend, and beside a coordinate, where a longer word is cut."""

TICK_HEIGHT = 0.04
"""Numbers closer than this share of a coordinate would overlap."""

NUM_TICKS = 5
"""Numbers beside a coordinate."""


def check_suffix(path: Path) -> None:
    """Raises UserError if no figure can be written to a file of that suffix."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--figure {path}: expected a file that ends in {' or '.join(ENDINGS)}")


def draw(comparison: Comparison, path: Path) -> None:
    """Writes the figure. Raises UserError if matplotlib or the folder is missing."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError:
        raise UserError("--figure needs matplotlib, which is not installed") from None
    legend = len(comparison.rows) <= len(COLOURS)
    names = [textwrap.fill(tables.label(comparison, row), LEGEND_WIDTH) for row in comparison.rows] if legend else []
    num_lines = sum(name.count("\n") + 1 for name in names)
    heights = [4.0 + (0.22 * num_lines if legend else 0.6)] + ([4.6] if comparison.trials else [])
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(11, sum(heights)), dpi=120, layout=layout)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _curves(parts[0], comparison, names)
    if comparison.trials:
        _coordinates(parts[1], comparison)
    with files.atomic(path) as temporary:
        figure.savefig(temporary)


def _curves(part: Any, comparison: Comparison, names: Sequence[str]) -> None:
    """Two panels: the score by round and by seconds; a thin line for each run, a bold one for the mean over seeds."""
    panels = part.subplots(1, 2, sharey=True)
    colours = _colours(comparison, part, panels) if not names else COLOURS
    for row, colour in zip(comparison.rows, colours, strict=False):
        curves = [_points(run, comparison.primary) for run in row.runs]
        for axes, column in zip(panels, (0, 1), strict=True):
            for curve in curves if len(curves) > 1 else []:
                _line(axes, curve, column, color=colour, lw=0.7, alpha=0.45, ms=2)
            _line(axes, _mean(curves), column, color=colour, lw=1.8, ms=4)
    teachers = {row.teacher for row in comparison.rows if row.teacher is not None}
    for axes, unit in zip(panels, ("round", "seconds of wall time"), strict=True):
        axes.set_xlabel(unit, fontsize=9)
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(teachers) == 1:
            axes.axhline(100 * next(iter(teachers)), color="0.4", lw=1, ls="--")
    panels[0].set_ylabel(f"student's {comparison.primary.replace('_', ' ')}, %", fontsize=9)
    part.suptitle(_title(comparison, len(teachers) == 1), fontsize=10)
    if names:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=colour, lw=1.8, marker="o", ms=4) for colour, _ in zip(COLOURS, names, strict=False)
        ]
        part.legend(handles, names, loc="outside lower center", fontsize=8, frameon=False)


def _title(comparison: Comparison, teacher: bool) -> str:
    parts_of_title = [str(comparison.shared[path]) for path in ("recipe", "method") if path in comparison.shared]
    if any(len(row.runs) > 1 for row in comparison.rows):
        parts_of_title.append("thin: each seed, bold: their mean")
    return ", ".join([*parts_of_title, *(["dashed: the teacher"] if teacher else [])])


Point = tuple[float, float, float]
"""Round, seconds, score in percent."""


def _points(run: Run, score: str) -> list[Point]:
    return [(row["round"], row["seconds"], 100 * row[score]) for row in run.curve if score in row]


def _mean(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean score and the mean seconds at the rounds at which all runs were evaluated."""
    found = [{point[0]: point for point in curve} for curve in curves]
    common = [number for number in sorted(found[0]) if all(number in points for points in found)]
    at = [[points[number] for points in found] for number in common]
    return [(points[0][0], fmean(point[1] for point in points), fmean(point[2] for point in points)) for points in at]


def _line(axes: Axes, points: Sequence[Point], column: int, **style: Any) -> None:
    axes.plot([point[column] for point in points], [point[2] for point in points], marker="o", **style)


def _colours(comparison: Comparison, part: Any, panels: Any) -> list[Any]:
    """A colour for each row by its score, with a scale beside the panels."""
    spreads = [row.spread(comparison.primary) for row in comparison.rows]
    values = [100 * spread.mean if spread else math.nan for spread in spreads]
    return _scale(part, panels, values, f"final {comparison.primary.replace('_', ' ')}, %")


def _scale(part: Any, panels: Any, values: Sequence[float], name: str) -> list[Any]:
    """Colours on a scale that is drawn beside the panels; grey for nan."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    known = [value for value in values if math.isfinite(value)]
    norm = Normalize(min(known, default=0), max(known, default=1))
    shades = LinearSegmentedColormap.from_list("", mpl.colormaps[SCALE](np.linspace(SCALE_START, 1, 256)))
    bar = part.colorbar(ScalarMappable(norm, shades), ax=panels, pad=0.02, aspect=30)
    bar.set_label(name, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return [shades(norm(value)) if math.isfinite(value) else "0.75" for value in values]


@dataclass(frozen=True)
class _Coordinate:
    """An upright axis of the parallel coordinates, from 0 to 1."""

    name: str
    heights: list[float]
    """The height at which each trial crosses it; nan if it does not."""
    ticks: list[tuple[float, str]]


def _coordinates(part: Any, comparison: Comparison) -> None:
    """A comparison's trials: the fields that differ, and the scores."""
    trials = comparison.trials
    objective = comparison.objective.score if comparison.objective else comparison.primary
    wanted = dict.fromkeys((objective, comparison.primary, AGREEMENT, GENERATED))
    scores = [score for score in wanted if any(score in trial.scores for trial in trials)][:2]
    columns = {path: [trial.config.get(path) for trial in trials] for path in differing(trials)}
    shares = {tables.heading(comparison, score): [100 * trial.scores.get(score, math.nan) for trial in trials]
              for score in scores}  # fmt: skip
    _parallel(part, columns, shares, [trial.excluded is not None for trial in trials])


def draw_trials(
    columns: Mapping[str, Sequence[Any]], scores: Mapping[str, Sequence[float]], stopped: Sequence[bool], path: Path
) -> None:
    """Writes only the parallel coordinates of trials; each column has one value for each trial.

    `scores` are percentages, nan where there is none; the first of them gives a line its colour.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 1.5 * (len(columns) + len(scores)) + 2), 4.6), dpi=120, layout="constrained")
    _parallel(figure, columns, scores, stopped)
    with files.atomic(path) as temporary:
        figure.savefig(temporary)


def _parallel(
    part: Any, columns: Mapping[str, Sequence[Any]], scores: Mapping[str, Sequence[float]], stopped: Sequence[bool]
) -> None:
    """A line for each trial through its values and scores, dotted if it was stopped, coloured by the first score."""
    coordinates = [_coordinate(name, values) for name, values in {**columns, **scores}.items()]
    axes = part.subplots()
    name, values = next(iter(scores.items()))
    colours = _scale(part, axes, values, name)
    for index in sorted(range(len(values)), key=lambda index: (math.isfinite(values[index]), values[index])):
        heights = [coordinate.heights[index] for coordinate in coordinates]
        style = {"lw": 1, "ls": ":"} if stopped[index] else {"lw": 1.7, "ls": "-"}
        axes.plot(heights, color=colours[index], **style)
    for index, coordinate in enumerate(coordinates):
        axes.axvline(index, color="0.2", lw=0.8, zorder=3)
        for height, text in coordinate.ticks:
            box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75}
            where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "zorder": 4}
            axes.annotate(text, (index, height), fontsize=7.5, bbox=box, **where)
    names = [coordinate.name.replace(".", ".\n").replace(" (", "\n(") for coordinate in coordinates]
    axes.set_xticks(range(len(coordinates)), names)
    axes.tick_params(axis="x", labelsize=8, length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlim(-0.05, len(coordinates) - 0.6)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    dotted = f", dotted: {sum(stopped)} that did not finish" if any(stopped) else ""
    part.suptitle(f"{len(values)} trials{dotted}", fontsize=10)


def _coordinate(name: str, values: Sequence[Any]) -> _Coordinate:
    """Numbers from their least to their greatest, logarithmic where they span much; else one height for each value."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        texts = [tables.value(value) for value in values]
        positions = {text: position for position, text in enumerate(sorted(set(texts)))}
        shares = {text: (position + 0.5) / len(positions) for text, position in positions.items()}
        return _Coordinate(
            name, [shares[text] for text in texts], [(share, _cut(text)) for text, share in shares.items()]
        )
    known = sorted({value for value in values if math.isfinite(value)})
    low, high = known[0], known[-1]
    if low == high:
        heights = [0.5 if math.isfinite(value) else math.nan for value in values]
        return _Coordinate(name, heights, [(0.5, f"{low:.3g}")])
    logarithmic = low > 0 and high / low > LOG_SPAN
    warp, back = (math.log, math.exp) if logarithmic else (float, float)
    reach = warp(high) - warp(low)
    even = [back(warp(low) + reach * step / (NUM_TICKS - 1)) for step in range(NUM_TICKS)]
    height = {number: (warp(number) - warp(low)) / reach for number in (*known, *even)}
    apart = min(height[b] - height[a] for a, b in itertools.pairwise(known)) >= TICK_HEIGHT
    ticks = [(height[number], f"{number:.3g}") for number in (known if apart and len(known) <= NUM_TICKS else even)]
    return _Coordinate(name, [height.get(value, math.nan) for value in values], ticks)


def _cut(text: str) -> str:
    return text if len(text) <= TICK_WIDTH else text[: TICK_WIDTH - 3] + "..."
