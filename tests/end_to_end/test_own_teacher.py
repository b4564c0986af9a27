"""The core use, from beginning to end: a stranger's checkpoint and network file, no data at all, a student to use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harness import task
from harness.networks import build
from tests.end_to_end.conftest import Ddad

NETWORK = """
from torch import nn


def shapes(classes, channels, width=8):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )
"""

RUN = (
    "distill", "classification", "teacher.network=net.py:shapes", "teacher.checkpoint=mine.pth", "classes=17",
    "student.network=net.py:shapes", "student.arguments.width=4", "input.size=64", "teacher.mean=[.5,.4,.3]",
    "teacher.std=[.2,.2,.2]", "teacher.channels=bgr", "rounds=2", "batch_size=16", "generator.width=4",
    "generator.latent_size=8", "tracking.uri=none",
)  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network file and a checkpoint as training scripts leave them, and nothing else."""
    monkeypatch.delenv("DDAD_DATA", raising=False)
    Path("net.py").write_text(NETWORK)
    module = build.network(task.load("classification"), "net.py:shapes", 17, 3)
    module.train()(torch.randn(32, 3, 64, 64))
    weights = {f"module.{key}": value for key, value in module.state_dict().items()}
    torch.save(
        {"epoch": 9, "model_state_dict": weights, "optimizer_state_dict": {"state": {}, "param_groups": []}}, "mine.pth"
    )
    return tmp_path


def photographs(root: Path, per_class: int = 2) -> list[Path]:
    """Images of 17 classes, each of its own size."""
    made = []
    for index in range(17):
        for number in range(per_class):
            path = root / f"kind{index:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70 + index, 64 + 3 * number), (15 * index, 90, 255 - 15 * index)).save(path)
            made.append(path)
    return made


def test_no_data_at_all(mine: Path, ddad: Ddad) -> None:
    said = ddad(*RUN, "--output", "run")
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["agreement_on"] == "generated" and 0 <= result["agreement"] <= 1
    assert result["student"]["accuracy"] is None and result["teacher"]["accuracy"] is None
    assert result["data_free"] is True and "untrained" not in result["teacher"]
    assert "agreement is on generated ones" in " ".join(said.out.split())
    again = json.loads(ddad("evaluate", "run", "--json").out)
    assert (again["agreement"], again["agreement_on"]) == (result["agreement"], "generated")


def test_own_test_images_predict_and_export(mine: Path, ddad: Ddad) -> None:
    images = photographs(mine / "photos")
    said = ddad(*RUN, "--output", "run", "data.name=image_folder", "data.root=photos")
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["agreement_on"] == "test" and 0 <= result["student"]["accuracy"] <= 1

    found = json.loads(ddad("predict", "run", *images, "--json").out)["predictions"]
    right = [answer["class"] == Path(answer["image"]).parent.name for answer in found]
    assert sum(right) / len(right) == pytest.approx(result["student"]["accuracy"]), "predict sees what evaluate saw"
    assert all(0 < answer["probability"] <= 1 and len(answer["top5"]) == 5 for answer in found)

    for kind, ending in (("safetensors", "safetensors"), ("onnx", "onnx"), ("torch.export", "pt2")):
        said = ddad("export", "run", "--format", kind, "--json")
        assert said.code == 0, said.err
        written = json.loads(said.out)
        assert Path(written["file"]).suffix == f".{ending}" and written["max_difference"] < 1e-3
        beside = json.loads(Path(written["file"] + ".json").read_text())
        assert beside["preprocessing"]["channels"] == "bgr" and beside["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert (
        load_file("run/student.safetensors").keys()
        == load_file(json.loads(ddad("export", "run", "--json").out)["file"]).keys()
    )


