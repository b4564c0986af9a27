"""The roll: every process notes where it stands in the launcher's store, so that a survivor can say who is missing."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta

from torch import distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

PATIENCE = 3.0
"""Seconds a survivor waits for the others' last words."""


class Roll:
    """This process's line in the roll, and the reading of all of them. Its own connection outlives the group's."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # Hosts may count restarts differently, so the count is a mark only in a store that outlives a start.
        kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if kept else "0"
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        self._store = PrefixStore(f"ddad/{attempt}", store)
        self.round = 0

    def stand(self, round_index: int) -> None:
        """Notes that this process has begun a round."""
        self.round = round_index
        self._store.set(f"round/{self.rank}", str(round_index))

    def last_words(self, error: Exception) -> str | None:
        """Notes an exception; returns who brought the run to an end, or None where it was this process itself."""
        waited = is_broken_collective(error)
        try:
            words = "" if waited else f"{type(error).__name__}: {error}".splitlines()[0]
            self._store.set(f"end/{self.rank}", json.dumps([self.round, words]))
            return self._verdict() if waited else None
        except RuntimeError:  # the store went with the process that kept it
            return f"the processes' store is gone, and with it the host that kept it ({error})"

    def _verdict(self) -> str:
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and sum(not self._has(f"end/{rank}") for rank in others) > 1:
            time.sleep(0.05)
        ends = {rank: json.loads(self._store.get(f"end/{rank}")) for rank in others if self._has(f"end/{rank}")}
        for rank, (round_index, words) in ends.items():
            if words:
                return f"rank {rank} failed in round {round_index + 1}: {words}"
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
