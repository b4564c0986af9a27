"""`ddad evaluate`: its options. What it does is in `commands/evaluate.py`, which imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.arguments import AsJson, data_fields, to_numbers, to_size
from harness.commands.session import say, show
from harness.errors import UserError


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder; or name --network and --data.")] = None,
    words: Annotated[list[str] | None, typer.Argument(help="Any number of data.FIELD=value.")] = None,
    network: Annotated[str | None, typer.Option(help="A network's name, as in teacher.network.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Its weights: a file, hub:OWNER/NAME or pretrained.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Instead of a network: an ONNX file of ddad export.")] = None,
    entry: Annotated[str | None, typer.Option(help="Which weights of that file, such as state_dict_ema.")] = None,
    data: Annotated[str | None, typer.Option(help="A data set's name.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where data sets are; default $DDAD_DATA or ./data.")] = None,
    mean: Annotated[str | None, typer.Option(help="Normalisation, a number per channel: .485,.456,.406")] = None,
    std: Annotated[str | None, typer.Option(help="Normalisation, likewise.")] = None,
    channels: Annotated[str | None, typer.Option(help="rgb, bgr or gray.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Side of an image in pixels, or height,width; default as data.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes; default the data set's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run's teacher and student again, or any network or ONNX file on a data set."""
    from harness.commands import evaluate as command

    if run is not None and (network is not None or onnx is not None) and "=" in str(run):
        run, words = None, [str(run), *(words or [])]
    if sum(given is not None for given in (run, network, onnx)) != 1:
        raise UserError("name either a run folder, or --network, --checkpoint and --data, or --onnx and --data")
    over = data_fields(words or [])
    if run is not None:
        options = {"checkpoint": checkpoint, "entry": entry, "mean": mean, "std": std, "channels": channels,
                   "size": size, "classes": classes}  # fmt: skip
        if idle := [f"--{name}" for name, value in options.items() if value is not None]:
            raise UserError(f"{idle[0]} goes with --network: a run has its own; data.size=N sets the test images' size")
        found = command.of_run(run, say, {"data.name": data, "data.root": root and str(root)}, over)
    else:
        if data is None or (checkpoint is None) == (onnx is None):
            raise UserError("--network goes with --checkpoint and --data, --onnx with --data")
        if onnx is not None and entry is not None:
            raise UserError("--entry goes with --network and --checkpoint: an ONNX file holds one network")
        given: dict[str, object] = {
            "data.root": root and str(root),
            "teacher.channels": channels,
            "teacher.mean": to_numbers("--mean", mean),
            "teacher.std": to_numbers("--std", std),
            "classes": classes,
            "input.size": to_size(size),
            "data.size": to_size(size),
            "teacher.entry": entry,
        }
        if onnx is not None:
            found = command.of_onnx(onnx, data, given, over, say)
        else:
            assert checkpoint is not None
            found = command.of_network(str(network), checkpoint, data, given, over, say)
    show(found, as_json, command.table)