def test_transparent_photographs(mine: Path, ddad: Ddad) -> None:
    """Refused without a background; with one, every command shows it behind them."""
    for path in photographs(mine / "photos", per_class=1):
        with Image.open(path) as image:
            image.putalpha(0)
            image.save(path)
    data = ("data.name=image_folder", "data.root=photos")
    line = ddad(*RUN, "--output", "run", *data).complaint()
    assert "photos/kind00/0.png: 100.0% of its pixels are transparent" in line and not Path("run").exists()

    said = ddad(*RUN, "--output", "run", *data, "data.background=[90,90,90]")
    assert said.code == 0, said.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["student"]["accuracy"] == pytest.approx(1 / 17), "every image is the background"
    again = json.loads(ddad("evaluate", "run", "data.background=[0,0,255]", "--json").out)
    assert again["student"]["accuracy"] == pytest.approx(1 / 17)
    network = ("--network", "net.py:shapes", "--checkpoint", "mine.pth", "--data", "image_folder", "--root", "photos")
    scored = ("evaluate", *network, "--classes", "17", "--size", "64")
    assert "of its pixels are transparent" in ddad(*scored).complaint()
    assert json.loads(ddad(*scored, "data.background=[0,0,255]", "--json").out)["accuracy"] == pytest.approx(1 / 17)
    assert "evaluate takes --data NAME and data.FIELD=value" in ddad(*scored, "rounds=3").complaint()

    Image.new("RGB", (64, 64), (90, 90, 90)).save("grey.png")
    Image.new("RGB", (64, 64), (255, 0, 0)).save("red.png")
    found = [
        json.loads(ddad("predict", "run", image, *words, "--json").out)["predictions"][0]["top5"]
        for image, words in [
            ("grey.png", ()), ("photos/kind00/0.png", ()),
            ("red.png", ()), ("photos/kind00/0.png", ("--background", "255,0,0")),
        ]
    ]  # fmt: skip
    assert found[0] == found[1] != found[2] == found[3]
    assert "expected red, green and blue" in ddad("predict", "run", "red.png", "--background", "white").complaint()


def test_any_network_on_any_images(mine: Path, ddad: Ddad) -> None:
    photographs(mine / "photos")
    words = ["evaluate", "--network", "net.py:shapes", "--checkpoint", "mine.pth", "--data", "image_folder"]
    assert "give --classes and --size" in ddad(*words, "--root", "photos").complaint()
    words += ["--root", "photos", "--classes", "17", "--size", "64", "--channels", "bgr"]
    assert "expected a number per channel" in ddad(*words, "--mean", "a,b").complaint()
    found = json.loads(ddad(*words, "--mean", ".5,.4,.3", "--std", ".2 .2 .2", "--json").out)
    assert ddad(*RUN, "--output", "run", "data.name=image_folder", "data.root=photos").code == 0
    assert found["accuracy"] == json.loads(Path("run/result.json").read_text())["teacher"]["accuracy"]
    said = ddad("evaluate", "run", "--json")
    assert json.loads(said.out)["test_images"] == 34 and said.err == ""
    for option, value in (("--mean", ".9,.9,.9"), ("--channels", "rgb"), ("--size", "32"), ("--classes", "3"),
                          ("--checkpoint", "other.pth")):  # fmt: skip
        assert f"{option} goes with --network" in ddad("evaluate", "run", option, value).complaint()
    Path("photos/kind00").rename("photos/another")
    assert "class 0 of the student is 'kind00', and of the data 'another'" in ddad("evaluate", "run").err


def test_a_network_that_names_one_class_for_all_images_is_doubted(mine: Path, ddad: Ddad) -> None:
    photographs(mine / "photos")
    test = ("--data", "image_folder", "--root", "photos")
    words = ("evaluate", "--network", "net.py:shapes", "--checkpoint", "mine.pth", *test, "--classes", "17",
             "--size", "64", "--channels", "bgr", "--mean", ".5,.4,.3", "--std")  # fmt: skip
    assert "names one class" not in ddad(*words, ".2,.2,.2").err
    assert "net.py:shapes names one class for all test images" in ddad(*words, "200,200,200").err
    wrong = ("data.name=image_folder", "data.root=photos", "teacher.std=[200,200,200]")
    assert "the teacher names one class for all test images" in ddad(*RUN, *wrong, "--output", "run").err
    assert "the teacher names one class for all test images" in ddad("evaluate", "run").err


def test_a_wrong_number_of_classes_is_said(mine: Path, ddad: Ddad) -> None:
    line = ddad(*RUN, "classes=12", "--output", "run").complaint()
    assert "17 classes" in line and "classes=12" in line
    assert not Path("run").exists()


def test_test_images_of_another_number_of_classes(mine: Path, ddad: Ddad) -> None:
    Path("photos/one").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save("photos/one/a.png")
    line = ddad(*RUN, "--output", "run", "data.name=image_folder", "data.root=photos").complaint()
    assert "classes=17" in line and not Path("run").exists()
