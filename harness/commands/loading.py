"""How an exported file is loaded elsewhere: a few lines of Python for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from harness.networks.build import has_backbone

ONNX = """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
logits = session.run(["logits"], {{"images": x}})[0]  # x: a NumPy array as under "Input\""""

TORCH_EXPORT = """import torch

student = torch.export.load("{file}").module()
logits = student(x)"""

LIBRARY = """import json
from pathlib import Path

import {imported}
from safetensors.torch import load_file

about = json.loads(Path("student.json").read_text())
student = {build}
student.load_state_dict(load_file("{file}"))
logits = student.eval()(x){part}"""

DDAD = """from pathlib import Path

from harness.run.student import load_student  # of ddad; student.onnx and student.pt2 need none of it

student, about = load_student(Path("."))  # the folder of student.safetensors and student.json
logits = student(x)"""


def snippet(file: str, record: Mapping[str, Any]) -> str | None:
    """A block of Python that loads an exported file of this name; None for a file that is no network.

    `record` is the content of student.json.
    """
    suffix = PurePath(file).suffix
    if suffix == ".onnx":
        code = ONNX.format(file=file)
    elif suffix == ".pt2":
        code = TORCH_EXPORT.format(file=file)
    elif suffix == ".safetensors":
        code = _weights(file, record)
    else:
        return None
    return f"```python\n{code}\n```"


def _weights(file: str, record: Mapping[str, Any]) -> str:
    """With the library that has the network; with ddad where that is ddad itself, or only what is left of a network."""
    library, _, name = str(record["network"]).partition(":")
    classes, channels = record["classes"], len(record["preprocessing"]["mean"])
    rest = '**about["arguments"])'
    part = ""
    if library == "timm":
        build = f'timm.create_model("{name}", num_classes={classes}, in_chans={channels}, {rest}'
        imported = "timm"
    elif library == "torchvision":
        unloaded = "weights_backbone=None, " if has_backbone(name) else ""
        build = f'models.get_model("{name}", num_classes={classes}, {unloaded}{rest}'
        imported = "torchvision.models as models"
        part = '  # of a segmentation network: ["out"]'
    elif library == "smp":
        architecture, _, encoder = name.partition("/")
        arguments = '**{**about["arguments"], "encoder_weights": None})'
        build = f'smp.{architecture}("{encoder}", in_channels={channels}, classes={classes}, {arguments}'
        imported = "segmentation_models_pytorch as smp"
    else:
        return DDAD
    return LIBRARY.format(imported=imported, build=build, file=file, part=part)
