"""The progress of a run, as `distill.rounds` yields it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

Judge = Callable[[nn.Module], dict[str, float]]
"""Figures of a student, by the names they have in the metrics."""


@dataclass(frozen=True)
class Report:
    """The progress of a run. The last report has a `result`, or the reason for which the run `stopped`."""

    round: int
    """Rounds done."""
    rounds: int
    """Rounds of the whole run."""
    seconds: float
    """Seconds of all its rounds so far, summed over resumes."""
    rounds_per_second: float
    """Speed since this process took the run up; 0 before its first round."""
    values: dict[str, float] = field(default_factory=dict)
    """Losses of the last round, means over its turns, by "player/term"; evaluations where one was due."""
    folder: Path = Path()
    alarm: str | None = None
    """What is wrong with the run: "collapsed", or None."""
    stopped: str | None = None
    result: dict[str, Any] | None = None
