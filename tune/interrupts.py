"""SIGINT and SIGTERM during a sweep."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class Signals:
    """Handlers of SIGINT and SIGTERM. The first signal stops the sweep; the second ends the process at once.

    During the search the first signal lets Ray Tune save its state; at any other time it raises KeyboardInterrupt.
    """

    received: ClassVar[int | None] = None
    """The number of the first signal; None before it. A class attribute, because objects that Ray unpickles read it."""

    def __init__(self) -> None:
        self._searching = False

    def __enter__(self) -> Signals:
        Signals.received = None
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Forwards the first signal to Ray Tune, as SIGUSR1; raises KeyboardInterrupt at the end if there was one."""
        before = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # until Ray Tune sets its own handler
        self._searching = True
        try:
            yield
        finally:
            self._searching = False
            signal.signal(signal.SIGUSR1, before)
        if self.received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: object) -> None:
        if self.received:
            os._exit(128 + number)
        Signals.received = number
        if not self._searching:
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGUSR1)
