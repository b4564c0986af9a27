"""What two processes do for test_stops.py: runs that one of them wants to stop, by the clock that rank 0 has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from harness.distributed.runtime import leave
from harness.training import intervals
from tests.unit.test_intervals import CASES, Clock, after, end, play, run_of, same, states

STEPPED = ("ddad", "cmi")
"""Cases of turns that are short, and that have many steps."""


def stop_and_go(out: Path) -> None:
    """For `ranks.run`: each case undisturbed, and stopped by rank 1 until it has come to its end; rank 0 tells."""
    rank, found = int(os.environ["RANK"]), {}
    for case in STEPPED:
        config = run_of(CASES[case])
        play(config, out / case / "whole")
        # The clocks of two hosts do not agree, and only rank 0's counts.
        intervals.now = Clock(intervals.GRACE_SECONDS * (1 + rank))
        positions: list[Any] = []
        for count in range(1, 100):
            asked = 1 + 5 * count if case == "cmi" else 1
            last = play(config, out / case / "run", after(asked) if rank == 1 else lambda: None)
            state = states(out / case / "run")[-1]
            positions.append([last.round, last.stopped, state["round"], state["turn"]])
            if not last.stopped:
                break
        (weights, rows), (expected, expected_rows) = (end(out / case / name) for name in ("run", "whole"))
        found[case] = {"positions": positions, "same": same(weights, expected) and rows == expected_rows}
    timed = run_of({"checkpoint": {"minutes": 0.5, "every": 1000}, "log_every": 1000, "log_seconds": 50.0, "rounds": 8})
    play(timed, out / "timed")
    found["timed"] = [[state["round"], state["turn"]] for state in states(out / "timed")]
    (out / f"{rank}.json").write_text(json.dumps(found))
    leave()
