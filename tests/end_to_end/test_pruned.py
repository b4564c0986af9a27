"""Students that start from their teacher, by the real command: cut out of it, or with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmarks import methods
from harness import task
from harness.networks import build, cutting, layers
from harness.run import folder
from harness.run.student import load_student
from tests.end_to_end.conftest import DIGITS, QUIET, TEACHER, Ddad, copy_teacher, run_ddad, sha256, teacher_weights
from tests.end_to_end.test_own_teacher import NETWORK
from tests.miniature import camvid

HALF = ("student.network=pruned", "student.arguments.macs=0.5")

LINE = "the student is the teacher pruned to 0.8865 of 1.789 MMAC (49.6%), 32,456 of 56,554 parameters (57.4%)"
"""Of cnn32 at 8x8, whatever its weights are."""


def result(run: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(run, "result.json").read_text())
    return content


def digits_teacher() -> nn.Module:
    module = build.network(task.load("classification"), "cnn32", 10, 1)
    module.load_state_dict(teacher_weights())
    return module.eval()


def test_a_comparisons_score_is_the_students_accuracy(workplace: Path) -> None:
    """Whatever else result.json says of the student, such as the share of its weights that it inherited."""
    words = (*HALF, "teacher.checkpoint=untrained", "batch_size=16", "student_steps=1")
    row = methods.execute(methods.Run("digits", "ddad", 0, words), 1, 1)
    found = json.loads(next(workplace.glob("runs/methods/*/result.json")).read_text())
    assert row["score"] == found["student"]["accuracy"] < found["student"]["inherited"] == 1.0


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, taught: tuple[Path, object]) -> Path:
    """The folder in which half of the digits' teacher was distilled into `run` by a process of its own."""
    place = tmp_path_factory.mktemp("pruned")
    copy_teacher(taught[0], place)
    done = run_ddad("distill", "digits", *HALF, *QUIET, "rounds=4", "batch_size=16", "--output", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [LINE]
    for row in ("parameters 56,554 32,456", "MMAC an image 1.789 0.8865", "MB 0.2275 0.1309"):
        assert row in [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    return place


def test_the_student_is_rebuilt_to_the_bit_without_the_teacher(
    pruned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # no teacher's file
    found, record = load_student(pruned / "run")
    assert (record["network"], record["arguments"], record["pruned"]["network"]) == ("pruned", {"macs": 0.5}, "cnn32")
    plain = build.network(task.load("classification"), "cnn32", 10, 1).eval()
    cutting.cut(plain, json.loads((pruned / "run" / "student.json").read_text())["pruned"]["structure"])
    plain.load_state_dict(load_file(pruned / "run" / "student.safetensors"))
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(found(x), plain(x))
    assert layers.num_parameters(found) == 32_456


def test_result_says_what_the_networks_take(pruned: Path) -> None:
    found = result(str(pruned / "run"))
    student, teacher = found["student"], found["teacher"]
    assert (student["network"], student["inherited"]) == ("pruned", 1.0)
    assert (teacher["parameters"], teacher["macs"]) == (56_554, 32 * 9 * 64 + 64 * 32 * 9 * 64 + 64 * 64 * 9 * 16 + 640)
    assert student["macs"] == 21 * 9 * 64 + 41 * 21 * 9 * 64 + 64 * 41 * 9 * 16 + 640
    size = (pruned / "run" / "student.safetensors").stat().st_size
    assert 0 < size - student["bytes"] < 4000, "the file has a header too"
    assert min(student["milliseconds"], teacher["milliseconds"]) > 0


def test_evaluate_predict_and_export_take_it(pruned: Path, monkeypatch: pytest.MonkeyPatch, ddad: Ddad) -> None:
    monkeypatch.chdir(pruned)
    said = ddad("evaluate", "run", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["student"]["accuracy"] == result("run")["student"]["accuracy"]
    said = ddad("export", "run", "--format", "onnx", "--json")
    assert said.code == 0 and json.loads(said.out)["max_difference"] < 1e-4, said.err
    Image.new("RGB", (9, 9), (90, 20, 40)).save("image.png")
    assert ddad("predict", "run", "image.png").code == 0


def test_a_stopped_run_goes_on_to_the_bit_from_what_it_recorded(
    pruned: Path, monkeypatch: pytest.MonkeyPatch, ddad: Ddad
) -> None:
    monkeypatch.chdir(pruned)
    words = ("distill", "digits", *HALF, *QUIET, "rounds=4", "batch_size=16", "--output", "again")
    assert ddad(*words, "max_minutes=0.00001").code == 0
    assert not Path("again/result.json").exists()
    recorded = Path("again/structure.json")
    content = recorded.read_text()
    recorded.write_text(content.replace('"out": [', '"out": [0, ', 1))
    line = ddad(*words).complaint()
    assert line.startswith("again/structure.json ") and "give another --output" in line
    recorded.write_text(content)
    assert ddad(*words).code == 0
    assert sha256(Path("again/student.safetensors")) == sha256(Path("run/student.safetensors"))


def test_the_record_decides_what_is_kept(workplace: Path, ddad: Ddad) -> None:
    words = (*DIGITS, *HALF, "--output", "run")
    assert ddad(*words, "max_minutes=0.00001").code == 0
    found = folder.structure(Path("run"))
    assert found is not None and "features.0" in found["kept"]
    other = {**found, "kept": {name: found["kept"][name] for name in ("features.3", "features.4", "features.7")}}
    del other["kept"]["features.3"]["in"]
    folder.write_structure(Path("run"), other)
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    assert ddad(*words).code == 0
    assert load_student(Path("run"))[1]["pruned"]["structure"] == other
    assert load_file("run/student.safetensors")["features.0.weight"].shape[0] == 32


@pytest.mark.parametrize("words", [["method=kd"], ["method=deepinversion", "inversion.steps=2"]])
def test_other_methods_take_a_pruned_student(workplace: Path, ddad: Ddad, words: list[str]) -> None:
    said = ddad(*DIGITS, *HALF, *words, "--output", "run")
    assert said.code == 0, said.err
    assert result("run")["student"]["parameters"] == 32_456


def test_agreement_on_generated_images_can_be_measured_again(workplace: Path, ddad: Ddad) -> None:
    assert ddad(*DIGITS, *HALF, "data.name=none", f"teacher.checkpoint={TEACHER}", "--output", "run").code == 0
    said = ddad("evaluate", "run", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["agreement"] == result("run")["agreement"]


def test_a_segmentation_network_is_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ddad: Ddad) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDAD_DATA", raising=False)
    camvid(tmp_path / "data")
    said = ddad(
        "distill", "camvid-resnet18-mobilenetv2", "teacher.network=unet8", "teacher.checkpoint=untrained", *HALF,
        *QUIET, "generator.width=2", "generator.latent_size=8", "batch_size=4", "input.size=16", "data.size=null",
        "rounds=2", "--output", "run",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = result("run")
    assert found["student"]["macs"] <= 0.5 * found["teacher"]["macs"] and 0 <= found["student"]["miou"] <= 1
    module, _ = load_student(Path("run"))
    with torch.no_grad():
        assert module(torch.zeros(2, 3, 36, 48)).shape == (2, 11, 36, 48)
    said = ddad("export", "run", "--format", "onnx", "--json")
    assert said.code == 0 and json.loads(said.out)["max_difference"] < 1e-4, said.err


def test_a_network_file_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ddad: Ddad) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    said = ddad(
        "distill", "classification", "teacher.network=net.py:shapes", "teacher.arguments.width=6",
        "teacher.checkpoint=untrained", "classes=7", "input.size=16", "student.network=pruned",
        "student.arguments.channels=.5", "rounds=2", "batch_size=8", "generator.width=4", *QUIET, "--output", "run",
    )  # fmt: skip
    assert said.code == 0, said.err
    module, record = load_student(Path("run"))
    assert [layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)] == [3, 3]
    assert record["pruned"]["arguments"] == {"width": 6} and record["source"]["path"] == str(tmp_path / "net.py")
    with Path("net.py").open("a") as file:
        file.write("\n")
    assert "student's own network file, was changed" in ddad("export", "run").complaint()


def test_a_student_starts_with_its_teachers_weights(workplace: Path, ddad: Ddad) -> None:
    words = ("student.network=cnn32", "student.start=teacher", "student.lr=1e-12", "student.momentum=0")
    said = ddad(*DIGITS, *words, "tracking.uri=sqlite:///mlflow.db", "tracking.model=false", "--output", "run")
    assert said.code == 0, said.err
    assert said.err.splitlines()[0] == "100.0% of the student's weights are the teacher's"
    assert result("run")["student"]["inherited"] == 1.0
    student, teacher = load_file("run/student.safetensors"), teacher_weights()
    for name in dict(digits_teacher().named_parameters()):
        torch.testing.assert_close(student[name], teacher[name])
    client = MlflowClient("sqlite:///mlflow.db")
    run = client.get_run(json.loads(Path("run/mlflow.json").read_text())["run_id"])
    assert run.data.tags["inherited"] == "1.0000" and run.data.params["student.start"] == "teacher"


def test_a_student_starts_with_a_files_weights(workplace: Path, ddad: Ddad) -> None:
    start = digits_teacher()
    with torch.no_grad():
        start.get_submodule("features.0").weight.mul_(3)
    torch.save({"state_dict": start.state_dict()}, "start.pth")
    words = ("student.network=cnn32", "student.start=start.pth", "student.lr=1e-12", "student.momentum=0")
    assert ddad(*DIGITS, *words, "--output", "run").code == 0
    assert "inherited" not in result("run")["student"]
    torch.testing.assert_close(
        load_file("run/student.safetensors")["features.0.weight"], start.get_submodule("features.0").weight.detach()
    )
    Path("start.pth").unlink()  # the student has its own weights by now
    assert ddad("evaluate", "run").code == 0
