"""What is due by the clock while a run goes on: rows of metrics, checkpoints, and the end of the run.

The clock changes when something is written and never what is computed. Where a run has several processes, rank 0's
clock counts, and all of them do what is due after the same turn (`harness.distributed.requests`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.config import Config
from harness.distributed.runtime import Runtime

GRACE_SECONDS = 2.0
"""How long a round has to end after a stop was asked for or a checkpoint is due; after that a turn's end is enough."""

now = time.monotonic
"""The clock, in seconds."""


class Intervals:
    """The clock of one call of a run, looked at after every turn and every image step."""

    def __init__(self, config: Config, runtime: Runtime, stop: Callable[[], str | None]) -> None:
        """`stop` gives a reason for which the run has to stop, or None."""
        self.config, self.runtime, self._stop = config, runtime, stop
        self.turns = 0  # that this call has completed
        self.open: set[str] = set()  # what all processes have asked for, of `requests.KINDS`
        self._began = self._saved = self._logged = now()
        self._reason: str | None = None  # this process's, to stop
        self._reason_since = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of this call."""
        return now() - self._began

    def look(self) -> None:
        """Asks for what is due here, and takes in what is due everywhere."""
        requests, time_now = self.runtime.requests, now()
        self._find_reason(time_now)
        if self._reason:
            requests.ask("stop")
            # `max_minutes` never gives a turn up before there is one: each call gets further than the one before.
            if time_now - self._reason_since >= GRACE_SECONDS and (self.turns or self._stop()):
                requests.ask("halt")
        if self.runtime.rank == 0:
            minutes, seconds = self.config.checkpoint.minutes, self.config.log_seconds
            if minutes is not None and time_now - self._saved >= 60 * minutes:
                requests.ask("save")
                if time_now - self._saved >= 60 * minutes + GRACE_SECONDS:
                    requests.ask("save now")
            if seconds is not None and time_now - self._logged >= seconds:
                requests.ask("log")
        self.open = requests.open()

    def interrupted(self) -> bool:
        """Within a long turn: whether to give it up, because the run stops."""
        self.look()
        return "halt" in self.open

    def stops(self, round_over: bool) -> bool:
        """After a turn: whether the run stops here."""
        return "halt" in self.open or (round_over and "stop" in self.open)

    def saves(self, round_over: bool) -> bool:
        """After a turn: whether a checkpoint is due by the clock."""
        return "save now" in self.open or (round_over and "save" in self.open)

    def logs(self) -> bool:
        """After a round: whether a row is due by the clock."""
        return "log" in self.open

    def saved(self) -> None:
        """A checkpoint has been written."""
        self._saved = now()
        self.runtime.requests.answer("save", "save now")

    def logged(self) -> None:
        """A row has been written."""
        self._logged = now()
        self.runtime.requests.answer("log")

    def reason(self) -> str:
        """Why the run stops; every process has to ask."""
        return next(filter(None, self.runtime.gather(self._reason)))

    def _find_reason(self, time_now: float) -> None:
        if self._reason is None:
            limit = self.config.max_minutes
            over = limit is not None and time_now - self._began > 60 * limit
            self._reason = self._stop() or (f"max_minutes={limit:g} is over" if over else None)
            self._reason_since = time_now
