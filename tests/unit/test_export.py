"""The student leaves its run folder with the same answers, in every format, or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harness import files, task
from harness.commands import export
from harness.errors import UserError
from harness.networks import build, own_file
from harness.networks.preprocessing import Preprocessing, from_record
from harness.run.student import load_student, write_student

GRAY = Preprocessing(8, 8, "gray", (0.3,), (0.4,))


def write_run(folder: Path, module: nn.Module, network: str, **fields: Any) -> Path:
    """A finished run's student."""
    folder.mkdir(exist_ok=True)
    source = own_file.source_file(network)
    record = {
        "task": "classification",
        "network": network,
        "arguments": {},
        "classes": 10,
        "class_names": [f"digit {index}" for index in range(10)],
        "preprocessing": dataclasses.asdict(GRAY),
        "source": files.file_record(source) if source else None,
    }
    write_student(folder, module, record | fields)
    return folder


def a_student(network: str = "cnn12", channels: int = 1) -> nn.Module:
    """With running statistics that matter."""
    torch.manual_seed(0)
    module = build.network(task.load("classification"), network, 10, channels, {})
    module(torch.randn(32, channels, 8, 8))
    return module.eval()


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return a_student()


@pytest.fixture
def run(tmp_path: Path, student: nn.Module) -> Path:
    return write_run(tmp_path / "run", student, "cnn12")


def test_written_student_loads_back_bit_for_bit(run: Path, student: nn.Module) -> None:
    module, record = load_student(run)
    x = torch.randn(4, 1, 8, 8)
    assert not module.training
    assert torch.equal(module(x), student(x))
    assert record["schema"] == 1 and record["sha256"] == files.sha256(run / "student.safetensors")
    assert from_record(record["preprocessing"]) == GRAY
    first = (run / "student.safetensors").read_bytes()
    assert (write_run(run, module, "cnn12") / "student.safetensors").read_bytes() == first
    assert sorted(entry.name for entry in run.iterdir()) == ["student.json", "student.safetensors"]


def test_tied_and_strided_weights_are_written(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module[0].bias.data = torch.arange(6.0)[::2]
    write_run(tmp_path, module, "cnn12")
    weights = load_file(tmp_path / "student.safetensors")
    assert torch.equal(weights["1.weight"], weights["0.weight"])
    assert weights["0.bias"].tolist() == [0, 2, 4]


def test_load_student_says_what_is_wrong_with_a_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        load_student(tmp_path / "absent")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="is unfinished, it has no student yet"):
        load_student(tmp_path)
    described = (run / "student.json").read_text()
    (run / "student.json").write_text(described.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(UserError, match="has schema 2, this version reads 1"):
        load_student(run)
    (run / "student.json").write_text(described[:40])
    with pytest.raises(UserError, match=r"student\.json cannot be read"):
        load_student(run)
    (run / "student.json").write_text(described.replace('"source"', '"origin"'))
    with pytest.raises(UserError, match=r"student\.json lacks source"):
        load_student(run)
    (run / "student.json").write_text(described)
    with (run / "student.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="it was changed or is damaged"):
        load_student(run)


def test_load_student_needs_the_users_own_network_file_unchanged(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("import torch\ndef small(classes, channels):\n    return torch.nn.Flatten()\n")
    run = write_run(tmp_path / "run", nn.Linear(1, 1), f"{source}:small")
    source.write_text(source.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"mine\.py, the student's own network file, was changed"):
        load_student(run)
    source.unlink()
    with pytest.raises(UserError, match=r"mine\.py, the student's own network file, is gone"):
        load_student(run)


def read_back(file: str, kind: str) -> Any:
    """The exported file as somebody without this project would use it: x [B, C, H, W] -> logits."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {"images": np.asarray(x)})[0])
    if kind == "torch.export":
        return torch.export.load(file).module()
    module = build.network(task.load("classification"), "cnn12", 10, 1, {})
    module.load_state_dict(load_file(file))
    return module.eval()


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "torch.export"])
def test_exported_file_answers_as_the_student_for_any_batch(
    run: Path, student: nn.Module, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = export.export(run, kind)
    assert capfd.readouterr() == ("", "")
    file = Path(found["file"])
    assert file.parent == run / "export" and found["format"] == kind
    assert (found["classes"], found["class_names"][3]) == (10, "digit 3")
    assert 0 <= found["max_difference"] < 1e-4
    assert kind == "onnx" or found["max_difference"] < 1e-6  # not 0: where a tensor lies in memory changes a sum
    assert from_record(found["preprocessing"]) == GRAY
    assert json.loads(file.with_name(file.name + ".json").read_text()) == json.loads(json.dumps(found))
    assert sorted(entry.name for entry in file.parent.iterdir()) == [file.name, file.name + ".json"]
    answer = read_back(str(file), kind)
    for batch_size in (1, 5):
        x = torch.randn(batch_size, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(answer(x), student(x), rtol=1e-4, atol=1e-5)


def test_onnx_of_a_colour_network_at_another_place(tmp_path: Path) -> None:
    module = a_student("resnet20", 3)
    colour = Preprocessing(16, 12, "bgr", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    run = write_run(tmp_path / "run", module, "resnet20", preprocessing=dataclasses.asdict(colour), class_names=None)
    found = export.export(run, "onnx", tmp_path / "elsewhere" / "net.onnx")
    assert found["file"] == str(tmp_path / "elsewhere" / "net.onnx")
    assert json.loads((tmp_path / "elsewhere" / "net.onnx.json").read_text())["preprocessing"]["channels"] == "bgr"
    x = torch.randn(2, 3, 16, 12)
    with torch.no_grad():
        torch.testing.assert_close(read_back(found["file"], "onnx")(x), module(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "output", "message"),
    [
        ("onxn", None, r"format 'onxn': no such format; did you mean 'onnx'\?"),
        ("onnx", "net.pt2", r"net\.pt2: expected a name that ends in \.onnx for onnx"),
        ("safetensors", "run/student.safetensors", "is the run's own student"),
    ],
)
def test_export_refuses(run: Path, kind: str, output: str | None, message: str) -> None:
    before = (run / "student.safetensors").read_bytes()
    with pytest.raises(UserError, match=message):
        export.export(run, kind, run.parent / output if output else None)
    assert (run / "student.safetensors").read_bytes() == before
    assert not (run / "export").exists()


SOURCE = """
import torch

class Wavering(torch.nn.Linear):  # another answer while it is exported, as an exporter's mistake would be
    def forward(self, x):
        return super().forward(x.flatten(1)) + float(torch.compiler.is_exporting())

class Unfollowable(torch.nn.Linear):  # control flow that depends on values
    def forward(self, x):
        return super().forward(x.flatten(1) if x.sum() > 0 else -x.flatten(1))
"""


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("Wavering", "torch.export", "its logits differ from the student's by 1 "),
        ("Wavering", "onnx", "its logits differ from the student's by 1 "),
        ("Unfollowable", "torch.export", "cannot be written as torch.export"),
    ],
)
def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path, name: str, kind: str, message: str) -> None:
    source = tmp_path / "mine.py"
    source.write_text(SOURCE)
    network, arguments = f"{source}:{name}", {"in_features": 64, "out_features": 10}
    module = build.network(task.load("classification"), network, 10, 1, arguments)
    run = write_run(tmp_path / "run", module, network, arguments=arguments)
    with pytest.raises(UserError, match=message) as caught:
        export.export(run, kind)
    assert "\n" not in str(caught.value)
    assert not [entry for entry in (run / "export").rglob("*") if entry.is_file()]
