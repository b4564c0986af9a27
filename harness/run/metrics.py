"""metrics.jsonl: the rows of a run, one JSON object on each line. It is always written, with or without MLflow."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import files
from harness.errors import UserError


class Log:
    """Rows of metrics, one JSON object a line, each on the disk when `write` returns: it survives a power cut."""

    def __init__(self, path: Path, keep_through: int = -1) -> None:
        """Appends to `path`; rows of rounds after `keep_through` are removed: a resumed run writes them again."""
        kept = [row for row in read(path) if row["round"] <= keep_through] if path.exists() else []
        files.write(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._path, self._file = path, path.open("a")
        self._last = kept[-1] if kept else {}

    def write(self, round_index: int, seconds: float, values: Mapping[str, float]) -> None:
        """Adds a row, unless it is the last one already; a value that is not finite becomes null, as JSON has no nan.

        Raises UserError where the disk is full.
        """
        row = {"round": round_index, "seconds": round(seconds, 3)} | {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
        if row["round"] == self._last.get("round") and row.keys() == self._last.keys():
            return  # a run that was killed after its last row ends again
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; the last checkpoint is intact") from error

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # a full disk: `write` has raised already
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; an incomplete last line, as a kill leaves it, is ignored.

    Raises UserError where the file is missing or any other line is not a row.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected the metrics of a run") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["round"], row["seconds"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not a row of metrics; remove the line, or start again") from None
        rows.append(row)
    return rows
