"""What every process reports to the launcher's store, so that the others can say who failed or does not answer."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

END_SECONDS = 3.0
"""Seconds for which a process whose collective broke waits for the others' reports."""

POLL_SECONDS = 1.0
"""Seconds between two reports of a process that others wait for, and between two looks of these."""

_numbers = itertools.count()


class Status:
    """This process's reports and its reading of the others'. Its connection outlives that of the process group."""

    def __init__(self, rank: int, world_size: int, timeout: float, store: Store | None = None) -> None:
        """`timeout`: seconds without a report after which `wait` gives a process up. `store`: null, the launcher's."""
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        # Every process builds its objects in the same order: the number tells the runs of one process apart.
        self._store = PrefixStore(f"{next(_numbers)}", store or _launchers_store())
        self.round, self._waits = 0, 0

    def begin_round(self, round_index: int) -> None:
        """Reports that this process has begun a round."""
        self.round = round_index
        self._store.set(f"round/{self.rank}", str(round_index))

    def end(self, error: Exception) -> str | None:
        """Reports an exception; returns what another process did that caused it, None where it is this one's own."""
        waited = is_broken_collective(error)
        try:
            message = "" if waited else f"{type(error).__name__}: {error}".splitlines()[0]
            self._store.set(f"end/{self.rank}", json.dumps([self.round, message]))
            return self._cause() if waited else None
        except RuntimeError:  # the store went with the process that kept it
            return f"the processes' store is gone, and with it the host that kept it ({error})"

    @contextmanager
    def working(self) -> Iterator[None]:
        """On rank 0, inside: what the others `wait` for; a thread reports meanwhile that this process lives."""
        self._waits += 1
        key, over = f"wait/{self._waits}", threading.Event()

        def report() -> None:
            for count in itertools.count():
                self._store.set(f"{key}/alive", str(count))
                if over.wait(POLL_SECONDS):
                    return

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._store.set(f"{key}/done", "")

    def wait(self) -> None:
        """On the other ranks: returns when rank 0 has left `working`, however long that takes.

        Raises DistStoreError when rank 0 has ended, or has reported nothing for `timeout` seconds.
        """
        self._waits += 1
        key, seen, since = f"wait/{self._waits}", "", time.monotonic()
        while not self._wait_for(f"{key}/done"):
            reported = self._store.get(f"{key}/alive").decode() if self._has(f"{key}/alive") else ""
            if reported != seen:
                seen, since = reported, time.monotonic()
            if self._has("end/0") or time.monotonic() - since > self.timeout:
                raise dist.DistStoreError("rank 0 does not answer")

    def _wait_for(self, key: str) -> bool:
        """Whether a key is there within POLL_SECONDS."""
        try:
            self._store.wait([key], timedelta(seconds=POLL_SECONDS))
        except dist.DistStoreError:
            return self._has(key)
        return True

    def _cause(self) -> str:
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until and sum(not self._has(f"end/{rank}") for rank in others) > 1:
            time.sleep(0.05)
        ends = {rank: json.loads(self._store.get(f"end/{rank}")) for rank in others if self._has(f"end/{rank}")}
        for rank, (round_index, message) in ends.items():
            if message:
                return f"rank {rank} failed in round {round_index + 1}: {message}"
        silent = [rank for rank in others if rank not in ends]
        if not silent:
            return "the connection between the processes broke"
        names = ", ".join(f"rank {rank} (last seen in round {self._round(rank) + 1})" for rank in silent)
        return f"no answer from {names}; this one, rank {self.rank}, is in round {self.round + 1}"

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _round(self, rank: int) -> int:
        return int(self._store.get(f"round/{rank}")) if self._has(f"round/{rank}") else 0


def is_broken_collective(error: Exception) -> bool:
    """Whether an exception comes from the other end of a collective; gloo's are RuntimeErrors that name its source."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _launchers_store() -> Store:
    """The store through which the launcher's processes found each other, under the number of this start."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # Hosts may count restarts differently, so the count is used only in a store that outlives a start.
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if kept else "0"
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
    return PrefixStore(f"ddad/{attempt}", store)
