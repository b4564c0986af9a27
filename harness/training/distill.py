"""The composition root: build, rounds, evaluate, checkpoint, result.

for report in rounds(resolve("digits")):  # the command line, a sweep's trial and the tests do just this
print(report.round, report.values)
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from harness import files, methods
from harness import task as tasks
from harness.algorithm.terms import Terms
from harness.config import UNTRAINED, Config, Tracking
from harness.distributed.runtime import Runtime
from harness.errors import Diverged
from harness.networks import checkpoints, layers, own_file, preprocessing, roles
from harness.resolve import untrained
from harness.run import folder
from harness.run.student import write_student
from harness.tracking import Status
from harness.training import checkpoint, teaching
from harness.training.evaluate import Scores, measure
from harness.training.machine import Machine, Networks
from harness.training.record import NoRecord, Record, class_names, latest

RESULT_SCHEMA = 1

Judge = Callable[[nn.Module], dict[str, float]]
"""Figures of a student, by the names they have in the metrics."""


@dataclass(frozen=True)
class Report:
    """Where a run stands. The last one of a run carries `result`, or says why it `stopped`."""

    round: int
    """Rounds done."""
    rounds: int
    """Rounds of the whole run."""
    seconds: float
    """Seconds of all its rounds so far, summed over resumes."""
    rounds_per_second: float
    """Speed since this process took the run up; 0 before its first round."""
    values: dict[str, float] = field(default_factory=dict)
    """Losses of the last round, means over its turns, by "player/term"; evaluations where one was due."""
    folder: Path = Path()
    alarm: str | None = None
    """What is wrong with the run, in a word, such as "collapsed"."""
    stopped: str | None = None
    result: dict[str, Any] | None = None


def distill(config: Config, output: Path | None = None) -> dict[str, Any]:
    """Runs to the end and returns the content of result.json.

    Raises UserError for a mistake in the configuration, Diverged when a loss is not finite, and RuntimeError when
    `max_minutes` ends the run early (it can be taken up again by the same call).
    """
    for report in rounds(config, output):
        if report.result is not None:
            return report.result
    raise RuntimeError(f"stopped after round {report.round} of {report.rounds}: {report.stopped}")


def rounds(
    config: Config,
    output: Path | None = None,
    stop: Callable[[], str | None] = lambda: None,
    warn: Callable[[str], None] = lambda line: None,
    judge: Judge = lambda student: {},
) -> Generator[Report, None, None]:
    """The run, a Report every `log_every` rounds; resumes from `output` if it was begun there.

    `stop` is asked after every round: a reason ends the run with a checkpoint. `warn` takes sentences for people.
    `judge` adds figures of the student, such as a sweep's own, wherever an evaluation is due. Closing the iterator
    early leaves the last checkpoint, from which the next call goes on.
    """
    path = output or folder.default(config)
    runtime = Runtime(config)
    if finished := runtime.first(lambda: folder.finished(path, config)):
        warn(f"{path} is finished: this is what it found")
        yield _last(config, path, finished)
        return
    if runtime.first(lambda: _awaits_teacher(config)):
        _rehearse(untrained(config))
        warn(f"no teacher at {teaching.target(config)} yet: teaching one on {config.data.name} first")
        for lesson in teach(dataclasses.replace(config, tracking=Tracking(uri="none")), stop=stop, warn=warn):
            if lesson.stopped:
                yield lesson
                return
    names = runtime.together(lambda: class_names(config))
    machine = _build(config, warn)
    with ExitStack() as held:
        runtime.first(lambda: held.enter_context(folder.claim(path)))
        runtime.first(lambda: folder.open_run(path, config))
        state = checkpoint.restore(path / "checkpoints", machine.players, runtime.first, machine.sources.take)
        state = state or {"round": 0, "seconds": 0.0}
        keeper = Record if runtime.rank == 0 else NoRecord
        record = keeper(path, config, state["round"], names, warn)
        status: Status = "FAILED"
        result = None
        try:
            report = yield from _train(machine, record, state, stop, judge)
            if report.stopped:
                status = "KILLED"
            else:
                result, status = _finish(machine, record, report, judge), "FINISHED"
        except GeneratorExit:
            status = "KILLED"
            raise
        except Exception as error:
            if (blamed := machine.runtime.blame(error)) is error:
                raise
            raise blamed from None
        finally:
            record.close(status)
        if result:
            runtime.first(partial(folder.write_result, path, result))
        yield dataclasses.replace(report, result=result)


def teach(
    config: Config,
    output: Path | None = None,
    stop: Callable[[], str | None] = lambda: None,
    warn: Callable[[str], None] = lambda line: None,
) -> Iterator[Report]:
    """Trains the teacher that a configuration names into `teacher.checkpoint`; no report where the file is there."""
    target, runtime = teaching.target(config), Runtime(config)
    if runtime.first(target.exists):
        return
    lesson = runtime.together(lambda: teaching.lesson(config))
    _rehearse(lesson)
    with ExitStack() as held:
        runtime.first(lambda: held.enter_context(teaching.alone(target)))
        if runtime.first(target.exists):  # another run has taught it meanwhile
            return
        for report in rounds(lesson, output, stop, warn):
            if report.result:
                runtime.first(partial(teaching.hand_over, report.folder, target))
            yield report


def _awaits_teacher(config: Config) -> bool:
    """Whether the teacher is one that is taught on the way, and not there yet."""
    awaited = config.teach.automatic and config.teacher.checkpoint != UNTRAINED
    return awaited and not Path(str(config.teacher.checkpoint)).exists()


def _build(config: Config, warn: Callable[[str], None] = lambda line: None) -> Machine:
    runtime = Runtime(config)
    method, _ = methods.find(config.method, config.variant)
    teacher = runtime.together(lambda: roles.teacher(config, warn)) if method.has_teacher else None
    return Machine(config, runtime, method.turns(config), teacher)


def _rehearse(config: Config) -> None:
    """Builds everything once: a mistake shows before a teacher is taught and anything is written."""
    Runtime(config).together(lambda: class_names(config))
    _build(config)


def _train(
    machine: Machine, record: Record, state: dict[str, Any], stop: Callable[[], str | None], judge: Judge
) -> Generator[Report, None, Report]:
    """All rounds that are left, each with what is due after it; returns where the run stands."""
    config, start, began = machine.config, state["round"], time.monotonic()
    report = Report(start, config.rounds, state["seconds"], 0.0, folder=record.path)
    if start == 0:
        record.samples(machine.networks(), 0)
    for index in range(start, config.rounds):
        try:
            machine.runtime.stand(index)
            terms = [
                (turn.kind, machine.play(index, place, part))
                for place, turn in enumerate(machine.turns)
                for part in range(config.micro_batches)
            ]
            done, last = index + 1, index + 1 == config.rounds
            elapsed = time.monotonic() - began
            late = config.max_minutes is not None and elapsed > 60 * config.max_minutes
            wish = stop() or (f"max_minutes={config.max_minutes:g} is over" if late and not last else None)
            stopped = machine.runtime.stopping(wish)
            values = _due(machine, done, terms, judge)
            seconds, speed = state["seconds"] + elapsed, (done - start) / elapsed
            report = Report(done, config.rounds, seconds, speed, values, record.path)
            if values:
                record.row(done, report.seconds, {**values, "rounds_per_second": report.rounds_per_second})
                report = dataclasses.replace(report, alarm=record.alarm)
            if done in {math.ceil(config.rounds * share / 4) for share in (1, 2, 3, 4)}:
                # Before the checkpoint: after a kill between the two they come again.
                record.samples(machine.networks(), done)
            if done % config.checkpoint.every == 0 or last or stopped:
                machine.health.verify()
                position = {"round": done, "seconds": report.seconds}
                place, kept = record.path / "checkpoints", machine.sources.kept(done)
                checkpoint.store(place, machine.players, position, config.checkpoint.keep, machine.runtime.first, kept)
        except Diverged as error:
            raise Diverged(
                f"diverged in round {index + 1}: {error}; the last good checkpoint is kept in {record.path}: "
                "lower a learning rate or a weight (a new run), or set student.clip, generator.clip"
            ) from None
        if stopped and not last:
            return dataclasses.replace(report, stopped=stopped)
        if values:
            yield report
    return report


def _due(machine: Machine, done: int, terms: Sequence[tuple[str, Terms]], judge: Judge) -> dict[str, float]:
    """What is reported after a round: its losses every `log_every`, evaluations every `evaluate_every`."""
    config, values = machine.config, {}
    if done % config.log_every == 0 or done == config.rounds:
        machine.health.verify()
        values = latest(terms) | machine.runtime.system()
    if config.evaluate_every and done % config.evaluate_every == 0 and done < config.rounds:
        now = machine.networks()
        values |= _evaluation(config, _measure(config, now)) | judge(now.student)
    return values


def _measure(config: Config, networks: Networks) -> Scores:
    generate = (lambda count, index: networks.generate(count, "evaluation", index)) if networks.generates else None
    return measure(config, networks.teacher, networks.student, generate, networks.runtime)


def _evaluation(config: Config, scores: Scores) -> dict[str, float]:
    """The figures of an evaluation that make a curve."""
    found = {"agreement": scores.agreement}
    found |= {f"student_{name}": scores.student.get(name) for name in tasks.load(config.task).reported_metrics}
    return {f"evaluation/{name}": value for name, value in found.items() if value is not None}


def _finish(machine: Machine, record: Record, report: Report, judge: Judge) -> dict[str, Any]:
    """Scores the final state, writes the student and the pictures; returns the content of result.json."""
    config, last = machine.config, machine.networks()
    scores = _measure(config, last)
    record.row(report.round, report.seconds, _evaluation(config, scores) | judge(last.student))
    spec = config.student
    source = own_file.source_file(spec.network)
    about = {
        "task": config.task,
        "network": spec.network,
        "arguments": spec.arguments,
        "classes": config.classes,
        "class_names": record.names,
        "preprocessing": dataclasses.asdict(preprocessing.preprocessing(config)),
        "source": files.file_record(source) if source else None,
    }
    machine.runtime.first(lambda: write_student(record.path, last.student, about))
    record.curves()
    record.scored(last)
    record.model(last)
    return _describe(machine, last, scores, report)


def _describe(machine: Machine, last: Networks, scores: Scores, report: Report) -> dict[str, Any]:
    config, metrics = machine.config, tasks.load(machine.config.task).reported_metrics
    teacher: dict[str, Any] | None = None
    if machine.teacher:
        checkpoint_file = config.teacher.checkpoint
        untrained = checkpoint_file == UNTRAINED
        teacher = {
            "network": config.teacher.network,
            "parameters": layers.num_parameters(machine.teacher.module),
            "sha256": None if untrained else files.sha256(*checkpoints.parts(Path(str(checkpoint_file)))),
            **{name: scores.teacher.get(name) for name in metrics},
            **({"sizes": scores.sizes["teacher"]} if "teacher" in scores.sizes else {}),
        } | ({"untrained": True} if untrained else {})
    return {
        "schema": RESULT_SCHEMA,
        **{key: getattr(config, key) for key in ("task", "recipe", "method", "variant", "seed", "rounds")},
        "student_updates": machine.student.updates,
        "teacher": teacher,
        "student": {
            "network": config.student.network,
            "parameters": layers.num_parameters(last.student),
            **{name: scores.student.get(name) for name in metrics},
            **({"sizes": scores.sizes["student"]} if "student" in scores.sizes else {}),
        },
        "agreement": scores.agreement,
        "agreement_on": scores.agreement_on,
        "wall_seconds": round(report.seconds, 3),
        "rounds_per_second": round(config.rounds / report.seconds, 3) if report.seconds else None,
        "world_size": machine.runtime.world_size,
        "device": machine.runtime.device.type,
        "data_free": methods.METHODS[config.method].data_free,
    }


def _last(config: Config, path: Path, result: dict[str, Any]) -> Report:
    """The report of a run that was finished before."""
    done, speed = config.rounds, result["rounds_per_second"] or 0.0
    return Report(done, done, result["wall_seconds"], speed, folder=path, result=result)
