"""Pictures of a run: grids of generated images, and curves of its metrics."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from harness import files
from harness.run.palette import COLOURS
from harness.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGIN, CAPTION_SIZE, MIN_WIDTH = 4, 13, 320
"""Pixels: around a caption, its letters, and the least width of a captioned picture."""

COLUMNS = 3
"""Panels in a row of curves."""

SMOOTHED_FROM = 60
"""With this many reports a line is drawn faint, and its running mean over it."""

LOG_SPAN = 50.0
"""A panel whose positive values span more than this factor has a logarithmic axis."""

Series = dict[str, tuple[list[int], list[float]]]
"""Rounds and values by the name of a metric."""


def save_grid(  # noqa: PLR0913
    task: Task,
    path: Path,
    images01: Tensor,
    teacher_logits: Tensor,
    student_logits: Tensor | None,
    names: Sequence[str],
    caption: str,
    truth: Tensor | None = None,
) -> None:
    """Writes a PNG of RGB images [B, 3, H, W] in 0..1 beside what the networks say of them, under a caption.

    Logits are [B, K] or [B, K, h, w], labels `truth` [B] or [B, h, w]. Raises UserError where the file cannot be
    written.
    """
    page = _captioned(task.picture(images01, teacher_logits, student_logits, names, truth), caption)
    with files.atomic(path) as temporary:
        page.save(temporary, "png")


def _captioned(picture: Image.Image, caption: str) -> Image.Image:
    """The picture with a caption above it, broken into as many lines as its width asks for."""
    font = ImageFont.load_default(CAPTION_SIZE)
    width = max(picture.width, MIN_WIDTH)
    per_line = int((width - 2 * MARGIN) / font.getlength("n"))
    text = textwrap.fill(caption, max(per_line, 1))
    draw = ImageDraw.Draw(picture)
    height = int(draw.multiline_textbbox((0, 0), text, font)[3]) + 2 * MARGIN
    page = Image.new("RGB", (width, picture.height + height), "white")
    ImageDraw.Draw(page).multiline_text((MARGIN, MARGIN), text, "black", font)
    page.paste(picture, (0, height))
    return page


def curves(metrics: Sequence[Mapping[str, Any]], path: Path, title: str) -> bool:
    """Draws the rows of a metrics.jsonl as small multiples, a PNG; False where matplotlib is missing.

    A panel for the student's discrepancy, one for each of the generator's terms, one for the diversity of the generated
    images, one for evaluations where there are any. Raises UserError where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError:
        return False
    panels = _panels(_series(metrics))
    columns = min(COLUMNS, math.ceil(math.sqrt(max(len(panels), 1))))
    rows = math.ceil(max(len(panels), 1) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(max(4.2 * columns, 6), 2.9 * rows + 0.6), dpi=120, layout=layout)
    figure.suptitle(title, fontsize=12)
    last = max((rounds[-1] for *_, lines in panels for rounds, _ in lines.values()), default=0)
    for number, (heading, unit, lines) in enumerate(panels, 1):
        _draw(figure.add_subplot(rows, columns, number), heading, unit, lines, last)
    if len(metrics) >= SMOOTHED_FROM:
        figure.supxlabel("faint: each report; bold: the running mean", fontsize=9, color="0.4")
    if not panels:
        figure.text(0.5, 0.45, "no rounds were reported", ha="center", color="0.4")
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return True


def _series(metrics: Sequence[Mapping[str, Any]]) -> Series:
    """The finite values of every metric."""
    found: Series = {}
    for row in metrics:
        for name, value in row.items():
            if value is not None and name not in ("round", "seconds"):
                rounds, values = found.setdefault(name, ([], []))
                rounds.append(int(row["round"]))
                values.append(float(value))
    return found


def _panels(series: Series) -> list[tuple[str, str, Series]]:
    """(heading, unit, lines by label) of every panel that has something to show."""
    diversity_names = {
        "generator/entropy": "entropy of the mean prediction, of ln K",
        "generator/top_class": "images in the largest class, of all",
    }
    evaluations = ("evaluation", "final")
    panels = []
    for player in dict.fromkeys(name.partition("/")[0] for name in series if "/" in name):
        terms = {
            name: line
            for name, line in series.items()
            if name.startswith(f"{player}/") and name not in diversity_names and player not in evaluations
        }
        total = terms.pop(f"{player}/total", None)
        if total and [total] != list(terms.values()):
            terms[f"{player}/total"] = total
        for name, line in terms.items():
            term = name.removeprefix(f"{player}/").replace("_", " ")
            panels.append((f"{player}: {term}", "weighted sum" if term == "total" else "value, unweighted", {"": line}))
    diversity = {label: _percent(series[name]) for name, label in diversity_names.items() if name in series}
    panels.append(("what the teacher sees in the images", "share, %", diversity))
    scores: Series = {}
    for name, line in series.items():
        group, _, what = name.partition("/")
        if group in evaluations:
            rounds, values = scores.setdefault(what.replace("_", " "), ([], []))
            rounds.extend(line[0])
            values.extend(_percent(line)[1])
    panels.append(("evaluation", "score, %", scores))
    return [panel for panel in panels if panel[2]]


def _percent(line: tuple[list[int], list[float]]) -> tuple[list[int], list[float]]:
    return line[0], [100 * value for value in line[1]]


def _draw(axes: Axes, heading: str, unit: str, lines: Series, last: int) -> None:
    """One panel: rounds up to the `last` of all panels to the right, values up."""
    for colour, (label, (rounds, values)) in zip(COLOURS, lines.items(), strict=False):
        many = len(values) >= SMOOTHED_FROM
        marker = "o" if len(values) <= 20 else ""
        axes.plot(rounds, values, color=colour, lw=0.8 if many else 1.4, alpha=0.35 if many else 1, marker=marker, ms=3,
                  label=None if many else label)  # fmt: skip
        if many:
            window = len(values) // 30
            axes.plot(rounds, _running_mean(values, window), color=colour, lw=1.6, label=label)
    axes.set_title(heading, fontsize=10, loc="left")
    axes.set_xlabel("round", fontsize=9)
    axes.set_xlim(-0.02 * last, 1.02 * last)
    axes.locator_params(axis="x", integer=True)
    axes.set_ylabel(unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    every = [value for _, values in lines.values() for value in values]
    if unit.endswith("%"):
        low = 10 * int(min(every) // 10) if 50 <= min(every) < 100 else 0
        axes.set_ylim(low - 0.03 * (100 - low), 100 + 0.3 * (100 - low))  # the legend stands above 100
        axes.set_yticks(range(low, 101, (100 - low) // 5))
    elif min(every) > 0 and max(every) / min(every) > LOG_SPAN:
        axes.set_yscale("log")
    if any(lines):
        axes.legend(fontsize=8, frameon=False, loc="upper left", borderaxespad=0)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Means over up to 2 `window` + 1 neighbouring values, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - window, 0)
    high = np.minimum(np.arange(len(values)) + window + 1, len(values))
    means: list[float] = ((sums[high] - sums[low]) / (high - low)).tolist()
    return means
