"""The student by itself: in its run folder, and as safetensors, ONNX or torch.export for use elsewhere."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import files
from harness.errors import UserError, nearest
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


def export(run: Path, format: str, output: Path | None = None) -> dict[str, Any]:  # noqa: A002 - the command's own word
    """Writes the student as `format` to `output` (default `<run>/export/student.*`), and beside it `<file>.json`.

    The file takes float32 images [B, C, H, W], any B, normalised as `preprocessing` says, and gives logits. Before it
    is put in place it is run beside the PyTorch student on random images. Returns {file, format, max_difference,
    preprocessing, classes, class_names}. Raises UserError where there is no such format, no student, or no parity.
    """
    if format not in ENDINGS:
        raise UserError(f"format {format!r}: no such format{nearest(format, ENDINGS)}")
    kind: Format = next(known for known in get_args(Format) if known == format)
    module, record = load_student(run)
    module.requires_grad_(False)
    path = output or run / "export" / f"student{ENDINGS[kind]}"
    if path.suffix != ENDINGS[kind]:
        raise UserError(f"{path}: expected a name that ends in {ENDINGS[kind]} for {format}")
    if path.resolve() == (run / WEIGHTS).resolve():
        raise UserError(f"{path} is the run's own student: give another file")
    example = _images(record, 2)
    with files.atomic(path) as temporary:
        try:
            with _quiet():
                run_exported = WRITERS[kind](module, example, temporary)
        except OSError:
            raise
        except Exception as error:  # whatever an exporter raises over a network that it cannot follow
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"the student cannot be written as {format} ({reason}); try another format") from error
        difference = _compare(module, run_exported, record, path)
    kept = {key: record[key] for key in ("task", "network", "classes", "class_names", "preprocessing")}
    described = {"file": str(path), "format": format, "max_difference": difference, **kept}
    files.write(path.with_name(path.name + ".json"), json.dumps(described, indent=1) + "\n")
    return described


def _safetensors(module: nn.Module, example: Tensor, path: Path) -> Runner:
    """The weights by name; read back into the same network."""
    save_weights(module, path)
    weights = load_file(path)
    return lambda x: torch.func.functional_call(module, weights, x)


def _onnx(module: nn.Module, example: Tensor, path: Path) -> Runner:
    """One ONNX file, input `images`, output `logits`; run by onnxruntime on the CPU."""
    import onnxruntime

    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        module, (example,), path, input_names=["images"], output_names=["logits"], dynamic_shapes=(batch,),
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def _torch_export(module: nn.Module, example: Tensor, path: Path) -> Runner:
    """A program that torch.export.load reads without this project's code."""
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    loaded: Runner = torch.export.load(path).module()
    return loaded


WRITERS: dict[Format, Callable[[nn.Module, Tensor, Path], Runner]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torch.export": _torch_export,
}


def _compare(module: nn.Module, run_exported: Runner, record: dict[str, Any], path: Path) -> float:
    """Largest absolute difference of logits over BATCHES; UserError where it is more than rounding."""
    worst = 0.0
    for batch_size in BATCHES:
        x = _images(record, batch_size)
        with torch.no_grad():
            expected, found = module(x), run_exported(x)
        difference = (expected - found).abs().max().item()
        allowed = TOLERANCE * max(1.0, expected.abs().max().item())
        if not difference <= allowed:  # a NaN is refused too
            raise UserError(
                f"{path} was not written: its logits differ from the student's by {difference:.2g} (allowed: "
                f"{allowed:.2g}); try another format"
            )
        worst = max(worst, difference)
    return worst


def _images(record: dict[str, Any], count: int) -> Tensor:
    """Random images as the student takes them, [count, C, H, W]."""
    spec = from_record(record["preprocessing"])
    pixels = torch.rand(count, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(count))
    return spec.normalise(pixels)


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
