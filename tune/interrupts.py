"""What a signal does to a sweep."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class Signals:
    """The first SIGINT or SIGTERM ends a search with its state saved, anything else at once; a second ends all."""

    received: ClassVar[int | None] = None
    """The process's, as its handlers are: what Ray makes out of a pickle asks it too."""

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
        """Inside, Ray Tune listens to SIGUSR1, by which it is told; KeyboardInterrupt at the end where it was."""
        before = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # until Ray has put its own there
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
