"""`--dry-run`: the resolved configuration, and what the run would cost here, from a few real turns."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from harness import config as config_module
from harness import methods, resolve
from harness.config import UNTRAINED, Config, Distributed
from harness.distributed.runtime import Runtime
from harness.networks import layers, roles
from harness.run import folder
from harness.training import machine
from harness.training.inversion import num_steps


def estimate(config: Config, output: Path | None, say: Callable[[str], None]) -> None:
    """Prints the configuration and the estimates; writes nothing. An absent teacher is taken with random weights."""
    say(yaml.safe_dump(config_module.to_dict(config), sort_keys=False))
    turns = methods.find(config.method, config.variant)[0].turns(config)
    say(f"run folder   {output or folder.default(config)}")
    if turns[0].kind == "supervised":
        return
    present = config.teacher.checkpoint == UNTRAINED or Path(str(config.teacher.checkpoint)).exists()
    if not present:
        say(f"teacher      {config.teacher.checkpoint} is not there yet; estimated with random weights")
    teacher = roles.teacher(config if present else resolve.untrained(config), say)
    one_step = dataclasses.replace(config.inversion, steps=1)
    # On one process, whatever the run asks for.
    alone = dataclasses.replace(config, distributed=Distributed(), inversion=one_step)
    built = machine.Machine(alone, Runtime(alone), turns, teacher)
    times = {turn: _seconds(built, turns.index(turn)) for turn in dict.fromkeys(turns)}
    seconds = sum(times[turn] * (num_steps(config) if turn.source in methods.INVERTED else 1) for turn in turns)
    say(f"teacher      {config.teacher.network}, {layers.num_parameters(teacher):,} parameters")
    for name, player in built.players.items():
        pixels = name == "generator" and any(turn.source == "pixels" for turn in turns)
        network = "pixels of a batch" if pixels else getattr(config, name).network
        say(f"{name:13}{network}, {layers.num_parameters(player.module):,} parameters")
    if pool := built.sources.pool:
        size = pool.capacity * pool.batch_bytes / 2**20
        say(f"pool         {pool.capacity} batches, {size:,.3g} MiB, in the memory and in each checkpoint")
    total = _duration(config.rounds * seconds)
    say(f"time         {config.rounds} rounds of {seconds:.3g} s: {total}, and the evaluation")
    say(f"memory       {_peak_memory() / 2**20:,.0f} MiB at its peak")
    say(f"disk         {_disk(built) / 2**20:,.0f} MiB for {config.checkpoint.keep} checkpoints and the student")


def _seconds(built: machine.Machine, turn_index: int) -> float:
    """The time of a turn after one to warm up."""
    for _ in range(2):
        began = time.perf_counter()
        built.play(0, turn_index)
        built.health.verify()  # waits for the device
        seconds = time.perf_counter() - began
    return seconds


def _peak_memory() -> float:
    """Bytes: of the device where there is one, else of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _disk(built: machine.Machine) -> int:
    """Bytes of checkpoints and the student: weights, and the optimisers' one or two values a weight."""
    pool = built.sources.pool
    total = pool.capacity * pool.batch_bytes * built.config.checkpoint.keep if pool else 0
    for name, player in built.players.items():
        size = sum(value.numel() * value.element_size() for value in player.module.state_dict().values())
        moments = 2 if player.settings.optimizer == "adam" else 1
        total += size * (1 + moments) * built.config.checkpoint.keep + (size if name == "student" else 0)
    return total


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
