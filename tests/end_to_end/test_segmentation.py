"""Segmentation by the real command: without data, and on a miniature CamVid taught, distilled, scored and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.conftest import Ddad
from tests.miniature import camvid

TINY = (
    "student.network=unet4", "teacher.network=unet8", "generator.width=2", "generator.latent_size=8", "batch_size=4",
    "input.size=16", "data.size=null", "rounds=2", "tracking.uri=none", "teach.epochs=40", "teach.batch_size=6",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which ./data holds a CamVid of 6 training and 3 test images, 36x48."""
    monkeypatch.delenv("DDAD_DATA", raising=False)
    camvid(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("name", ["camvid-smoke", "nyuv2-smoke"])
@pytest.mark.parametrize("method", ["ddad", "dfad"])
def test_smoke_recipes_need_no_data(monkeypatch: pytest.MonkeyPatch, ddad: Ddad, name: str, method: str) -> None:
    monkeypatch.setattr("harness.training.evaluate.NUM_GENERATED", 16)
    said = ddad("distill", name, f"method={method}", "tracking.uri=none", "--output", "run")
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["teacher"]["untrained"] is True and result["data_free"] is True
    assert result["student"]["miou"] is None and result["student"]["pixel_accuracy"] is None
    assert 0 <= result["agreement"] <= 1 and result["agreement_on"] == "generated"
    with Image.open("run/samples/round-00000004.png") as page:
        assert page.width > 3 * 160
    assert not Path("run/samples/test.png").exists()


def test_teach_then_distil_then_evaluate(place: Path, ddad: Ddad) -> None:
    said = ddad("teach", "camvid-resnet18-mobilenetv2", *TINY, "pictures=false")
    assert said.code == 0, said.err
    said = ddad("distill", "camvid-resnet18-mobilenetv2", *TINY, "--output", "run")
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["data_free"] is True and result["agreement_on"] == "test"
    for role in ("teacher", "student"):
        assert 0 <= result[role]["miou"] <= 1 and 0 <= result[role]["pixel_accuracy"] <= 1
        assert result[role]["sizes"] == [{"image": [36, 48], "network": [36, 48], "labels": [36, 48]}]
    assert result["teacher"]["pixel_accuracy"] > 0.3, "classes are brightnesses: 1 in 11 by chance"
    with Image.open("run/samples/test.png") as page:
        assert page.width > 4 * 160
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    found = {key: value for row in rows for key, value in row.items() if key.startswith("evaluation/")}
    assert found["evaluation/student_miou"] == result["student"]["miou"]
    assert found["evaluation/student_pixel_accuracy"] == result["student"]["pixel_accuracy"]

    checkpoint = "teachers/camvid-unet8.safetensors"
    words = ("evaluate", "--network", "unet8", "--checkpoint", checkpoint, "--data", "camvid", "--json")
    mean = ("--mean", ".5,.5,.5", "--std", ".5,.5,.5")
    scored = json.loads(ddad(*words, *mean).out)
    assert scored["miou"] == result["teacher"]["miou"] and len(scored["per_class_iou"]) == 11
    larger = json.loads(ddad(*words, "--size", "72,96").out)
    assert larger["sizes"] == [{"image": [72, 96], "network": [72, 96], "labels": [36, 48]}]
    assert "expected a side" in ddad(*words, "--size", "1,2,3").complaint()


def test_distillation_on_real_data(place: Path, ddad: Ddad) -> None:
    words = (*TINY, "teacher.checkpoint=untrained", "method=kd", "--output", "run")
    said = ddad("distill", "camvid-resnet18-mobilenetv2", *words)
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["data_free"] is False and result["agreement_on"] == "test"
    assert Path("run/samples/test.png").exists()


def test_classes_in_another_order_and_images_of_another_size(place: Path, ddad: Ddad) -> None:
    """By a network that takes 16x16 alone; classes.txt names the classes of both the run and the data."""
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef net(classes, channels):\n"
        "    return nn.Sequential(nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(channels * 256, classes * 256),\n"
        "                         nn.Unflatten(1, (classes, 16, 16)))\n"
    )
    for folder in ("images", "labels"):
        Path(folder).mkdir()
        for index in range(3):
            Image.new("RGB" if folder == "images" else "L", (20, 24), index).save(f"{folder}/{index}.png")
    Path("classes.txt").write_text("road\nhouse\ntree\n")
    networks = ("teacher.network=net.py:net", "teacher.checkpoint=untrained", "student.network=net.py:net", "classes=3")
    data = ("data.name=folders", "data.root=.", "input.size=16", "batch_size=2", "rounds=1", "tracking.uri=none")
    said = ddad("distill", "segmentation", *networks, *data, "generator.width=2", "--output", "run")
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["student"]["sizes"] == [{"image": [24, 20], "network": [16, 16], "labels": [24, 20]}]
    assert result["test_images"] == 3
    Path("classes.txt").write_text("house\ntree\nroad\n")
    line = ddad("evaluate", "run").complaint()
    assert line.startswith(
        "class 0 of the student is 'road', and of the data 'house': the same classes in another order"
    )


def test_labels_of_another_size_are_refused_before_the_first_round(place: Path, ddad: Ddad) -> None:
    for folder, size in (("images", (16, 16)), ("labels", (8, 16))):
        Path(folder).mkdir()
        Image.new("RGB" if folder == "images" else "L", size).save(f"{folder}/a.png")
    words = ("teacher.network=unet8", "teacher.checkpoint=untrained", "student.network=unet4", "classes=3")
    data = ("data.name=folders", "data.root=.", "input.size=16", "batch_size=2", "rounds=1", "tracking.uri=none")
    line = ddad("distill", "segmentation", *words, *data, "--output", "run").complaint()
    assert line == "labels/a.png is 8x16 pixels, its image a.png 16x16: no pair" and not Path("run").exists()
