"""An ONNX file at work in onnxruntime, on the CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError, one_line
from harness.training import cost

INPUT, OUTPUT = "images", "logits"
"""Names in an exported file."""

SECONDS = 3.0
"""After so many no more passes over a batch are timed."""


def session(path: Path, threads: int = 0) -> Any:
    """The file loaded by plain onnxruntime; `threads` 0: one for each core. UserError where it is not an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; it warns of initialisers that the quantiser leaves unused
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own types, and those of a file that is none
        raise UserError(f"{path} cannot be read as an ONNX file: {one_line(error)}") from None


def runner(loaded: Any) -> Callable[[Tensor], Tensor]:
    """x [B, C, H, W] -> logits, by a session."""
    return lambda x: torch.from_numpy(loaded.run([OUTPUT], {INPUT: x.numpy()})[0])


class Network(nn.Module):
    """An ONNX file as a network: x [B, C, H, W] -> logits, on any device, without parameters and gradients."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file has other inputs and outputs than an exported one."""
        super().__init__()
        loaded = session(path)
        for kind, found, expected in (
            ("input", loaded.get_inputs(), INPUT),
            ("output", loaded.get_outputs(), OUTPUT),
        ):
            if [value.name for value in found] != [expected] or found[0].type != "tensor(float)":
                names = ", ".join(f"{value.name} {value.type}" for value in found)
                raise UserError(
                    f"{path} has the {kind} {names}: expected {expected} tensor(float), as of `ddad export`"
                )
        self.shape: list[Any] = list(loaded.get_inputs()[0].shape)
        self._run = runner(loaded)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits."""
        return self._run(x.detach().cpu().float().contiguous()).to(x.device)


def described(path: Path) -> dict[str, Any] | None:
    """What `ddad export` wrote beside the file; None where there is nothing. UserError where it cannot be read."""
    beside = path.with_name(path.name + ".json")
    if not beside.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(beside.read_text())
        content["preprocessing"]["mean"], content["classes"]  # they have to be there
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{beside} cannot be read ({type(error).__name__}): expected what `ddad export` wrote beside {path.name}"
        ) from None
    return content


def milliseconds(path: Path, x: Tensor) -> float:
    """Milliseconds an image of x [B, C, H, W], on one thread: of the quickest pass over the whole batch.

    Time is this thread's on the processor, so that other programs do not count; on an idle machine it is the clock's.
    """
    run = runner(session(path, threads=1))
    return round(1000 * cost.quickest(lambda: run(x), time.thread_time, SECONDS) / len(x), 3)
