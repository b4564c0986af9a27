"""What a run leaves for a device: int8 calibrated on the run's own images, free sizes, and what each network takes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from harness import task
from harness.commands import calibration, export, quantise
from harness.config.parse import nest
from harness.networks import build
from harness.resolve import resolve
from harness.run.student import load_student
from harness.training.distill import distill
from tests.end_to_end.conftest import Ddad, contents
from tests.helpers import without_curves

SMALL = {
    "classes": 10, "input.size": 8, "teacher.network": "cnn8", "student.network": "cnn4", "rounds": 4,
    "batch_size": 16, "generator.width": 4, "generator.latent_size": 8, "tracking.uri": "none", "pictures": False,
    "checkpoint.every": 2, "teacher.checkpoint": "untrained", "teacher.channels": "gray",
}  # fmt: skip


def run_of(folder: Path, recipe: str = "classification", **fields: Any) -> Path:
    """A finished run; `fields` with __ for a dot."""
    given = SMALL | {name.replace("__", "."): value for name, value in fields.items()}
    with without_curves():
        distill(resolve(recipe, overrides=nest(given)), folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Exported:
    run: Path
    before: dict[str, str]
    """Files of the run and their hashes before it was exported."""
    int8: dict[str, Any]
    plain: dict[str, Any]
    """Exported after the teacher's file was gone."""
    accuracy: float


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run on the digits, with generators and a pool."""
    place = tmp_path_factory.mktemp("exported")
    teacher = place / "teacher.pth"
    torch.save(build.network(task.load("classification"), "cnn8", 10, 1).state_dict(), teacher)
    run = run_of(
        place / "run", teacher__checkpoint=str(teacher), data__name="digits", replay__share=0.5, replay__memory=1.0
    )
    before = contents(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "IMAGES", 32)
        int8 = export.export(run, "onnx", int8=True)
    teacher.unlink()
    accuracy = json.loads((run / "result.json").read_text())["student"]["accuracy"]
    return Exported(run, before, int8, export.export(run, "onnx"), accuracy)


def test_int8_is_calibrated_on_the_runs_own_images(exported: Exported) -> None:
    found = exported.int8
    assert found["file"] == str(exported.run / "export/student.int8.onnx")
    assert json.loads(Path(found["file"] + ".json").read_text()) == json.loads(json.dumps(found))
    kinds = {"generator", "pool", "views", "contrast", "noise"}
    assert set(found["int8"]["chosen"]["kl"]) == kinds
    assert {row["images"] for row in found["int8"]["candidates"]} == kinds | {"mixture"}
    after = {path: digest for path, digest in contents(exported.run).items() if not path.startswith("export")}
    assert after == exported.before

    module, _ = load_student(exported.run)
    assert found["max_difference"] > 1e-3, "that of the file in 8 bits"
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(found["file"]).run(["logits"], {"images": x})
    with torch.no_grad():
        expected = module(torch.from_numpy(x))
    assert logits.shape == (5, 10) and np.abs(logits - expected.numpy()).max() < 0.2 * expected.abs().max()


def test_what_the_networks_take(exported: Exported) -> None:
    device = exported.int8["device"]
    assert list(device) == ["teacher", "student", "student int8"] and device["teacher"]["network"] == "cnn8"
    assert device["student int8"]["file_bytes"] == Path(exported.int8["file"]).stat().st_size
    result = json.loads((exported.run / "result.json").read_text())
    for role, row in device.items():
        assert row["milliseconds_batch_1"] > 0 and row["milliseconds_batch_32"] > 0
        assert all(row[key] == result[role.split()[0]][key] for key in ("parameters", "macs"))
    assert exported.plain["device"]["teacher"] == {
        "missing": f"teacher.checkpoint {exported.run.parent / 'teacher.pth'} is not there any more"
    }
    assert exported.plain["device"]["student"]["file_bytes"] == Path(exported.plain["file"]).stat().st_size


def test_evaluate_scores_an_exported_file(exported: Exported, ddad: Ddad) -> None:
    scored = ("evaluate", "--data", "digits", "--json", "--onnx")
    assert json.loads(ddad(*scored, exported.plain["file"]).out)["accuracy"] == exported.accuracy
    found = json.loads(ddad(*scored, exported.int8["file"]).out)
    assert found["accuracy"] == pytest.approx(exported.accuracy, abs=0.05) and found["data"] == "digits"


def test_evaluate_refuses_what_is_no_exported_file(exported: Exported, tmp_path: Path, ddad: Ddad) -> None:
    file, beside = tmp_path / "student.onnx", tmp_path / "student.onnx.json"
    shutil.copy(exported.plain["file"], file)
    scored = ("evaluate", "--onnx", file, "--data", "digits")
    said = ddad(*scored, "--mean", "0", "--std", "1", "--json")
    assert json.loads(said.out)["accuracy"] == exported.accuracy
    missing, doubt = said.err.splitlines()
    assert (
        missing == "no student.onnx.json beside the file: normalisation and size are those of digits, or as options say"
    )
    assert doubt.startswith(f"{file} names one class for all test images")  # a student of few updates
    assert "--onnx with --data" in ddad(*scored[:3]).complaint()
    assert "--entry goes with --network" in ddad(*scored, "--entry", "model").complaint()
    shutil.copy(exported.plain["file"] + ".json", beside)
    colour = ("--channels", "rgb", "--mean", "0,0,0", "--std", "1,1,1")
    assert "cannot take images [2, 3, 8, 8]" in ddad(*scored, *colour).complaint()
    beside.write_text("{")
    assert "student.onnx.json cannot be read" in ddad(*scored).complaint()
    file.write_bytes(b"no network")
    assert "student.onnx cannot be read as an ONNX file" in ddad(*scored).complaint()


def test_images_held_apart_are_other_ones(exported: Exported) -> None:
    said: list[str] = []
    for name, kind in calibration.kinds(exported.run, said.append).items():
        calibrating, held = kind("calibration", 48), kind("held", 48)
        assert calibrating.shape == held.shape == (48, 1, 8, 8), name
        assert torch.equal(calibrating, kind("calibration", 48)), name
        assert not (calibrating[:, None] == held[None]).flatten(2).all(2).any(), name
        assert held.isfinite().all() and held.std() > 0.1, name
    assert not said


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("pool", {"method": "deepinversion", "inversion__steps": 2}),
        ("real", {"method": "kd", "data__name": "digits"}),
    ],
)
def test_without_a_generator_a_run_gives_what_it_has(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    run = run_of(tmp_path / "run", **fields)
    said: list[str] = []
    kinds = calibration.kinds(run, said.append)
    assert said == [f"{run} has no generator: int8 is calibrated on its {kind} images, and on noise"]
    assert list(kinds) == [kind, "views", "contrast", "noise"]
    calibrating, held = kinds[kind]("calibration", 16), kinds[kind]("held", 16)
    assert torch.equal(calibrating, kinds[kind]("calibration", 16)) and held.isfinite().all()
    assert not (calibrating[:, None] == held[None]).flatten(2).all(2).any()


def test_int8_is_refused_in_a_line(tmp_path: Path, ddad: Ddad) -> None:
    run_of(tmp_path / "run")
    assert ddad("export", "run", "--int8").complaint() == "--int8 goes with --format onnx, not with safetensors"
    int8 = ("export", "run", "--format", "onnx", "--int8")
    shutil.rmtree("run/checkpoints")
    assert "run/checkpoints holds neither generator nor images" in ddad(*int8).complaint()
    for name in ("config.yaml", "result.json"):
        Path("run", name).unlink()
    assert "run holds a student and no run: --int8 needs its checkpoints" in ddad(*int8).complaint()
    assert not Path("run/export").exists()
    said = ddad("export", "run")
    assert said.code == 0 and "teacher: run has no config.yaml" in said.out and "largest difference " in said.out
    for line in ("KB of the file", "MMAC an image", "parameters"):
        assert line in said.out


NETWORKS = """
from torch import nn
from torch.nn import functional as F


