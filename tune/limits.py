"""How long a sweep may go on. In files, because Ray pickles what asks for it, and a resumed sweep has new limits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from harness import files
from tune.plan import Plan
from tune.trial import last_round

FILE = "limits.json"


class Limits:
    """The limits of this invocation, which begins now."""

    def __init__(self, plan: Plan) -> None:
        self._folder = plan.folder
        self._content = {"total_rounds": plan.total_rounds, "minutes": plan.minutes, "began": time.time()}

    def write(self) -> None:
        """Into the sweep's folder, over those of an earlier invocation."""
        files.write(self._folder / FILE, json.dumps(self._content) + "\n")

    @property
    def over(self) -> str | None:
        """Which of them has been reached, in words."""
        return Spent(self._folder).over()


class Spent:
    """Rounds that the trials of a sweep have played, and the time."""

    def __init__(self, folder: Path) -> None:
        self._limits: dict[str, Any] = json.loads((folder / FILE).read_text())
        self._rounds = {path.name: last_round(path) for path in (folder / "trials").glob("*")}

    def add(self, trial_id: str, round_index: int) -> None:
        """A trial stands after so many rounds."""
        self._rounds[trial_id] = max(round_index, self._rounds.get(trial_id, 0))

    def over(self) -> str | None:
        """Which limit has been reached, in words; None where there is time left."""
        total, minutes = self._limits["total_rounds"], self._limits["minutes"]
        if total is not None and (played := sum(self._rounds.values())) >= total:
            return f"{played} of {total} rounds were played"
        if minutes is not None and time.time() - self._limits["began"] >= 60 * minutes:
            return f"{minutes:g} minutes were over"
        return None
