"""The loop over rounds and their turns, and what is due between them: rows, pictures, checkpoints, a stop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.errors import Diverged
from harness.training import checkpoint, record
from harness.training.intervals import Intervals
from harness.training.inversion import Interrupted
from harness.training.machine import Machine
from harness.training.record import Means, Record
from harness.training.report import Judge, Report
from harness.training.result import evaluation


def restore(machine: Machine, folder: Path) -> tuple[dict[str, Any], Means]:
    """The state of the last checkpoint, {round, turn, seconds, prepared}, and the means of the round that it is in.

    Without a checkpoint, those of a run that begins. `prepared`: steps before the first round that are done; all of
    them where a checkpoint does not say.
    """
    means = Means()

    def take(tensors: Mapping[str, Tensor]) -> None:
        machine.sources.take(tensors)
        means.load(tensors, machine.runtime.device)

    found = checkpoint.restore(folder, machine.players, machine.runtime.first, take)
    begin = {"round": 0, "turn": 0, "seconds": 0.0, "prepared": 0}
    return ({"turn": 0, "prepared": machine.num_preparations, **found} if found else begin), means


def train(
    machine: Machine,
    record: Record,
    state: dict[str, Any],
    means: Means,
    stop: Callable[[], str | None],
    judge: Judge,
) -> Generator[Report, None, Report]:
    """Plays all turns that are left and does what is due after each; returns the last report."""
    config, num_turns = machine.config, len(machine.turns)
    clock = Intervals(config, machine.runtime, stop)
    if machine.inversion:
        machine.inversion.interrupted = clock.interrupted
    start = state["round"] * num_turns + state["turn"]
    report = Report(state["round"], config.rounds, state["seconds"], 0.0, folder=record.path)
    if _prepare(machine, record, clock, means, state):
        seconds = state["seconds"] + clock.elapsed
        return Report(0, config.rounds, seconds, 0.0, folder=record.path, stopped=clock.reason())
    if start == 0:
        record.samples(machine.networks(), 0)
    for number in range(start, config.rounds * num_turns):
        index, turn_index = divmod(number, num_turns)
        try:
            machine.runtime.begin_round(index)
            played = _play(machine, clock, means, index, turn_index)
            done, turn = divmod(number + played, num_turns)
            over, last = played and turn == 0, done == config.rounds
            stops = clock.stops(over) and not last
            seconds = state["seconds"] + clock.elapsed
            speed = (number + played - start) / num_turns / clock.elapsed
            report = Report(done, config.rounds, seconds, speed, folder=record.path)
            if over:
                report = _end_round(machine, record, clock, means, report, judge)
            if (over and done % config.checkpoint.every == 0) or last or stops or clock.saves(over):
                _save(machine, record.path, means, {"round": done, "turn": turn, "seconds": report.seconds})
                clock.saved()
        except Diverged as error:
            raise Diverged(
                f"diverged in round {index + 1}: {error}; the last good checkpoint is kept in {record.path}: "
                "lower a learning rate or a weight (a new run), or set student.clip, generator.clip"
            ) from None
        if stops:
            return dataclasses.replace(report, stopped=clock.reason())
        if report.values:
            yield report
    return report


def _prepare(machine: Machine, record: Record, clock: Intervals, means: Means, state: Mapping[str, Any]) -> bool:
    """The steps before the first round that are left; True where the run stops within them."""
    for step in range(state["prepared"], machine.num_preparations):
        try:
            machine.prepare(step)
            machine.health.verify()
        except Diverged as error:
            raise Diverged(f"diverged before the first round: {error}: lower generator.lr or a weight") from None
        clock.turns += 1
        clock.look()
        if clock.saves(True) or clock.stops(True):
            seconds = state["seconds"] + clock.elapsed
            _save(machine, record.path, means, {"round": 0, "turn": 0, "seconds": seconds, "prepared": step + 1})
            clock.saved()
        if clock.stops(True):
            return True
    return False


def _play(machine: Machine, clock: Intervals, means: Means, index: int, turn_index: int) -> bool:
    """One turn in all its parts; False where it was given up, and everything is as it was before it."""
    turn, found = machine.turns[turn_index], Means()
    if turn_index == 0:
        means.clear()
    for part in range(machine.config.micro_batches):
        try:
            found.add(turn.kind, record.values(machine.play(index, turn_index, part)))
        except Interrupted:
            return False
        if part + 1 == machine.config.micro_batches:
            clock.turns += 1
        clock.look()
    player = machine.players["generator" if turn.kind == "generator" else "student"]
    if player.gradient_norm is not None:
        found.add(player.name, {"gradient_norm": player.gradient_norm})
    means.extend(found)
    return True


def _end_round(
    machine: Machine, record: Record, clock: Intervals, means: Means, report: Report, judge: Judge
) -> Report:
    """What is due after a round: a row by `log_every` or `log_seconds`, an evaluation by `evaluate_every`, pictures."""
    config, done = machine.config, report.round
    values: dict[str, float] = {}
    if done % config.log_every == 0 or done == config.rounds or clock.logs():
        machine.health.verify()
        values = means.read() | _learning_rates(machine) | machine.runtime.system()
        clock.logged()
    if config.evaluate_every and done % config.evaluate_every == 0 and done < config.rounds:
        networks = machine.networks()
        values |= evaluation(config, networks) | judge(networks.student)
    if values:
        record.row(done, report.seconds, {**values, "rounds_per_second": report.rounds_per_second})
    if done in {math.ceil(config.rounds * share / 4) for share in (1, 2, 3, 4)}:
        record.samples(machine.networks(), done)  # before the checkpoint: after a kill between the two they come again
    return dataclasses.replace(report, values=values, alarm=record.alarm if values else None)


def _learning_rates(machine: Machine) -> dict[str, float]:
    """The rate of each player's last update."""
    players = (player for player in machine.players.values() if player.updates)
    return {f"{player.name}/lr": player.learning_rate(player.updates - 1) for player in players}


def _save(machine: Machine, path: Path, means: Means, state: dict[str, Any]) -> None:
    """Writes a checkpoint, at the end of a round or of a turn within one."""
    machine.health.verify()
    others = machine.sources.kept(state["round"], state["turn"]) | (means.tensors() if state["turn"] else {})
    keep, first = machine.config.checkpoint.keep, machine.runtime.first
    checkpoint.store(path / "checkpoints", machine.players, state, keep, first, others)
