"""What processes report outside of collectives: the others wait for a rank 0 that works, not for one that ended."""

from __future__ import annotations

import itertools
import threading

import pytest
from torch import distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from harness.distributed import status
from harness.distributed.status import Status


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Status, Status]:
    """Ranks 0 and 1 on one store, each with the number that its process would give it; they look every 10 ms."""
    monkeypatch.setattr(status, "POLL_SECONDS", 0.01)
    store, found = HashStore(), []
    for rank in (0, 1):
        monkeypatch.setattr(status, "_numbers", itertools.count())
        found.append(Status(rank, 2, timeout=0.3, store=store))
    return found[0], found[1]


class Noted:
    """A store that counts what it was asked for."""

    def __init__(self, store: Store) -> None:
        self.store, self.waits = store, 0

    def __getattr__(self, name: str) -> object:
        self.waits += name == "wait"
        return getattr(self.store, name)


def test_others_wait_longer_than_the_timeout_while_rank_0_works(pair: tuple[Status, Status]) -> None:
    first, other = pair
    noted = Noted(other._store)
    other._store = noted  # type: ignore[assignment]
    ended = threading.Event()
    waiter = threading.Thread(target=lambda: (other.wait(), ended.set()))
    with first.working():
        waiter.start()
        while noted.waits < 100:  # looks of 10 ms each: a second, and the timeout is .3
            assert not ended.wait(0.01)
    assert ended.wait(60)
    waiter.join()


def test_the_next_wait_is_for_the_next_work(pair: tuple[Status, Status]) -> None:
    first, other = pair
    for _ in range(2):
        with first.working():
            pass
        other.wait()
    with pytest.raises(dist.DistStoreError, match="rank 0 does not answer"):
        other.wait()


def test_nobody_waits_for_a_rank_0_that_has_ended(pair: tuple[Status, Status]) -> None:
    first, other = pair
    other.timeout = 1e9
    assert first.end(OSError("no space")) is None
    with pytest.raises(dist.DistStoreError) as raised:
        other.wait()
    assert other.end(raised.value) == "rank 0 failed in round 1: OSError: no space"
