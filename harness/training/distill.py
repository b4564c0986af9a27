"""The composition root: build, rounds, evaluate, checkpoint, result.

The command line, a sweep's trial and the tests do this:

    for report in rounds(resolve("digits")):
        print(report.round, report.values)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from harness import methods
from harness.config import Config, Tracking
from harness.distributed.runtime import Runtime
from harness.errors import Lost, UserError
from harness.networks import roles, sources
from harness.networks.cutting import Structure
from harness.networks.given import NOTHING, Given, complete, take
from harness.resolve import resolve, untrained
from harness.run import folder
from harness.run import given as given_files
from harness.tracking import Status
from harness.training import teaching
from harness.training.loop import restore, train
from harness.training.machine import Machine
from harness.training.record import NoRecord, Record, class_names
from harness.training.report import Judge, Report
from harness.training.result import finish

__all__ = ["Judge", "Report", "distill", "rounds", "teach"]


def distill(
    config: Config | Mapping[str, Any],
    output: str | Path | None = None,
    warn: Callable[[str], None] = lambda line: None,
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
) -> dict[str, Any]:
    """Runs to the end and returns the content of result.json; the arguments are those of `rounds`.

    Raises UserError for a mistake in the configuration, Diverged when a loss is not finite, and RuntimeError when
    `max_minutes` ends the run early (it can be taken up again by the same call).
    """
    for report in rounds(config, output, warn=warn, teacher=teacher, student=student):
        if report.result is not None:
            return report.result
    raise RuntimeError(f"stopped after round {report.round} of {report.rounds}: {report.stopped}")


def rounds(
    config: Config | Mapping[str, Any],
    output: str | Path | None = None,
    stop: Callable[[], str | None] = lambda: None,
    warn: Callable[[str], None] = lambda line: None,
    judge: Judge = lambda student: {},
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
) -> Generator[Report, None, None]:
    """The run, a Report every `log_every` rounds or `log_seconds`; resumes from `output` if it was begun there.

    `config` is complete, or holds what a --config file does: {"recipe": NAME, ...}. `teacher`, a module with its
    weights, and `student`, one with those to begin with, stand for what the configuration says of networks and files;
    the run works on copies and keeps their weights (docs/from-python.md).

    `stop` is asked after every turn and every image step: a reason ends the run with a checkpoint, at the end of the
    round or, where that takes more than seconds, of the turn. `warn` takes sentences for people. `judge` adds figures
    of the student, such as a sweep's own, wherever an evaluation is due. Closing the iterator early leaves the last
    checkpoint, from which the next call goes on.
    """
    config, given = _take(config, {"teacher": teacher, "student": student}, warn)
    path = Path(output) if output else folder.default(config)
    with _joined(config) as runtime:
        if runtime.world_size > 1 and not config.sync_batch_norm and config.distributed.world_size is None:
            raise UserError(
                f"sync_batch_norm=false: the result depends on the number of processes, which is {runtime.world_size} "
                f"here: record it by distributed.world_size={runtime.world_size}"
            )
        _check_alike(given, runtime)
        if finished := runtime.first(lambda: folder.finished(path, config, given)):
            warn(f"{path} is finished: this is what it found")
            yield _last(config, path, finished)
            return
        given = _with_copies(path, config, given, runtime)
        if not runtime.first(lambda: _awaits_teacher(config)):
            runtime.on_first(lambda: teaching.check_note(config, warn))
            yield from _resume(config, path, runtime, stop, warn, judge, given)
            return
        _check_build(untrained(config), runtime, given)
        warn(f"no teacher at {teaching.target(config)} yet: teaching one on {config.data.name} first")
        for report in _teach(dataclasses.replace(config, tracking=Tracking(uri="none")), None, runtime, stop, warn):
            if report.stopped:
                yield report
                return
    with _joined(config) as runtime:  # Accelerate keeps one state a process, now the supervised run's
        yield from _resume(config, path, runtime, stop, warn, judge, given)


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
                own.first(partial(teaching.copy_student, report.folder, target, config))
            yield report


def _resume(
    config: Config,
    path: Path,
    runtime: Runtime,
    stop: Callable[[], str | None],
    warn: Callable[[str], None],
    judge: Judge,
    given: Given = NOTHING,
) -> Generator[Report, None, None]:
    """The run in its folder from its last checkpoint to its end; the teacher is there."""
    names = runtime.together(lambda: class_names(config))
    pinned = runtime.first(lambda: sources.pinned(config, folder.recorded(path), warn))
    machine = _build(pinned, runtime, warn, runtime.first(lambda: folder.structure(path)), given)
    with ExitStack() as held:
        runtime.on_first(lambda: held.enter_context(folder.claim(path)))
        runtime.first(lambda: folder.open_run(path, config, given, pinned))
        if machine.structure:
            runtime.first(partial(folder.write_structure, path, machine.structure))
        state, means = restore(machine, path / "checkpoints")
        arguments = (path, config, state["round"], names, warn)
        record = runtime.on_first(lambda: Record(*arguments)) or NoRecord(*arguments)
        record.began(machine.start, machine.doubts)
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
    return config.teach.automatic and not sources.present(str(config.teacher.checkpoint))


def _build(
    config: Config,
    runtime: Runtime,
    warn: Callable[[str], None] = lambda line: None,
    structure: Structure | None = None,
    given: Given = NOTHING,
) -> Machine:
    method, _ = methods.find(config.method, config.variant)
    build = partial(roles.teacher, config, warn, given.source("teacher"))
    teacher = runtime.together(build) if method.has_teacher else None
    return Machine(config, runtime, method.turns(config), teacher, structure, given)


def _check_build(config: Config, runtime: Runtime, given: Given = NOTHING) -> None:
    """Builds everything once: a mistake shows before a teacher is taught and anything is written."""
    runtime.together(lambda: class_names(config))
    _build(runtime.first(lambda: sources.pinned(config, {})), runtime, given=given)


def _take(
    config: Config | Mapping[str, Any], modules: Mapping[str, nn.Module | None], warn: Callable[[str], None]
) -> tuple[Config, Given]:
    """The complete configuration, and copies of the modules that were given, by role."""
    present = {role: module for role, module in modules.items() if module is not None}
    if not isinstance(config, Config):
        config = resolve(None, config, given=present, say=warn)
    if not present:
        return config, NOTHING
    given = Given(**{role: take(role, module, config) for role, module in present.items()})
    return complete(config, given, warn), given


def _check_alike(given: Given, runtime: Runtime) -> None:
    """UserError where processes were given modules of other weights."""
    found = runtime.gather({role: taken.sha256 for role, taken in given.modules.items()})
    if any(each != found[0] for each in found):
        raise UserError("the processes were given modules of other weights: load or seed them alike on each")


def _with_copies(path: Path, config: Config, given: Given, runtime: Runtime) -> Given:
    """The modules of a run, those that were not given again built with the copies of their weights in its folder."""
    copies = runtime.first(lambda: given_files.read(path, config, given))
    return runtime.together(lambda: given_files.restore(config, copies, given)) if copies else given


def _last(config: Config, path: Path, result: dict[str, Any]) -> Report:
    """The report of a run that was finished before."""
    done, speed = config.rounds, result.get("rounds_per_second") or 0.0
    return Report(done, done, result["wall_seconds"], speed, folder=path, result=result)
