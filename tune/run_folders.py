"""The run folders of trials: which there are, and which rounds and scores their metrics hold.

A trial has one run folder, `trials/ID`. A trial of a population has another one, `trials/ID-HASH`, for each change of
its weights: a branch, which begins with a copy of another run folder's checkpoint and metrics.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.run import metrics

ORIGIN = "origin.json"
"""The file in a branch that names the run folder it was copied from, and the round: {"folder": ..., "round": ...}."""


def find(trials: Path, trial_id: str | None = None) -> list[Path]:
    """The run folders below the folder `trials`, of all trials or of one, in ascending order of `first_round`.

    Hidden folders are left out: they are branches whose copying was interrupted.
    """
    found = [path for path in sorted(trials.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    return sorted((path for path in found if trial_id in (None, id_of(path))), key=first_round)


def id_of(path: Path) -> str:
    """The id of the trial that a run folder belongs to."""
    return path.name.partition("-")[0]


def first_round(path: Path) -> int:
    """The number of rounds that a branch copied; 0 for any other run folder."""
    file = path / ORIGIN
    return int(json.loads(file.read_text())["round"]) if file.exists() else 0


def last_round(path: Path) -> int:
    """The last round in the metrics of a run folder, copied rounds included; 0 if there are no metrics."""
    found = rows(path)
    return int(found[-1]["round"]) if found else 0


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl; none if there is no such file."""
    file = path / "metrics.jsonl"
    return metrics.read(file) if file.exists() else []


def final_values(path: Path) -> dict[str, Any]:
    """All values of the last round in the metrics of a run folder; UserError if there is no metrics.jsonl."""
    found = metrics.read(path / "metrics.jsonl")
    return {name: value for row in found if row["round"] == found[-1]["round"] for name, value in row.items()}
