"""What a finished run found: the scores of its final state, and the content of result.json."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from harness import files, methods
from harness import task as tasks
from harness.config import UNTRAINED, Config
from harness.networks import own_file, preprocessing, sources
from harness.run.student import write_student
from harness.training import cost
from harness.training.doubts import doubt
from harness.training.evaluate import Scores, measure
from harness.training.machine import Machine, Networks
from harness.training.record import Record
from harness.training.report import Judge, Report

RESULT_SCHEMA = 1


def evaluation(config: Config, networks: Networks) -> dict[str, float]:
    """The figures of an evaluation that make a curve; every process has to call."""
    return _curve(config, _measure(config, networks))


def finish(machine: Machine, record: Record, report: Report, judge: Judge) -> dict[str, Any]:
    """Scores the final state, writes the student and the pictures; returns the content of result.json."""
    config, last = machine.config, machine.networks()
    scores = _measure(config, last)
    record.row(report.round, report.seconds, _curve(config, scores) | judge(last.student))
    spec = config.student
    whole = config.teacher if machine.structure else spec
    source = own_file.source_file(whole.network)
    about = {
        "task": config.task,
        "network": spec.network,
        "arguments": spec.arguments,
        "classes": config.classes,
        "class_names": record.names,
        "preprocessing": dataclasses.asdict(preprocessing.preprocessing(config)),
        "source": files.file_record(source) if source else None,
    }
    if machine.structure:
        about["pruned"] = {"network": whole.network, "arguments": whole.arguments, "structure": machine.structure}
    first = machine.runtime.first
    if machine.teacher and config.teacher.checkpoint != UNTRAINED:
        first(lambda: doubt(scores.confusion, "the teacher", record.warn, tasks.is_dense(config.task)))
    first(lambda: write_student(record.path, last.student, about))
    for write in (record.curves, partial(record.scored, last), partial(record.model, last)):
        first(write)
    return _describe(machine, last, scores, report)


def _measure(config: Config, networks: Networks) -> Scores:
    generate = (lambda count, index: networks.generate(count, "evaluation", index)) if networks.generates else None
    return measure(config, networks.teacher, networks.student, generate, networks.runtime)


def _curve(config: Config, scores: Scores) -> dict[str, float]:
    found = {"agreement": scores.agreement}
    found |= {f"student_{name}": scores.student.get(name) for name in tasks.load(config.task).reported_metrics}
    return {f"evaluation/{name}": value for name, value in found.items() if value is not None}


def _sha256(machine: Machine) -> str:
    """Of the teacher's weights."""
    given = machine.given.teacher
    return given.sha256 if given else str(sources.records(machine.config)["teacher.checkpoint"]["sha256"])


def _describe(machine: Machine, last: Networks, scores: Scores, report: Report) -> dict[str, Any]:
    config, metrics = machine.config, tasks.load(machine.config.task).reported_metrics
    costs = machine.runtime.first(
        lambda: {role: cost.of(config, getattr(last, role)) for role in ("teacher", "student")}
    )
    teacher: dict[str, Any] | None = None
    if machine.teacher:
        untrained = config.teacher.checkpoint == UNTRAINED
        teacher = {
            "network": config.teacher.network,
            **costs["teacher"],
            "sha256": None if untrained else _sha256(machine),
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
            **({} if machine.start.inherited is None else {"inherited": machine.start.inherited}),
            **costs["student"],
            **{name: scores.student.get(name) for name in metrics},
            **({"sizes": scores.sizes["student"]} if "student" in scores.sizes else {}),
        },
        "agreement": scores.agreement,
        "agreement_on": scores.agreement_on,
        **({} if scores.test_images is None else {"test_images": scores.test_images}),
        "wall_seconds": round(report.seconds, 3),
        "rounds_per_second": round(config.rounds / report.seconds, 3) if report.seconds else None,
        "world_size": machine.runtime.world_size,
        "device": machine.runtime.device.type,
        "data_free": methods.METHODS[config.method].data_free,
    }
