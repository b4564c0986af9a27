"""A student's ONNX file in int8: onnxruntime's static quantiser, calibrated and chosen without data.

Candidates are images to calibrate on x ranges of activations taken from them; with the best of these, the first and the
last layer stay in fp32 or not. They are compared with the fp32 file on images held apart, by kind, by

    worst_kl = max over kinds of  mean over images (and positions) of  KL(softmax(fp32) || softmax(int8))

because a set that suits one kind of image may clip what others give; the agreement of classes is too coarse on few
images to rank by.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.commands import calibration, onnx_file
from harness.errors import UserError, one_line

IMAGES, PIXELS, BATCH = 256, 2**21, 16
"""Images of each set and kind; fewer where they would have more pixels in all, but two batches at least."""

PERCENTILES = {"min..max": 100.0, "99.999%": 99.999, "99.99%": 99.99}
"""Share of the activations that is inside the range, by the name in the table."""

ENTROPY = "entropy"
"""The range whose histogram in 128 steps is nearest to that in BINS bins, by KL."""

BINS = 256

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights."""

NONE = "none"
"""The name in the table where no layer stays in fp32."""


@dataclass(frozen=True)
class Candidate:
    """One way to quantise, and how near it is to the fp32 file."""

    images: str
    """The kind of images that it was calibrated on."""
    ranges: str
    fp32: str
    """Layers that stay in fp32."""
    agreement: dict[str, float]
    """Share of images or positions with the same class, by kind of image held apart."""
    kl: dict[str, float]
    """Mean KL divergence in nats, likewise."""

    @property
    def worst_agreement(self) -> float:
        """The least over the kinds."""
        return min(self.agreement.values())

    @property
    def worst_kl(self) -> float:
        """The largest over the kinds; infinite where one is not finite."""
        return max(value if math.isfinite(value) else math.inf for value in self.kl.values())


@dataclass(frozen=True)
class Choice:
    """What was tried and what was taken."""

    chosen: Candidate
    candidates: list[Candidate]
    images: int
    """Images of each set and kind."""

    def record(self) -> dict[str, Any]:
        """As plain data."""
        worst = ("worst_agreement", "worst_kl")
        tried = [asdict(each) | {name: getattr(each, name) for name in worst} for each in self.candidates]
        return {"chosen": tried[self.candidates.index(self.chosen)], "images": self.images, "candidates": tried}


def quantise(plain: Path, output: Path, kinds: Mapping[str, calibration.Kind], shape: Sequence[int]) -> Choice:
    """Writes the int8 file of an fp32 ONNX file to `output`: QDQ, weights by channel in 7 bits, activations in 8.

    `kinds`: of images [n, *shape]. The same arguments give the same bytes. Raises UserError where the quantiser refuses
    the network or finds nothing in it to quantise.
    """
    count = BATCH * max(2, min(IMAGES, PIXELS // (shape[-2] * shape[-1])) // BATCH)
    sets = {name: kind("calibration", count) for name, kind in kinds.items()}
    sets["mixture"] = calibration.mixture(dict(kinds), "calibration", count)
    held = {name: kind("held", count) for name, kind in kinds.items()}
    try:
        with _silent(), tempfile.TemporaryDirectory() as scratch:
            choice, file = _choose(plain, Path(scratch), sets, held)
            shutil.copyfile(file, output)
            return choice
    except (OSError, UserError):
        raise
    except Exception as error:  # whatever the quantiser raises over a network that it cannot follow
        reason = one_line(error) or type(error).__name__
        raise UserError(f"the student cannot be quantised to int8 ({reason}): export it without --int8") from error


def _choose(plain: Path, scratch: Path, sets: dict[str, Tensor], held: dict[str, Tensor]) -> tuple[Choice, Path]:
    """Tries the candidates; the choice, and the file of the chosen one."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = scratch / "prepared.onnx"
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # folds batch norms that are left; infers shapes
    layers = [node.name for node in onnx.load(prepared).graph.node if node.op_type in LAYERS]
    if not layers:
        raise UserError(f"the student has none of the layers that int8 is for ({', '.join(LAYERS)})")
    expected = _answers(plain, held)

    def attempt(images: str, ranges: str, fp32: str = NONE, excluded: Sequence[str] = ()) -> Candidate:
        _write(prepared, scratch / f"{images} {ranges}.json", scratch / "tried.onnx", excluded)
        return Candidate(images, ranges, fp32, *_compare(expected, _answers(scratch / "tried.onnx", held)))

    tried = [attempt(name, ranges) for name, x in sets.items() for ranges in _calibrate(prepared, scratch, name, x)]
    best = min(tried, key=lambda each: each.worst_kl)
    kept = {"first": layers[:1], "last": layers[-1:], "first+last": [layers[0], layers[-1]]} if len(layers) > 2 else {}
    tried += [attempt(best.images, best.ranges, name, names) for name, names in kept.items()]
    chosen = min(tried, key=lambda each: each.worst_kl)
    if chosen.worst_kl == math.inf:
        raise UserError("the student's answers are not finite in int8: export it without --int8")
    file = scratch / "chosen.onnx"
    _write(prepared, scratch / f"{chosen.images} {chosen.ranges}.json", file, kept.get(chosen.fp32, ()))
    return Choice(chosen, tried, len(next(iter(sets.values())))), file


class _Once:
    """One batch, as a calibrator asks for it."""

    def __init__(self, x: Tensor) -> None:
        self._left = [{onnx_file.INPUT: x.numpy()}]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def _calibrate(prepared: Path, scratch: Path, images: str, x: Tensor) -> list[str]:
    """Writes `<images> <ranges>.json` with the range of every activation on images x; the names of the ranges."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data

    written = []
    for method, options in (
        (CalibrationMethod.Percentile, {"symmetric": False}),
        (CalibrationMethod.Entropy, {"num_bins": BINS}),
    ):
        calibrator = create_calibrator(prepared, None, str(scratch / "augmented.onnx"), method, extra_options=options)
        for batch in x.split(BATCH):  # a pass keeps the activations of all that it is given
            calibrator.collect_data(_Once(batch))
        for name, percentile in PERCENTILES.items() if method is CalibrationMethod.Percentile else ((ENTROPY, None),):
            calibrator.collector.percentile = percentile  # of the same histograms
            save_tensors_data(calibrator.compute_data(), scratch / f"{images} {name}.json")
            written.append(name)
    return written


def _write(prepared: Path, ranges: Path, output: Path, excluded: Sequence[str]) -> None:
    """The int8 file with these ranges; the nodes `excluded` stay in fp32.

    Weights have 7 bits: x86 processors without VNNI add two products in 16 bits, which 8 bits overflow without a word.
    """
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.calibrate import load_tensors_data

    quantize_static(
        prepared, output, per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(excluded), calibrate_method=load_tensors_data(ranges).calibration_method,
        calibration_cache_path=ranges,
    )  # fmt: skip


def _answers(path: Path, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits of a file by kind of image."""
    run = onnx_file.runner(onnx_file.session(path))
    return {name: torch.cat([run(batch) for batch in x.split(BATCH)]) for name, x in held.items()}


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Agreement and KL divergence by kind, over images and positions."""
    agreement, divergence = {}, {}
    for name, wanted in expected.items():
        p, q = F.log_softmax(wanted.double(), 1), F.log_softmax(found[name].double(), 1)
        agreement[name] = (wanted.argmax(1) == found[name].argmax(1)).double().mean().item()
        divergence[name] = (p.exp() * (p - q)).sum(1).mean().item()
    return agreement, divergence


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, onnxruntime's quantiser keeps its progress and its advice to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
