"""The limits of a search: `--total-rounds`, counted over all trials, and `--minutes`.

They are stored in a file of the sweep's folder, limits.json, and not in the stopper that reads them: Ray Tune pickles
the stopper, and a resumed sweep may be given other limits.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from harness import files
from tune import run_folders
from tune.plan import Plan

FILE = "limits.json"


def start(plan: Plan) -> None:
    """Writes the limits of this invocation over those of an earlier one. The minutes count from now.

    A limit that the run folders exceed already is reached at once: Ray Tune may have no step left to check it.
    """
    _write(plan.folder, {"total_rounds": plan.total_rounds, "minutes": plan.minutes, "began": time.time()})
    RoundCounter(plan.folder).limit_reached()


def reached(folder: Path) -> str | None:
    """Which limit has stopped the search in the sweep's `folder`, in words; None if none has in this invocation."""
    text: str | None = _read(folder).get("reached")
    return text


class RoundCounter:
    """Counts the rounds that all trials have trained, and compares them and the time with the limits.

    Each run folder counts the rounds that were trained in it. Rounds that a branch copied count in the folder where
    they were trained. Rounds that are trained again after a restart count once. So the sum is the same whether it comes
    from the reports of running trials or, after a restart, from the run folders.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the sweep's; its trials' run folders give the initial count."""
        self._folder, self._limits = folder, _read(folder)
        self._rounds: dict[Path, int] = {}
        for path in run_folders.find(folder / "trials"):
            self.add(path, run_folders.last_round(path))

    def add(self, path: Path, round_index: int) -> None:
        """The run in the folder `path` has reached round `round_index`."""
        trained = round_index - run_folders.first_round(path)
        self._rounds[path] = max(trained, self._rounds.get(path, 0))

    @property
    def total(self) -> int:
        """Rounds of all trials."""
        return sum(self._rounds.values())

    def limit_reached(self) -> str | None:
        """Which limit has been reached, in words; None if none has. The first answer is stored: see `reached`."""
        if self._limits.get("reached") is None and (text := self._exceeded()):
            self._limits["reached"] = text
            _write(self._folder, self._limits)
        found: str | None = self._limits.get("reached")
        return found

    def _exceeded(self) -> str | None:
        total, minutes = self._limits["total_rounds"], self._limits["minutes"]
        if total is not None and self.total >= total:
            return f"{self.total} of {total} rounds were trained"
        if minutes is not None and time.time() - self._limits["began"] >= 60 * minutes:
            return f"{minutes:g} minutes have passed"
        return None


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / FILE).read_text())
    return content


def _write(folder: Path, content: dict[str, Any]) -> None:
    files.write(folder / FILE, json.dumps(content) + "\n")
