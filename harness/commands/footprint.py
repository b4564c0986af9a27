"""What a device will see of the networks: files, parameters, multiply-adds and time; and export's report of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from harness.commands import onnx_file, recorded
from harness.errors import UserError
from harness.methods import find
from harness.networks import layers
from harness.networks.preprocessing import from_record

BATCHES = (1, 32)
"""Images at a time when the time is taken."""

Writer = Callable[[nn.Module, Path], object]
"""Writes a network as the format that is exported."""

ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "file_bytes": ("KB of the file", lambda value: f"{value / 1e3:,.0f}"),
    "parameters": ("parameters", lambda value: f"{value:,}"),
    "macs": ("MMAC an image", lambda value: f"{value / 1e6:,.4g}"),
    "milliseconds_batch_1": ("ms an image, 1 at a time", lambda value: f"{value:,.3g}"),
    "milliseconds_batch_32": ("ms an image, 32 at a time", lambda value: f"{value:,.3g}"),
}
"""Figures of a network: the table's name of each, and how it is written."""


def of(module: nn.Module, file: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """{file_bytes, parameters, macs of one image; of an ONNX file milliseconds_batch_N}, by images of the run's size.

    Milliseconds are of one image in a batch of N, by onnxruntime on one thread.
    """
    spec = from_record(record["preprocessing"])
    x = spec.normalise(torch.zeros(max(BATCHES), 3, spec.height, spec.width))
    timed = file.suffix == ".onnx"
    return {
        "file_bytes": file.stat().st_size,
        "parameters": layers.num_parameters(module),
        "macs": layers.macs(module, x[:1]),
        **{f"milliseconds_batch_{count}": onnx_file.milliseconds(file, x[:count]) for count in BATCHES if timed},
    }


def teacher(run: Path, file: Path, write: Writer, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same of the run's teacher, and its `network`; {"missing": why} where it is not to be had; None without one.

    `write` writes it to `file` for the time of the measurement.
    """
    if not (run / "config.yaml").exists():
        return {"missing": f"{run} has no config.yaml, which names it"}
    last = recorded.read(run, {}, {})
    if not find(last.config.method, last.config.variant)[0].has_teacher:
        return None
    if last.missing:
        return {"missing": last.missing[0]}
    try:
        module = last.teacher().eval().requires_grad_(False)
        write(module, file)
        return {"network": last.config.teacher.network, **of(module, file, record)}
    except UserError as error:  # its network file is gone, or it cannot be written in this format
        return {"missing": str(error)}
    finally:
        file.unlink(missing_ok=True)


def show(found: Mapping[str, Any]) -> None:
    """Prints what `ddad export` found: candidates for int8, the table of the networks, and where the file is."""
    console = Console(markup=False)  # a path may hold [brackets]
    if chosen := found.get("int8"):
        console.print(_candidates(chosen))
    networks: Mapping[str, Mapping[str, Any]] = found["device"]
    table = Table("", *(f"{role} {row['network']}" if row.get("network") else role for role, row in networks.items()))
    for key, (name, written) in ROWS.items():
        if any(key in row for row in networks.values()):
            table.add_row(name, *(written(row[key]) if key in row else "-" for row in networks.values()))
    console.print(table)
    for role, row in networks.items():
        if "missing" in row:
            console.print(f"{role}: {row['missing']}", soft_wrap=True)
    if chosen:
        best = chosen["chosen"]
        console.print(
            f"{found['file']}: calibrated on {best['images']}, ranges {best['ranges']}, in fp32 {best['fp32']}; "
            f"agreement with the student {best['worst_agreement']:.1%} or more on every kind of image",
            soft_wrap=True,
        )
    else:
        console.print(f"{found['file']}: largest difference {found['max_difference']:.2g}", soft_wrap=True)
    if "input" in found:
        shape = " x ".join(map(str, found["input"]["shape"]))
        console.print(f"input {shape}: {found['input']['sizes']}", soft_wrap=True)


def _candidates(int8: Mapping[str, Any]) -> Table:
    """Every candidate, the chosen one marked."""
    table = Table(
        "", "images", "ranges", "in fp32", "agreement", "KL",
        title=f"int8 against fp32, worst of {len(int8['chosen']['kl'])} kinds of {int8['images']} images",
    )  # fmt: skip
    for row in int8["candidates"]:
        agreement, divergence = row["agreement"], row["kl"]
        least, most = min(agreement, key=agreement.__getitem__), max(divergence, key=divergence.__getitem__)
        mark = "*" if row == int8["chosen"] else ""
        worst = (f"{agreement[least]:.1%} {least}", f"{divergence[most]:.4f} {most}")
        table.add_row(mark, row["images"], row["ranges"], row["fp32"], *worst)
    return table
