"""The composition root: build, rounds, evaluate, checkpoint, result.

for report in rounds(resolve("digits")):  # the command line, a sweep's trial and the tests do just this
print(report.round, report.values)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness import methods
from harness.config import UNTRAINED, Config, Tracking
from harness.distributed.runtime import Runtime
from harness.errors import Lost
from harness.networks import roles
from harness.networks.cutting import Structure
from harness.resolve import untrained
from harness.run import folder
from harness.tracking import Status
from harness.training import teaching
from harness.training.loop import restore, train
from harness.training.machine import Machine
from harness.training.record import NoRecord, Record, class_names
from harness.training.report import Judge, Report
from harness.training.result import finish

__all__ = ["Judge", "Report", "distill", "rounds", "teach"]


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
    """The run, a Report every `log_every` rounds or `log_seconds`; resumes from `output` if it was begun there.

    `stop` is asked after every turn and every image step: a reason ends the run with a checkpoint, at the end of the
    round or, where that takes more than seconds, of the turn. `warn` takes sentences for people. `judge` adds figures
    of the student, such as a sweep's own, wherever an evaluation is due. Closing the iterator early leaves the last
    checkpoint, from which the next call goes on.
    """
    path = output or folder.default(config)
    with _joined(config) as runtime:
        if finished := runtime.first(lambda: folder.finished(path, config)):
            warn(f"{path} is finished: this is what it found")
            yield _last(config, path, finished)
            return
        if not runtime.first(lambda: _awaits_teacher(config)):
            yield from _resume(config, path, runtime, stop, warn, judge)
            return
        _check_build(untrained(config), runtime)
        warn(f"no teacher at {teaching.target(config)} yet: teaching one on {config.data.name} first")
        for report in _teach(dataclasses.replace(config, tracking=Tracking(uri="none")), None, runtime, stop, warn):
            if report.stopped:
                yield report
                return
    with _joined(config) as runtime:  # Accelerate keeps one state a process, now the supervised run's
        yield from _resume(config, path, runtime, stop, warn, judge)


def teach(
    config: Config,
    output: Path | None = None,
    stop: Callable[[], str | None] = lambda: None,
    warn: Callable[[str], None] = lambda line: None,
) -> Iterator[Report]:
    """Trains the teacher that a configuration names into `teacher.checkpoint`; no report where the file is there."""
    with _joined(config) as runtime:
        yield from _teach(config, output, runtime, stop, warn)


def _teach(
    config: Config,
    output: Path | None,
    runtime: Runtime,
    stop: Callable[[], str | None],
    warn: Callable[[str], None],
) -> Iterator[Report]:
    """`teach`, with the Runtime of `config`."""
    target = teaching.target(config)
    if runtime.first(target.exists):
        return
    supervised = runtime.together(lambda: teaching.supervised_config(config))
    path = output or folder.default(supervised)
    with _joined(supervised) as own, ExitStack() as held:
        _check_build(supervised, own)
        own.on_first(lambda: held.enter_context(teaching.lock(target)))
        if own.first(target.exists):  # another run has taught it meanwhile
            return
        finished = own.first(lambda: folder.finished(path, supervised))
        reports = (
            iter([_last(supervised, path, finished)])
            if finished
            else _resume(supervised, path, own, stop, warn, lambda student: {})
        )
        for report in reports:
            if report.result:
                own.first(partial(teaching.copy_student, report.folder, target))
            yield report


def _resume(
    config: Config,
    path: Path,
    runtime: Runtime,
    stop: Callable[[], str | None],
    warn: Callable[[str], None],
    judge: Judge,
) -> Generator[Report, None, None]:
    """The run in its folder from its last checkpoint to its end; the teacher is there."""
    names = runtime.together(lambda: class_names(config))
    machine = _build(config, runtime, warn, runtime.first(lambda: folder.structure(path)))
    with ExitStack() as held:
        runtime.on_first(lambda: held.enter_context(folder.claim(path)))
        runtime.first(lambda: folder.open_run(path, config))
        if machine.structure:
            runtime.first(partial(folder.write_structure, path, machine.structure))
        state, means = restore(machine, path / "checkpoints")
        arguments = (path, config, state["round"], names, warn)
        record = runtime.on_first(lambda: Record(*arguments)) or NoRecord(*arguments)
        record.began(machine.start)
        status: Status = "FAILED"
        try:
            report = yield from train(machine, record, state, means, stop, judge)
            result = None if report.stopped else finish(machine, record, report, judge)
            status = "KILLED" if report.stopped else "FINISHED"
            runtime.first(partial(record.close, status))  # which may take as long as the MLflow server likes
            if result:
                runtime.first(partial(folder.write_result, path, result))
        except GeneratorExit:
            status = "KILLED"
            raise
        finally:
            record.close(status)
        yield dataclasses.replace(report, result=result)


@contextmanager
def _joined(config: Config) -> Iterator[Runtime]:
    """This process among those of a run. An exception that another process caused becomes Lost, which names it."""
    runtime = Runtime(config)
    try:
        yield runtime
    except (GeneratorExit, Lost):
        raise
    except Exception as error:
        if (cause := runtime.cause(error)) is error:
            raise
        raise cause from None
    finally:
        runtime.close()


def _awaits_teacher(config: Config) -> bool:
    """Whether the teacher is one that is taught on the way, and not there yet."""
    awaited = config.teach.automatic and config.teacher.checkpoint != UNTRAINED
    return awaited and not Path(str(config.teacher.checkpoint)).exists()


def _build(
    config: Config,
    runtime: Runtime,
    warn: Callable[[str], None] = lambda line: None,
    structure: Structure | None = None,
) -> Machine:
    method, _ = methods.find(config.method, config.variant)
    teacher = runtime.together(lambda: roles.teacher(config, warn)) if method.has_teacher else None
    return Machine(config, runtime, method.turns(config), teacher, structure)


def _check_build(config: Config, runtime: Runtime) -> None:
    """Builds everything once: a mistake shows before a teacher is taught and anything is written."""
    runtime.together(lambda: class_names(config))
    _build(config, runtime)


def _last(config: Config, path: Path, result: dict[str, Any]) -> Report:
    """The report of a run that was finished before."""
    done, speed = config.rounds, result["rounds_per_second"] or 0.0
    return Report(done, done, result["wall_seconds"], speed, folder=path, result=result)
