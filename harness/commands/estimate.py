"""`--dry-run`: the resolved configuration, and what the run would cost here, measured on a few real turns."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from harness import config as config_module
from harness import methods, resolve
from harness.config import Config, Distributed
from harness.distributed.runtime import Runtime
from harness.methods.terms import student_weights_of, weights_of
from harness.networks import layers, roles, sources
from harness.run import folder
from harness.training.inversion import num_steps
from harness.training.machine import Machine
from harness.training.pool import Pool

REPEATS = 5
"""Rounds that are timed, after one to warm up; the median counts. Slow rounds are timed less often."""

TIME_LIMIT = 10.0
"""Seconds after which no further round is timed."""

PLAYED_STEPS = 3
"""Image steps that are played of a batch that takes many."""


now = time.perf_counter
"""The clock, in seconds."""


@dataclass(frozen=True)
class Estimate:
    """What a run costs on one process of this machine."""

    round_seconds: float
    """Mean over the rounds of the run."""
    preparation_seconds: float
    """All steps before the first round: the generator's warm-up, and the reconstruction of a pruned student."""
    memory: float
    """Peak bytes: of the device where it is a GPU, else of this process."""
    disk: int
    """Bytes of the checkpoints that are kept and of the student."""


def estimate(config: Config, output: Path | None, say: Callable[[str], None]) -> None:
    """Prints the configuration and the estimates; writes nothing. Random weights replace an absent teacher.

    Raises UserError where a round cannot be played, for example because the data is missing.
    """
    lines: list[str] = []
    built = build(config, lines.append)
    say(yaml.safe_dump(config_module.to_dict(config), sort_keys=False))
    for line in (f"run folder   {output or folder.default(config)}", *lines):
        say(line)
    found = measure(built, config)
    for line in built.doubts:
        say(f"note         {line}")
    if built.teacher:
        say(f"teacher      {config.teacher.network}, {layers.num_parameters(built.teacher.module):,} parameters")
    for name, player in built.players.items():
        pixels = name == "generator" and any(turn.source == "pixels" for turn in built.turns)
        network = "pixels of a batch" if pixels else getattr(config, name).network
        say(f"{name:13}{network}, {layers.num_parameters(player.module):,} parameters")
    if pool := built.sources.pool:
        size = pool.capacity * pool.batch_bytes / 2**20
        say(f"pool         {pool.capacity} batches, {size:,.3g} MiB, in the memory and in each checkpoint")
    total = _duration(config.rounds * found.round_seconds + found.preparation_seconds)
    processes = " on one process" if (config.distributed.world_size or 1) > 1 else ""
    say(f"time         {config.rounds} rounds of {found.round_seconds:.3g} s{processes}: {total}, and the evaluation")
    say(f"memory       {found.memory / 2**20:,.0f} MiB at its peak")
    say(f"disk         {found.disk / 2**20:,.0f} MiB for {config.checkpoint.keep} checkpoints and the student")


def build(config: Config, say: Callable[[str], None]) -> Machine:
    """The machine of a run on this process, with at most PLAYED_STEPS image steps a batch."""
    method, _ = methods.find(config.method, config.variant)
    teacher = None
    if method.has_teacher:
        comes = config.teach.automatic or config.teacher.checkpoint == resolve.default_teacher(config)
        absent = comes and not sources.present(str(config.teacher.checkpoint))
        if absent:
            first = "; the run trains it first, which is not in the time below" if config.teach.automatic else ""
            say(f"teacher      {config.teacher.checkpoint} is not there yet; estimated with random weights{first}")
        teacher = roles.teacher(resolve.untrained(config) if absent else config, say)
    steps = min(PLAYED_STEPS, num_steps(config))
    few_steps = dataclasses.replace(config.inversion, steps=steps, rounds=1)
    one_process = dataclasses.replace(config, distributed=Distributed(), inversion=few_steps)
    built = Machine(one_process, Runtime(one_process), method.turns(config), teacher)
    built.health.raises = False
    return built


