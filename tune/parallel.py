"""A sweep as parallel coordinates: a line for each trial through its sampled values to its scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import files
from tune.journal import Entry
from tune.plan import Plan, oracle
from tune.spaces import Distribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Scale:
    """An upright axis: where on it, from 0 to 1, a value is, and what is written beside it."""

    name: str
    low: float
    high: float
    logarithmic: bool = False
    choices: tuple[Any, ...] = ()
    percent: bool = False

    def place(self, value: Any) -> float:
        """0 at the bottom, 1 at the top; choices evenly spread."""
        if self.choices:
            return self.choices.index(value) / (len(self.choices) - 1)
        low, high = (math.log(end) if self.logarithmic else end for end in (self.low, self.high))
        return ((math.log(value) if self.logarithmic else value) - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        """Places and their labels."""
        if self.choices:
            return [(self.place(value), str(value)) for value in self.choices]
        ends = [self.low, self.high]
        middle = math.sqrt(self.low * self.high) if self.logarithmic else sum(ends) / 2
        return [(self.place(value), f"{100 * value:.0f} %" if self.percent else f"{value:.3g}")
                for value in (self.low, middle, self.high)]  # fmt: skip


def draw(plan: Plan, entries: Sequence[Entry], path: Path) -> None:
    """Writes the PNG, better trials in a warmer colour, finished ones in full; nothing where none was judged."""
    judged = [entry for entry in entries if entry.objective is not None and entry.outcome != "failed"]
    if not judged:
        return
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    scales = [_scale(name, one) for name, one in plan.space.items()] + _scores(plan, judged)
    figure = Figure(figsize=(max(7.0, 1.5 * len(scales) + 1), 4.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    best = [entry.objective or 0.0 for entry in judged]
    colours = colormaps["viridis"]
    for entry in sorted(judged, key=lambda entry: entry.objective or 0.0):
        share = ((entry.objective or 0.0) - min(best)) / (max(best) - min(best) or 1.0)
        values = [entry.sample.get(name) for name in plan.space] + [entry.agreement, entry.oracle]
        points = [(at, scale.place(value)) for at, (scale, value) in enumerate(zip(scales, values, strict=False))
                  if value is not None]  # fmt: skip
        done = entry.outcome == "finished"
        axes.plot(*zip(*points, strict=True), color=colours(0.95 * share), lw=1.8 if done else 1.0,
                  ls="-" if done else (0, (4, 3)), alpha=0.95 if done else 0.65, marker="o", ms=3)  # fmt: skip
    _frame(axes, scales)
    title = f"{plan.base.recipe}: maximised {plan.words}\nsolid: played to the end, dashed: ended early; yellow: best"
    axes.set_title(title, fontsize=9, loc="left", pad=16)
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _scale(name: str, one: Distribution) -> Scale:
    if one.kind == "choice":
        return Scale(name, 0, 1, choices=one.values)
    low, high = one.values
    return Scale(name, low, high, logarithmic=one.kind.startswith("log_"))


def _scores(plan: Plan, judged: Sequence[Entry]) -> list[Scale]:
    """The axes of probe agreement, and of real data where there is some, from the least score that occurred."""
    found = []
    real = (oracle(plan.base) or "").removeprefix("evaluation/student_")
    for name, attribute in (("probe\nagreement", "agreement"), (f"oracle:\n{real}", "oracle")):
        values = [getattr(entry, attribute) for entry in judged if getattr(entry, attribute) is not None]
        if values:
            low = math.floor(10 * min(values)) / 10
            found.append(Scale(name, min(low, 0.9), 1.0, percent=True))
    return found


def _frame(axes: Axes, scales: Sequence[Scale]) -> None:
    """An upright line for each scale, with its marks and its name."""
    for at, scale in enumerate(scales):
        axes.axvline(at, color="0.6", lw=0.8, zorder=0)
        for place, text in scale.marks():
            axes.annotate(text, (at, place), (4, 0), textcoords="offset points", fontsize=7, color="0.25", va="center",
                          bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75})  # fmt: skip
    axes.set_xticks(range(len(scales)), [scale.name.replace(".", ".\n", 1) for scale in scales], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(scales) - 0.6)
    axes.set_ylim(-0.04, 1.06)
    for side in axes.spines.values():
        side.set_visible(False)
