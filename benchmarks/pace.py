"""How many rounds a method does in so many seconds, by a speed that is measured in this process."""

from __future__ import annotations

import bisect
import dataclasses
import json
import time
from pathlib import Path

from benchmarks.methods import MAX_ROUNDS, RATE_STEPS
from harness import methods, profile
from harness.config import Config
from harness.inversion import inverts, num_steps

ENOUGH = 10.0
"""Seconds after which a method is warm, or its speed known, if the rounds for it have not all been played yet."""


def rounds_in(settings: Config, seconds: float, note: Path, rate_rounds: int) -> int:
    """The rounds that a run of these settings does in `seconds`; its speed is kept in `note`, and measured once.

    Where a batch is made by many image steps, which are fewer in a run of few rounds, a step and the rest of a round
    are told apart, as in benchmarks.methods.
    """
    few, many = RATE_STEPS
    inverted = inverts(methods.find(settings.method, settings.variant)[0].turns(settings))
    if not note.exists():
        speeds = [
            seconds_a_round(_of_steps(settings, steps), rate_rounds) for steps in ((few, many) if inverted else (0,))
        ]
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(speeds))
    measured: list[float] = json.loads(note.read_text())
    a_step = max(0.0, measured[1] - measured[0]) / (many - few) if inverted else 0.0

    def needed(rounds: int) -> float:
        more = num_steps(dataclasses.replace(settings, rounds=rounds)) - few if inverted else 0
        return rounds * (measured[0] + more * a_step)

    return max(1, bisect.bisect_right(range(1, MAX_ROUNDS), seconds, key=needed))


def seconds_a_round(settings: Config, rate_rounds: int) -> float:
    """Mean over so many rounds, or those that fit into ENOUGH seconds, after as many to warm up."""
    built, index = profile.machine(settings, print), 0
    for _ in range(2):
        began, first = time.perf_counter(), index
        while index == first or (index - first < rate_rounds and time.perf_counter() - began < ENOUGH):
            profile.play(built, index)
            index += 1
    return (time.perf_counter() - began) / (index - first)


def _of_steps(settings: Config, steps: int) -> Config:
    """The settings with so many image steps a batch, however few rounds there are; 0 leaves them as they are."""
    exact = dataclasses.replace(settings.inversion, steps=steps, rounds=1)
    return dataclasses.replace(settings, inversion=exact) if steps else settings