def measure(built: Machine, config: Config) -> Estimate:
    """The costs of the run of `config`, from rounds of its machine; the machine's networks are trained meanwhile."""
    _round_seconds(built, config, 0)  # to warm up
    total = 0.0
    for count, index in _phases(config):
        total += count * _median(functools.partial(_round_seconds, built, config, index))
    return Estimate(total / config.rounds, _preparation_seconds(built), _memory(built), _disk(built))


def _preparation_seconds(built: Machine) -> float:
    """Seconds of all steps before the first round (`Machine.prepare`)."""
    warmup = built.config.generator.warmup
    seconds = warmup * _median(functools.partial(_preparation, built, warmup - 1)) if warmup else 0.0
    return seconds + sum(_preparation(built, step) for step in range(warmup, built.num_preparations))


def _preparation(built: Machine, step: int) -> float:
    began = now()
    built.prepare(step)
    built.health.verify()  # waits for the device
    return now() - began


def _phases(config: Config) -> list[tuple[int, int]]:
    """The rounds of a run by the terms they compute, since weights may be switched on or off along the run.

    Of each kind: how many rounds there are, and the index of one of them.
    """
    schedules = [*vars(config.weights).values(), *config.student.comparisons.values()]
    starts = {start for weight in schedules if isinstance(weight, list) for start, _ in weight}
    starts |= {share * config.rounds for share in (0, config.adversarial_after, config.student.features_until, 1)}
    bounds = sorted({math.ceil(start) for start in starts if start <= config.rounds})
    found: dict[frozenset[str], tuple[int, int]] = {}
    for first, end in itertools.pairwise(bounds):
        weights = weights_of(config, first) | student_weights_of(config, first)
        active = frozenset(name for name, weight in weights.items() if weight)
        count, _ = found.get(active, (0, 0))
        found[active] = (count + end - first, (first + end) // 2)
    return list(found.values())


def _round_seconds(built: Machine, config: Config, round_index: int) -> float:
    """Seconds of a round of `config`.

    Equal turns that follow each other cost the same, except for the first, which may make images for the others. So at
    most two of them are played. Image steps that are not played cost as much as those that are.
    """
    scale = num_steps(config) / num_steps(built.config)
    total, start = 0.0, 0
    for turn, equal in itertools.groupby(built.turns):
        count = len(list(equal))
        first = _turn_seconds(built, round_index, start)
        others = (count - 1) * _turn_seconds(built, round_index, start + 1) if count > 1 else 0.0
        total += (first + others) * (scale if turn.source in methods.INVERTED else 1.0)
        start += count
    return total


def _turn_seconds(built: Machine, round_index: int, turn_index: int) -> float:
    """Seconds of all micro-batches of a turn, to their end on the device."""
    began = now()
    for part in range(built.config.micro_batches):
        built.play(round_index, turn_index, part)
    built.health.verify()  # waits for the device
    return now() - began


def _median(measure_once: Callable[[], float]) -> float:
    """The median of up to REPEATS measurements; fewer where they take long."""
    began, found = now(), [measure_once()]
    while len(found) < REPEATS and now() - began < TIME_LIMIT:
        found.append(measure_once())
    return statistics.median(found)


def _memory(built: Machine) -> float:
    """Peak bytes of the run; `measure` has played rounds of it before."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    pool = built.sources.pool
    # Memory that nothing was written to yet is not counted by the system: of the pool only what is filled is.
    return peak + ((_num_pooled(pool) - pool.filled) * pool.batch_bytes if pool else 0)


def _num_pooled(pool: Pool) -> int:
    """Batches in the pool at the end of the run."""
    return min(pool.capacity, pool.config.rounds * len(pool.fresh))


def _disk(built: Machine) -> int:
    """Bytes of checkpoints and the student: what `harness.training.checkpoint` would write now, and a full pool."""
    pool = built.sources.pool
    checkpoint = _num_pooled(pool) * pool.batch_bytes if pool else 0
    for player in built.players.values():
        average = player.average.tensors() if player.average else {}
        for tensors in (player.engine.weights(), player.engine.moments(), average):
            checkpoint += _num_bytes(tensors.values())
    return built.config.checkpoint.keep * checkpoint + layers.num_bytes(built.student.module)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
