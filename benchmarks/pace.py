"""How many rounds a method does in so many seconds, by a speed that is measured in this process.

A batch that is made by many image steps has fewer of them in a run of few rounds, so a step and the rest of a round are
told apart.
"""

from __future__ import annotations

import bisect
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from harness import methods
from harness.commands.profile import measure
from harness.config import Config
from harness.training.inversion import inverts, num_steps

STEPS = (1, 11)
"""Image steps a batch of the two runs by which a step and the rest of a round are told apart."""

ENOUGH = 10.0
"""Seconds after which a method is warm, or its speed known, if the rounds for it have not all been played yet."""

WARM = 6
"""Steps of a generator's warm-up that are timed; the first is left out."""

MAX_ROUNDS = 10_000_000
"""More than any budget is worth."""


def speeds(settings: Config, rate_rounds: int) -> list[float]:
    """Seconds a round: with each of STEPS where a batch is made by many, else one figure."""
    return [seconds_a_round(_of_steps(settings, steps), rate_rounds) for steps in (STEPS if _many(settings) else (0,))]


def needed(settings: Config, measured: Sequence[float]) -> Callable[[int], float]:
    """The seconds of a run of so many rounds, by what `speeds` measured."""
    many = _many(settings)
    a_step = max(0.0, measured[1] - measured[0]) / (STEPS[1] - STEPS[0]) if many else 0.0

    def seconds(rounds: int) -> float:
        more = num_steps(dataclasses.replace(settings, rounds=rounds)) - STEPS[0] if many else 0
        return rounds * (measured[0] + more * a_step)

    return seconds


def preparation(settings: Config) -> float:
    """Seconds of a run before its first round: warm-up of the generator, by a few steps, and the reconstruction."""
    warmup = settings.generator.warmup
    short = dataclasses.replace(settings, generator=dataclasses.replace(settings.generator, warmup=min(warmup, WARM)))
    built, clock, each = measure.machine(short, print), _clock(), []
    for step in range(built.num_preparations):
        began = clock()
        built.prepare(step)
        each.append(clock() - began)
    steps = each[1 : min(warmup, WARM)] or each[: min(warmup, WARM)]
    return warmup * statistics.fmean(steps or [0.0]) + sum(each[min(warmup, WARM) :])


def rounds_in(settings: Config, measured: Sequence[float], seconds: float) -> int:
    """The rounds that a run of these settings does in `seconds`, at least one."""
    return max(1, bisect.bisect_right(range(1, MAX_ROUNDS), seconds, key=needed(settings, measured)))


def seconds_a_round(settings: Config, rate_rounds: int) -> float:
    """Mean over so many rounds, or those that fit into ENOUGH seconds, after as many to warm up."""
    built, index = measure.machine(settings, print), 0
    clock = _clock()
    for _ in range(2):
        began, first = clock(), index
        while index == first or (index - first < rate_rounds and clock() - began < ENOUGH):
            measure.play(built, index)
            index += 1
    return (clock() - began) / (index - first)


def by_the_wall() -> bool:
    """Whether seconds are wall time; where one thread computes they are its own, whatever other processes do."""
    return torch.cuda.is_available() or torch.get_num_threads() > 1


def _clock() -> Callable[[], float]:
    return time.perf_counter if by_the_wall() else time.process_time


def _many(settings: Config) -> bool:
    """Whether batches are made by many image steps."""
    return inverts(methods.METHODS[settings.method].turns(settings)) is not None


def _of_steps(settings: Config, steps: int) -> Config:
    """The settings with so many image steps a batch, however few rounds there are; 0 leaves them as they are."""
    exact = dataclasses.replace(settings.inversion, steps=steps, rounds=1)
    return dataclasses.replace(settings, inversion=exact) if steps else settings
