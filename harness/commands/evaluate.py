"""`ddad evaluate`: scores a finished run again from its folder, or any network on a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harness import config, files
from harness import task as tasks
from harness.config import FRESH, UNTRAINED, Config, Distributed
from harness.config.parse import Overlay, merge, nest
from harness.distributed.runtime import Runtime
from harness.errors import UserError, nearest
from harness.methods import find
from harness.networks import build, checkpoints, own_file, roles, weights
from harness.run import folder
from harness.run.student import load_student
from harness.training import checkpoint, evaluate
from harness.training.machine import Machine


def of_run(
    run: Path, warn: Callable[[str], None], given: Mapping[str, Any], over: Overlay | None = None
) -> dict[str, Any]:
    """Scores of a finished run: {"run", "student", "teacher", "agreement", "agreement_on", "missing"}.

    `given` sets paths of its configuration, so that it can be scored on other data; None leaves what it had. So does
    `over`, an overlay, in which None is null.
    A teacher's file that has moved or changed is named in "missing" and through `warn`; the student is still scored.
    """
    recorded, records = folder.read_config(run)
    recorded = dataclasses.replace(recorded, distributed=Distributed())  # scored here, on one process
    settings = _with_recorded_paths(
        config.build(merge(config.to_dict(recorded), merge(nest(given), over or {}))), records
    )
    student, _ = load_student(run)
    needed = {role: record for role, record in records.items() if role != "student.start"}
    missing = [problem for role, record in needed.items() if (problem := _file_problem(role, record))]
    for problem in missing:
        warn(f"{problem}: only the student is scored")
    runtime = Runtime(settings)
    has_teacher = find(settings.method, settings.variant)[0].has_teacher and not missing
    teacher = runtime.prepare_frozen(roles.teacher(settings, warn)) if has_teacher else None
    generate = _generate(run, settings, runtime) if teacher and settings.data.name == "none" else None
    scores = evaluate.measure(settings, teacher, runtime.prepare_frozen(student), generate, runtime)
    return {
        "run": str(run),
        "data": settings.data.name,
        "teacher": scores.teacher or None,
        "student": scores.student or None,
        "agreement": scores.agreement,
        "agreement_on": scores.agreement_on,
        **({"sizes": scores.sizes} if scores.sizes else {}),
        "missing": missing,
    }


def of_network(
    name: str,
    file: Path,
    data: str,
    given: Mapping[str, Any],
    over: Overlay | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Scores of any network on the test images of a data set: {"network", "checkpoint", "data", metrics}.

    `given` sets paths of a configuration, among them `teacher.entry`, which names the weights in the file; a value of
    None leaves what the data set asks for. So does `over`, an overlay, in which None is null. `warn` is told which
    weights were taken where the file holds others.
    """
    settings = _settings(name, data, merge(nest(given), over or {}))
    task = tasks.load(settings.task)
    module = build.network(task, name, settings.classes, config.image_shape(settings)[0])
    weights.load(module, file, f"--network {name}", settings.teacher.entry, warn, "--entry ")
    roles.check_answer(f"--network {name}", module, settings)
    runtime = Runtime(settings)
    scores = evaluate.measure(settings, None, runtime.prepare_frozen(module), None, runtime)
    described = {"network": name, "checkpoint": str(file), "data": data, **scores.student}
    return described | ({"sizes": scores.sizes["student"]} if scores.sizes else {})


def table(found: Mapping[str, Any]) -> list[str]:
    """The scalar figures of an evaluation, one on each line."""
    lines = []
    for key, value in found.items():
        if isinstance(value, Mapping):
            lines += [f"{key} {line}" for line in table(value)]
        elif isinstance(value, float):
            lines.append(f"{key:24}{value:.4f}")
        elif isinstance(value, str | int):
            lines.append(f"{key:24}{value}")
    return lines


def _generate(run: Path, settings: Config, runtime: Runtime) -> Callable[[int, int], Tensor]:
    """The images of the run's last generator: generate(batch size, index of the batch)."""
    turns = find(settings.method, settings.variant)[0].turns(settings)
    machine = Machine(settings, runtime, turns, roles.teacher(settings), folder.structure(run))
    if checkpoint.restore(run / "checkpoints", machine.players, take=machine.sources.take) is None:
        raise UserError(f"{run / 'checkpoints'} is empty, it held the generator: name test images with --data")
    last = machine.networks()
    return lambda count, index: last.generate(count, "evaluation", index)


def _settings(name: str, data: str, given: Overlay) -> Config:
    """The configuration of an evaluation on a data set: the task that has it, and what that set asks for."""
    known = {known: task for task in tasks.names() for known in tasks.load(task).data_names()}
    if data not in known:
        raise UserError(f"--data {data}: no such data set{nearest(data, known)}")
    overlay = merge(tasks.load(known[data]).data_defaults(data), {"task": known[data], "data": {"name": data}})
    overlay = merge(overlay, given)
    if "classes" not in overlay:
        raise UserError(f"--data {data} does not say how many classes it has: give --classes and --size")
    return config.build(merge(overlay, {"teacher": {"network": name, "checkpoint": UNTRAINED}}))


def _with_recorded_paths(settings: Config, records: Mapping[str, Mapping[str, Any]]) -> Config:
    """The settings with absolute paths: those in config.yaml are relative to the folder where the run was started."""
    names = {
        role: own_file.located(getattr(settings, role).network, records.get(f"{role}.network"))
        for role in ("teacher", "student")
    }
    checkpoint_file = records.get("teacher.checkpoint", {}).get("path", settings.teacher.checkpoint)
    teacher = dataclasses.replace(settings.teacher, network=names["teacher"], checkpoint=checkpoint_file)
    # The weights are the run's: those that it started from are of no concern any more.
    student = dataclasses.replace(settings.student, network=names["student"], start=FRESH, blocks=None)
    return dataclasses.replace(settings, teacher=teacher, student=student)


def _file_problem(role: str, record: Mapping[str, Any]) -> str | None:
    """What is wrong with a file on which a run depends, or None."""
    path = Path(record["path"])
    if not path.exists():
        return f"{role} {path} is not there any more"
    try:
        same = files.sha256(*checkpoints.parts(path)) == record["sha256"]
    except UserError as error:  # a shard is gone
        return f"{role}: {error}"
    return None if same else f"{role} {path} is not the file the run began with"
