"""When a search ends early: after `--total-rounds` rounds of all trials together, or after `--minutes`.

The state is in files of the sweep's folder: Ray pickles the object that asks, and a resumed sweep has new limits.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from harness import files
from tune.plan import Plan
from tune.trial import first_round, last_round, run_folders

FILE = "limits.json"


def begin(plan: Plan) -> None:
    """Writes the limits of this invocation, whose minutes count from now, over those of an earlier one."""
    _write(plan.folder, {"total_rounds": plan.total_rounds, "minutes": plan.minutes, "began": time.time()})


def reached(folder: Path) -> str | None:
    """Which limit has ended the search of this invocation, in words; None where none has."""
    words: str | None = _read(folder).get("reached")
    return words


class Counter:
    """Counts the rounds of all trials: of each run folder those that its own process has trained.

    The rounds that a branch of a population copied from another trial count where they were trained, and rounds that
    are trained again after a restart count once. So the folders give the same sum at every start as the reports of the
    trials do while they run.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the sweep's."""
        self._folder, self._limits = folder, _read(folder)
        self._rounds: dict[Path, int] = {}
        for path in run_folders(folder / "trials"):
            self.add(path, last_round(path))

    def add(self, path: Path, round_index: int) -> None:
        """The run in `path` has done `round_index` rounds, those that it copied included."""
        self._rounds[path] = max(round_index - first_round(path), self._rounds.get(path, 0))

    @property
    def total(self) -> int:
        """Rounds of all trials together."""
        return sum(self._rounds.values())

    def over(self) -> str | None:
        """Which limit has been reached, in words; None where there is time left. The first answer is kept on disk."""
        if self._limits.get("reached") is None and (words := self._exceeded()):
            self._limits["reached"] = words
            _write(self._folder, self._limits)
        found: str | None = self._limits.get("reached")
        return found

    def _exceeded(self) -> str | None:
        total, minutes = self._limits["total_rounds"], self._limits["minutes"]
        if total is not None and self.total >= total:
            return f"{self.total} of {total} rounds were played"
        if minutes is not None and time.time() - self._limits["began"] >= 60 * minutes:
            return f"{minutes:g} minutes were over"
        return None


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / FILE).read_text())
    return content


def _write(folder: Path, content: dict[str, Any]) -> None:
    files.write(folder / FILE, json.dumps(content) + "\n")
