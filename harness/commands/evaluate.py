"""`ddad evaluate`: scores a finished run again from its folder, or any network on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from harness import config
from harness import task as tasks
from harness.commands import onnx_file, recorded
from harness.config import PRETRAINED, UNTRAINED, Config
from harness.config.parse import Overlay, merge, nest
from harness.distributed.runtime import Runtime
from harness.errors import UserError, nearest
from harness.networks import fit, pretrained, roles
from harness.run.student import load_student
from harness.training import evaluate
from harness.training.doubts import doubt
from harness.training.machine import Networks


def of_run(
    run: str | Path,
    warn: Callable[[str], None] = lambda line: None,
    given: Mapping[str, Any] = {},
    over: Overlay | None = None,
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
) -> dict[str, Any]:
    """Scores of a finished run: {"run", "student", "teacher", "agreement", "agreement_on", "test_images", "missing"}.

    `given` sets paths of its configuration, so that it can be scored on other data; None leaves what it had.
    `over`, an overlay, sets paths too; there None sets null. `teacher` and `student`: the modules that the run was
    given from Python. A teacher's file that has moved or changed is named in "missing" and through `warn`; the student
    is still scored. Raises UserError where the data has the student's classes in another order.
    """
    run = Path(run)
    last = recorded.read(run, merge(_nest(given), over or {}), {"teacher": teacher, "student": student})
    settings = last.config
    found, record = load_student(run, last.given.student_source(settings))
    for problem in last.missing:
        warn(f"{problem}: only the student is scored")
    if (root := settings.data.root) and not Path(root).exists():
        raise UserError(
            f"{run}: there is no data.root={root}; a path is relative to the folder where the run was begun: go there, "
            "or give data.root=..."
        )
    runtime = Runtime(settings)
    judge = runtime.prepare_frozen(last.teacher(warn)) if last.has_teacher else None
    generate = None
    if judge and settings.data.name == "none":
        generate = _generate(last.networks(runtime, "name test images with --data"))
    scores = evaluate.measure(settings, judge, runtime.prepare_frozen(found), generate, runtime)
    _check_names("the student", record["class_names"], scores, warn)
    doubt(scores.confusion, "the teacher" if judge else "the student", warn, tasks.is_dense(settings.task))
    return {
        "run": str(run),
        "data": settings.data.name,
        "teacher": scores.teacher or None,
        "student": scores.student or None,
        "agreement": scores.agreement,
        "agreement_on": scores.agreement_on,
        **_counted(scores),
        **({"sizes": scores.sizes} if scores.sizes else {}),
        "missing": last.missing,
    }


def of_onnx(
    file: Path,
    data: str,
    given: Mapping[str, Any],
    over: Overlay | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Scores of an ONNX file of `ddad export` on the test images of a data set: {"onnx", "data", metrics}.

    Normalisation, size and classes are those in the .json beside the file, or, where there is none, the data set's,
    which `warn` is told; `given` and `over` set others, as for `of_network`.
    """
    network = onnx_file.Network(file)
    about = onnx_file.described(file)
    if about is None:
        warn(f"no {file.name}.json beside the file: normalisation and size are those of {data}, or as options say")
    own = _as_described(about, network.shape) if about else {}
    settings = _settings(str(file), data, merge(merge(nest(own), _nest(given)), over or {}), {})
    fit.check_answer(f"--onnx {file}", network, settings)
    scores = evaluate.measure(settings, None, network.eval(), None, Runtime(settings))
    _check_names(str(file), (about or {}).get("class_names") or [], scores, warn)
    doubt(scores.confusion, str(file), warn, tasks.is_dense(settings.task))
    described = {"onnx": str(file), "data": data, **scores.student, **_counted(scores)}
    return described | ({"sizes": scores.sizes["student"]} if scores.sizes else {})