class Halving(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, classes, 1)

    def forward(self, x):
        y = F.relu(self.first(x))
        return self.last(y + F.interpolate(F.avg_pool2d(y, 4), scale_factor=4.0))


def fixed(classes, channels):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(channels * 16 * 16, 8), nn.Linear(8, classes * 16 * 16))
    return nn.Sequential(flat, nn.Unflatten(1, (classes, 16, 16)))
"""

MAPS = {
    "teacher__network": "net.py:Halving",
    "teacher__channels": "rgb",
    "input__size": 16,
    "classes": 3,
    "weights__batch_norm": 0.0,
}


def test_a_segmentation_network_has_free_height_and_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ddad: Ddad
) -> None:
    monkeypatch.setattr(quantise, "IMAGES", 32)
    Path("net.py").write_text(NETWORKS)
    run_of(tmp_path / "run", "segmentation", **MAPS, student__network="net.py:Halving")
    module, _ = load_student(Path("run"))
    for words, allowed in (((), 1e-4), (("--int8",), 0.2)):
        said = ddad("export", "run", "--format", "onnx", *words, "--json")
        assert said.code == 0, said
        found = json.loads(said.out)
        assert found["input"]["shape"] == ["batch", 3, "height", "width"] and found["input"]["divisible_by"] == 4
        session = onnxruntime.InferenceSession(found["file"])
        for size in ((1, 3, 20, 32), (3, 3, 8, 4)):
            x = torch.randn(size, generator=torch.Generator().manual_seed(0))
            (logits,) = session.run(["logits"], {"images": x.numpy()})
            with torch.no_grad():
                expected = module(x)
            assert logits.shape == expected.shape
            assert np.abs(logits - expected.numpy()).max() < allowed * max(1, expected.abs().max())


def test_a_network_of_one_size_keeps_it(tmp_path: Path, ddad: Ddad) -> None:
    Path("net.py").write_text(NETWORKS)
    run_of(tmp_path / "run", "segmentation", **MAPS, student__network="net.py:fixed")
    said = ddad("export", "run", "--format", "onnx")
    assert said.code == 0 and "images of 16 x 16 alone" in said.out, said
    found = json.loads(Path("run/export/student.onnx.json").read_text())
    assert found["input"]["shape"] == ["batch", 3, 16, 16] and found["input"]["divisible_by"] is None
