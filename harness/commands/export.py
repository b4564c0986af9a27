"""`ddad export`: the student as a safetensors, ONNX or torch.export file for use elsewhere."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import files
from harness import task as tasks
from harness.commands import calibration, footprint, onnx_file, quantise
from harness.errors import UserError, nearest
from harness.networks import sizes
from harness.networks.layers import evaluating
from harness.networks.preprocessing import from_record
from harness.run.student import WEIGHTS, load_student, save_weights

Format = Literal["safetensors", "onnx", "torch.export"]

ENDINGS: dict[Format, str] = {"safetensors": ".safetensors", "onnx": ".onnx", "torch.export": ".pt2"}

TOLERANCE = 1e-3
"""Most an exported student's logits may differ, as a share of the largest logit (at least 1)."""

BATCHES = (1, 3, 8)
"""Batch sizes of the parity check: the exported file must take any."""

Runner = Callable[[Tensor], Tensor]
"""An exported file at work: x [B, C, H, W] -> logits."""


def export(
    run: Path,
    format: str,  # noqa: A002 - the command's own word
    output: Path | None = None,
    int8: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes the student as `format` to `output` (default `<run>/export/student.*`), and beside it `<file>.json`.

    The file takes float32 images [B, C, H, W], any B, normalised as `preprocessing` says, and gives logits. An ONNX
    file of a segmentation network takes any H and W that the network takes (`input`). Before it is put in place it is
    run beside the PyTorch student on random images. With `int8` the ONNX file is quantised, and compared with the
    student on generated images (`harness.commands.quantise`). Returns {file, format, max_difference,
    device (`harness.commands.footprint` of teacher and student), task, network, classes, class_names, preprocessing},
    of ONNX `input`, and `int8`, the choice. `say` is told what could not be done. Raises UserError where there is no
    such format, no student, or no parity.
    """
    if format not in ENDINGS:
        raise UserError(f"format {format!r}: no such format{nearest(format, ENDINGS)}")
    kind: Format = next(known for known in get_args(Format) if known == format)
    if int8 and kind != "onnx":
        raise UserError(f"--int8 goes with --format onnx, not with {format}")
    module, record = load_student(run)
    module.requires_grad_(False)
    path = output or run / "export" / f"student{'.int8' * int8}{ENDINGS[kind]}"
    if path.suffix != ENDINGS[kind]:
        raise UserError(f"{path}: expected a name that ends in {ENDINGS[kind]} for {format}")
    if path.resolve() == (run / WEIGHTS).resolve():
        raise UserError(f"{path} is the run's own student: give another file")
    kinds = calibration.kinds(run, say) if int8 else {}
    about: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, files.atomic(path) as temporary:
        plain = Path(folder) / path.name if int8 else temporary
        difference, step = _write(kind, module, record, plain, path)
        costs = {"student": footprint.of(module, plain, record)}
        if kind == "onnx":
            about["input"] = _input(record, step)
        if int8:
            about["int8"] = quantise.quantise(plain, temporary, kinds, _images(record, 1).shape[1:]).record()
            difference = _difference(module, onnx_file.Network(temporary), _images(record, 2))
            costs["student int8"] = footprint.of(module, temporary, record)

        def write(network: nn.Module, file: Path) -> None:
            _write(kind, network, record, file, file)

        teacher = footprint.teacher(run, Path(folder) / f"teacher{ENDINGS[kind]}", write, record)
    kept = {key: record[key] for key in ("task", "network", "classes", "class_names", "preprocessing")}
    device = ({} if teacher is None else {"teacher": teacher}) | costs
    described = {"file": str(path), "format": format, "max_difference": difference, "device": device, **about, **kept}
    files.write(path.with_name(path.name + ".json"), json.dumps(described, indent=1) + "\n")
    return described


def _write(kind: Format, module: nn.Module, record: dict[str, Any], file: Path, name: Path) -> tuple[float, int | None]:
    """Writes a network to `file` and compares it: (largest difference, step by which sides may vary or None).

    Where a file with free sides cannot be had, one with the run's size is written. UserError names the file `name`.
    """
    step = _step(module, record) if kind == "onnx" else None
    if step:
        try:
            return _write_at(kind, module, record, file, name, step), step
        except UserError:
            pass  # the exporter wrote a size of its example into the graph
    return _write_at(kind, module, record, file, name, None), None


def _write_at(
    kind: Format, module: nn.Module, record: dict[str, Any], file: Path, name: Path, step: int | None
) -> float:
    try:
        with _quiet():
            run_exported = WRITERS[kind](module, _images(record, 2), file, step)
    except OSError:
        raise
    except Exception as error:  # whatever an exporter raises over a network that it cannot follow
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the network cannot be written as {kind} ({reason}); try another format") from error
    return _compare(module, run_exported, record, name, step)


def _step(module: nn.Module, record: dict[str, Any]) -> int | None:
    """What height and width may vary by, of a network whose logits are maps; None where their size is fixed."""
    if not tasks.is_dense(record["task"]):
        return None
    with evaluating([module]):
        return sizes.multiple(module, _images(record, 2))


def _input(record: dict[str, Any], step: int | None) -> dict[str, Any]:
    """What an ONNX file takes: its name, shape, and in words which sizes."""
    channels, height, width = _images(record, 1).shape[1:]
    shape = ["batch", channels, *(("height", "width") if step else (height, width))]
    multiple = f" divisible by {step}" if step and step > 1 else ""
    sides = f"height and width{multiple}" if step else f"batch, and images of {height} x {width} alone"
    return {"name": onnx_file.INPUT, "shape": shape, "divisible_by": step, "sizes": f"any {sides}"}


def _safetensors(module: nn.Module, example: Tensor, path: Path, step: int | None) -> Runner:
    """The weights by name; read back into the same network."""
    save_weights(module, path)
    weights = load_file(path)
    return lambda x: torch.func.functional_call(module, weights, x)


def _onnx(module: nn.Module, example: Tensor, path: Path, step: int | None) -> Runner:
    """One ONNX file, input `images`, output `logits`; run by onnxruntime on the CPU."""
    free = {0: torch.export.Dim("batch")}
    if step:
        height, width = sizes.others(example.shape[2], example.shape[3], step)[0]
        # At least 2 steps: an exporter takes a 1 for a constant.
        example = example.new_zeros(*example.shape[:2], max(height, 2 * step), max(width, 3 * step))
        free |= {2: step * torch.export.Dim("rows"), 3: step * torch.export.Dim("columns")}
    torch.onnx.export(
        module, (example,), path, input_names=[onnx_file.INPUT], output_names=[onnx_file.OUTPUT],
        dynamic_shapes=(free,), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    return onnx_file.runner(onnx_file.session(path))


def _torch_export(module: nn.Module, example: Tensor, path: Path, step: int | None) -> Runner:
    """A program that torch.export.load reads without this project's code."""
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    loaded: Runner = torch.export.load(path).module()
    return loaded


WRITERS: dict[Format, Callable[[nn.Module, Tensor, Path, int | None], Runner]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torch.export": _torch_export,
}


def _compare(module: nn.Module, run_exported: Runner, record: dict[str, Any], path: Path, step: int | None) -> float:
    """Largest absolute difference of logits over BATCHES, and over other sizes; UserError: it is more than rounding."""
    worst = 0.0
    x = _images(record, 2)
    varied = [_images(record, 2, size) for size in (sizes.others(x.shape[2], x.shape[3], step) if step else ())]
    for x in [*(_images(record, batch_size) for batch_size in BATCHES), *varied]:
        difference = _difference(module, run_exported, x)
        with torch.no_grad():
            allowed = TOLERANCE * max(1.0, module(x).abs().max().item())
        if not difference <= allowed:  # a NaN is refused too
            raise UserError(
                f"{path} was not written: its logits differ from the student's by {difference:.2g} (allowed: "
                f"{allowed:.2g}); try another format"
            )
        worst = max(worst, difference)
    return worst


def _difference(module: nn.Module, run_exported: Runner, x: Tensor) -> float:
    """Largest absolute difference of logits; NaN where their shapes differ."""
    with torch.no_grad():
        expected, found = module(x), run_exported(x)
    return (expected - found).abs().max().item() if expected.shape == found.shape else float("nan")


def _images(record: dict[str, Any], count: int, size: tuple[int, int] | None = None) -> Tensor:
    """Random images as the student takes them, [count, C, H, W], of the run's size or another."""
    spec = from_record(record["preprocessing"])
    height, width = size or (spec.height, spec.width)
    return spec.normalise(torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporters keep their warnings and progress to themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