def of_network(
    name: str,
    file: str | Path,
    data: str,
    given: Mapping[str, Any],
    over: Overlay | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Scores of any network on the test images of a data set: {"network", "checkpoint", "data", metrics}.

    `file` holds its weights: a path, hub:OWNER/NAME or "pretrained". `given` sets paths of a configuration, among them
    `teacher.entry`, which names the weights in the file; a value of None leaves what the data set asks for.
    `over`, an overlay, sets paths too; there None sets null. `warn` is told which weights were taken where the file
    holds others.
    """
    weights = str(file)
    own = pretrained.expected(name, {}) if weights == PRETRAINED else {}
    settings = _settings(name, data, merge(_nest(given), over or {}), {"teacher": own})
    module = roles.with_weights(settings, weights, f"--network {name}", warn, "--entry ")
    fit.check_answer(f"--network {name}", module, settings)
    runtime = Runtime(settings)
    scores = evaluate.measure(settings, None, runtime.prepare_frozen(module), None, runtime)
    if settings.teacher.mean is None and settings.teacher.std is None:
        warn("--mean and --std are not given: the network is taken to have learnt from pixels in 0..1 as they are")
    doubt(scores.confusion, name, warn, tasks.is_dense(settings.task))
    described = {"network": name, "checkpoint": weights, "data": data, **scores.student, **_counted(scores)}
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


def _counted(scores: evaluate.Scores) -> dict[str, int]:
    return {} if scores.test_images is None else {"test_images": scores.test_images}


def _check_names(name: str, known: Sequence[str], scores: evaluate.Scores, warn: Callable[[str], None]) -> None:
    """UserError where the data's classes are those that a network knows, in another order; others are warned of.

    Numbers, which classes without names have, are not compared. `name` stands for the network.
    """
    pairs = zip(known, scores.classes, strict=False)  # a network may have one class more, for void
    differing = [(index, own, other) for index, (own, other) in enumerate(pairs) if own != other]
    if not differing or all(each.isdecimal() for each in known) or all(each.isdecimal() for each in scores.classes):
        return
    index, own, other = differing[0]
    said = f"class {index} of {name} is {own!r}, and of the data {other!r}"
    if sorted(known) == sorted(scores.classes):
        raise UserError(f"{said}: the same classes in another order; bring the data's into that of the network")
    warn(f"{said}: are these the same classes?")


def _generate(networks: Networks) -> Callable[[int, int], Tensor]:
    """The images on which agreement is measured: generate(batch size, index of the batch)."""
    return lambda count, index: networks.generate(count, "evaluation", index)


def _nest(given: Mapping[str, Any]) -> dict[str, Any]:
    return nest({path: value for path, value in given.items() if value is not None})


def _settings(name: str, data: str, given: Overlay, own: Overlay) -> Config:
    """The configuration of an evaluation on a data set: the task that has it, what that set and `own` ask for."""
    known = {known: task for task in tasks.names() for known in tasks.load(task).data_names()}
    if data not in known:
        raise UserError(f"--data {data}: no such data set{nearest(data, known)}")
    overlay = merge(tasks.load(known[data]).data_defaults(data), {"task": known[data], "data": {"name": data}})
    overlay = merge(merge(overlay, own), given)
    sized = tasks.is_dense(known[data]) or "size" in overlay.get("input", {}) or "size" in overlay["data"]
    missing = ["--classes"] * ("classes" not in overlay) + ["--size"] * (not sized)
    if missing:
        raise UserError(f"--data {data} does not say what {name} was trained with: give {' and '.join(missing)}")
    return config.build(merge(overlay, {"teacher": {"network": name, "checkpoint": UNTRAINED}}))


def _as_described(about: Mapping[str, Any], shape: Sequence[Any]) -> dict[str, Any]:
    """The fields of a configuration that follow from what lies beside an ONNX file with input `shape`."""
    spec = about["preprocessing"]
    size = [spec["height"], spec["width"]]
    free = isinstance(shape[2], str)  # it takes test images at their own size
    return {
        "classes": about["classes"],
        "teacher.channels": spec["channels"],
        "teacher.mean": list(spec["mean"]),
        "teacher.std": list(spec["std"]),
        "input.size": size,
        **({} if free else {"data.size": size}),
    }
