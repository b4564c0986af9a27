"""Teaching, distilling on real data and evaluating, on miniature sets in the layouts of the real ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from torchvision import datasets

from tests.end_to_end.conftest import Ddad
from tests.miniature import Cifar

TINY = (
    "student.network=cnn4", "teacher.network=cnn8", "generator.width=4", "generator.latent_size=8", "batch_size=8",
    "rounds=4", "tracking.uri=none", "teach.epochs=2", "teach.batch_size=10", "pictures=false",
)  # fmt: skip


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which ./data holds a CIFAR-10 of 30 training and 6 test images."""
    monkeypatch.delenv("DDAD_DATA", raising=False)
    (tmp_path / "data").mkdir()
    Cifar(tmp_path / "data", datasets.CIFAR10, monkeypatch)
    return tmp_path


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_teach_then_distil_then_evaluate(cifar: Path, ddad: Ddad) -> None:
    said = ddad("teach", "cifar10-resnet34-resnet18", *TINY)
    assert said.code == 0, said.err
    teacher = "teachers/cifar10-cnn8.safetensors"
    assert f"the teacher is {teacher}" in said.out
    assert "is there already" in ddad("teach", "cifar10-resnet34-resnet18", *TINY).out

    said = ddad("distill", "cifar10-resnet34-resnet18", *TINY, "--output", "run")
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["agreement_on"] == "test" and result["data_free"] is True
    assert (result["student"]["accuracy"] * 6).is_integer(), "every test image counts once"

    words = ("--network", "cnn8", "--checkpoint", teacher, "--data", "cifar10", "--json")
    scored = json.loads(ddad("evaluate", *words).out)
    assert scored["accuracy"] == result["teacher"]["accuracy"]
    assert (
        len(scored["per_class_accuracy"]) == 10 and 0 <= scored["top5"] <= 1 and 0 <= scored["calibration_error"] <= 1
    )


def test_data_enter_a_data_free_run_for_evaluation_alone(cifar: Path, ddad: Ddad) -> None:
    """With and without the data the student is the same to the bit."""
    for name in ("cifar10", "none"):
        words = ("distill", "cifar10-resnet34-resnet18", *TINY, "teacher.checkpoint=untrained", f"data.name={name}")
        assert ddad(*words, "--output", name).code == 0
    assert digest("cifar10/student.safetensors") == digest("none/student.safetensors")
    result = json.loads(Path("none/result.json").read_text())
    assert result["teacher"]["untrained"] is True and result["student"]["accuracy"] is None


def test_distillation_on_real_data_says_so_and_resumes(cifar: Path, ddad: Ddad) -> None:
    words = ("distill", "cifar10-resnet34-resnet18", *TINY, "teacher.checkpoint=untrained", "method=kd")
    assert ddad(*words, "--output", "straight").code == 0
    result = json.loads(Path("straight/result.json").read_text())
    assert result["data_free"] is False and result["student_updates"] == 4 * 5
    early = (*words, "--output", "broken", "checkpoint.every=1")
    assert ddad(*early, "max_minutes=1e-6").code == 0
    assert not Path("broken/result.json").exists()
    assert ddad(*early).code == 0
    assert digest("straight/student.safetensors") == digest("broken/student.safetensors")


def test_teaching_resumes_to_the_same_teacher(cifar: Path, ddad: Ddad) -> None:
    words = ("teach", "cifar10-resnet34-resnet18", *TINY)
    assert ddad(*words, "teacher.checkpoint=straight.safetensors").code == 0
    broken = (*words, "teacher.checkpoint=broken.safetensors", "--output", "lesson", "checkpoint.every=1")
    assert ddad(*broken, "max_minutes=1e-6").code == 0
    assert not Path("broken.safetensors").exists()
    assert ddad(*broken).code == 0
    assert digest("straight.safetensors") == digest("broken.safetensors")


def test_a_test_split_alone_cannot_teach(cifar: Path, ddad: Ddad) -> None:
    for batch in (cifar / "data" / datasets.CIFAR10.base_folder).glob("data_batch_*"):
        batch.unlink()
    line = ddad("teach", "cifar10-resnet34-resnet18", *TINY).complaint()
    assert "data_batch_1" in line and "download=True" in line
    said = ddad("distill", "cifar10-resnet34-resnet18", *TINY, "teacher.checkpoint=untrained", "--output", "run")
    assert said.code == 0, "the test split alone must do for evaluation"
