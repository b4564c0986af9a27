"""What single processes ask for, such as a stop, and all of them do after the same step."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

LAG = 4
"""On a GPU, reductions between a request and its answer: the host reads a sum that the device has long computed."""

KINDS = ("stop", "halt", "save", "save now", "log")
"""What can be asked for: a stop or a checkpoint at the end of a round or of a turn, and a row of metrics."""


class Requests:
    """Counts of requests, added to the sums of a loss, so that a request needs no message and no waiting of its own.

    Every process reads the same sums after the same number of reductions, so that all see a request at the same step.
    Only one process may request a checkpoint or a row; any may request a stop.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._asked = dict.fromkeys(KINDS, 0)
        self._sums = [0] * len(KINDS)
        self._answered = [0] * len(KINDS)
        self._vector: Tensor | None = None
        self._reduced: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def ask(self, kind: str) -> None:
        """Asks for one of KINDS, once until it is answered."""
        index = KINDS.index(kind)
        if self._asked[kind] <= self._answered[index]:
            self._asked[kind] = self._answered[index] + 1
            self._vector = None

    def counts(self, sums: Tensor) -> Tensor:
        """This process's counts [len(KINDS)], on the device and of the type of `sums`."""
        if self._vector is None:
            self._vector = torch.tensor(list(self._asked.values()), dtype=sums.dtype, device=sums.device)
        return self._vector.to(sums)

    def receive(self, counts: Tensor) -> None:
        """Takes the sums of all processes' counts."""
        if not counts.is_cuda:
            self._reduced.append((counts, None))
            return
        copy = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True).copy_(counts, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._reduced.append((copy, event))

    def open(self) -> set[str]:
        """What has been asked for and not been answered, the same on all processes that have reduced as often."""
        if self.world_size == 1:
            self._sums = list(self._asked.values())
        while self._reduced and (self._reduced[0][1] is None or len(self._reduced) > LAG):
            counts, event = self._reduced.popleft()
            if event:
                event.synchronize()
            self._sums = [round(count) for count in counts.tolist()]
        return {kind for kind, sum_, done in zip(KINDS, self._sums, self._answered, strict=True) if sum_ > done}

    def answer(self, *kinds: str) -> None:
        """Every process has done what was asked; sums that are still on their way ask for nothing more."""
        for kind in kinds:
            index = KINDS.index(kind)
            self._answered[index] = max(self._sums[index], self._answered[index])
