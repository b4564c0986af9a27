"""`ddad generate`: the images can be read back, and the teacher answers them as the files say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import config as config_module
from harness import distill, load_student, task
from harness.commands import recorded
from harness.config.parse import merge
from harness.run import folder
from tests.end_to_end.conftest import Ddad, contents

pytestmark = pytest.mark.usefixtures("no_curves")

COUNT = 37
"""Two whole batches of 16 and a part."""

QUICK = {"rounds": 2, "batch_size": 16, "tracking": {"uri": "none"}, "pictures": False}


def a_teacher(name: str, channels: int, classes: int, of: str = "classification") -> nn.Module:
    """One that answers noise with every class, so that its answers differ from image to image."""
    torch.manual_seed(1)
    net = task.load(of).network(name, classes, channels)
    noise = torch.randn(64, channels, 16, 16)
    for _ in range(20):
        net(noise)
    net.eval()
    with torch.no_grad():
        usual = net(noise).transpose(0, 1).flatten(1).mean(1)
        list(net.parameters())[-1].sub_(usual)
    return net


def a_run(path: Path, over: dict[str, Any], teacher: nn.Module) -> Path:
    distill(merge(QUICK, over), path, teacher=teacher)
    return path


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher takes BGR images, with 12 classes."""
    over = {
        "recipe": "classification", "classes": 12, "input": {"size": 8}, "student": {"network": "cnn4"},
        "teacher": {"network": "cnn8", "channels": "bgr", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]},
    }  # fmt: skip
    return a_run(tmp_path_factory.mktemp("colour") / "run", over, a_teacher("cnn8", 3, 12))


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher takes grey images; its pictures are not private."""
    over = {
        "recipe": "digits", "pictures": True, "data": {"name": "digits"},
        "teacher": {"network": "cnn8"}, "student": {"network": "cnn4"},
    }  # fmt: skip
    return a_run(tmp_path_factory.mktemp("gray") / "run", over, a_teacher("cnn8", 1, 10))


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of segmentation."""
    over = {
        "recipe": "segmentation", "classes": 5, "input": {"size": [16, 32]}, "batch_size": 8,
        "teacher": {"network": "unet8"}, "student": {"network": "unet4"},
    }  # fmt: skip
    return a_run(tmp_path_factory.mktemp("maps") / "run", over, a_teacher("unet8", 3, 5, "segmentation"))


def read_back(run: Path, output: Path) -> tuple[Tensor, Tensor, list[str]]:
    """What the project's own reader makes of a folder, and what the teacher says: labels, answers, names of classes."""
    data = json.loads((output / "generated.json").read_text())["data"]
    last = recorded.read(run, {"data": {"name": data, "root": str(output)}}, {})
    found = task.load(last.config.task).dataset(last.config, "test")
    images, labels = zip(*(found[index] for index in range(len(found))), strict=True)
    teacher = last.teacher().eval()
    with torch.no_grad():
        answers = teacher(torch.stack(images)).argmax(1)
    return torch.stack([torch.as_tensor(label) for label in labels]), answers, found.classes


@pytest.mark.parametrize(("name", "mode"), [("colour", "RGB"), ("gray", "L")])
def test_a_folder_of_images_is_read_back_with_the_teachers_answers(
    name: str, mode: str, request: pytest.FixtureRequest, ddad: Ddad
) -> None:
    run = request.getfixturevalue(name)
    said = ddad("generate", run, "--count", COUNT, "--output", "out", "--reveal", "--json")
    assert (said.code, said.err) == (0, "")
    described = json.loads(said.out)
    labels, answers, classes = read_back(run, Path("out"))
    assert len(labels) == COUNT and torch.equal(labels, answers)
    assert len(labels.unique()) > 1, "a teacher that says one class of all shows nothing"
    counts = labels.bincount(minlength=len(classes)).tolist()
    assert described["label_counts"] == counts and len(classes) == len(described["class_names"])
    with Image.open(next(Path("out").rglob("*.png"))) as image:
        assert image.mode == mode
    assert max(path.name for path in Path("out").rglob("*.png")) == f"{COUNT - 1:06}.png"
    assert Path("out/generated.json").exists() and [path.name for path in Path.cwd().iterdir()] == ["out"]


def test_answers_of_a_run_in_bf16_are_those_of_the_teacher_in_fp32(tmp_path: Path, ddad: Ddad) -> None:
    over = {
        "recipe": "digits", "pictures": True, "data": {"name": "digits"}, "precision": "bf16",
        "teacher": {"network": "cnn8"}, "student": {"network": "cnn4"},
    }  # fmt: skip
    run = a_run(tmp_path / "run", over, a_teacher("cnn8", 1, 10))
    assert ddad("generate", run, "--count", COUNT, "--output", "out", "--format", "safetensors").code == 0
    arrays = load_file("out/generated.safetensors")
    with torch.no_grad():
        expected = recorded.read(run, {}, {}).teacher().eval()(arrays["images"])
    torch.testing.assert_close(arrays["logits"], expected)


def test_label_maps_are_read_back_with_the_teachers_answers(maps: Path, ddad: Ddad) -> None:
    assert ddad("generate", maps, "--count", 11, "--output", "out", "--reveal").code == 0
    labels, answers, classes = read_back(maps, Path("out"))
    assert labels.shape == (11, 16, 32) and torch.equal(labels, answers) and classes == ["0", "1", "2", "3", "4"]
    assert len(labels.unique()) > 1


def test_arrays_hold_images_and_logits_unrounded(colour: Path, ddad: Ddad) -> None:
    for kind in ("npz", "safetensors"):
        said = ddad("generate", colour, "--count", COUNT, "--output", kind, "--format", kind, "--reveal")
        assert said.out == f"{COUNT} images in {kind}\n"
    arrays = load_file("safetensors/generated.safetensors")
    with np.load("npz/generated.npz") as file:
        assert all(np.array_equal(file[name], value.numpy()) for name, value in arrays.items())
    assert arrays["images"].shape == (COUNT, 3, 8, 8) and arrays["images"].dtype == torch.float32
    teacher = recorded.read(colour, {}, {}).teacher().eval()
    with torch.no_grad():
        expected = teacher(arrays["images"])
    torch.testing.assert_close(arrays["logits"], expected)
    assert torch.equal(arrays["labels"], arrays["logits"].argmax(1))


def test_images_follow_from_the_seed_and_not_from_the_number(colour: Path, ddad: Ddad) -> None:
    found = {}
    for name, words in {"a": (20,), "b": (40,), "c": (20, "--seed", 7), "d": (20, "--seed", 0)}.items():
        ddad("generate", colour, "--output", name, "--format", "npz", "--reveal", "--count", *words)
        found[name] = np.load(f"{name}/generated.npz")["images"]
    assert np.array_equal(found["a"], found["b"][:20]) and np.array_equal(found["a"], found["d"])
    assert not np.array_equal(found["a"], found["c"])


def test_folders_of_classes_are_in_the_order_of_the_classes(tmp_path: Path) -> None:
    names = ["dog", "a/b", "Zebra", *map(str, range(3, 11))]
    images = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(11, 3, 2, 2) * 20
    assert task.load("classification").write(tmp_path, 0, images, torch.arange(11), names) == "image_folder"
    assert sorted(path.name for path in tmp_path.iterdir())[:4] == ["00-dog", "01-a_b", "02-Zebra", "03"]


def test_more_classes_than_a_label_image_has_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="256 classes: a label image has numbers for 255, and one for void"):
        task.load("segmentation").write(
            tmp_path, 0, torch.zeros(1, 3, 2, 2).byte(), torch.zeros(1, 2, 2).long(), ["x"] * 256
        )


def test_what_is_refused_leaves_nothing(colour: Path, gray: Path, ddad: Ddad) -> None:
    full = Path("full")
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    Path("file").write_text("mine")
    Path("empty").mkdir()
    shutil.copytree(colour, "copy")
    shutil.copytree(gray, "bare")
    shutil.rmtree("bare/checkpoints")
    Path("copy/given/teacher.safetensors").unlink()
    before = contents(Path.cwd())
    cases = {
        ("nowhere",): "nowhere is not a run folder",
        (colour,): "has pictures=false, and generated images may reveal .*--reveal",
        (gray, "--output", "full"): "full is there already and holds something: give a new folder",
        (gray, "--output", "file"): "file is there already and holds something",
        (gray, "--count", 0): "--count 0: expected the number of images",
        (gray, "--seed", -1): "--seed -1: expected at least 0",
        (gray, "--format", "npy"): "'npy': no such format; did you mean 'npz'",
        ("copy", "--reveal"): "given/teacher.safetensors is not there any more, and the answers are the teacher's",
        ("bare",): "bare/checkpoints is empty, it held the generator: run it until its first checkpoint",
    }
    for words, expected in cases.items():
        line = ddad("generate", "--count", 3, "--output", "out", *words).complaint()
        assert re.search(expected, line), line
    assert contents(Path.cwd()) == before
    assert ddad("generate", gray, "--count", 3, "--output", "empty").code == 0
    assert len(list(Path("empty").rglob("*.png"))) == 3


@pytest.mark.parametrize("over", [{"method": "kd"}, {"method": "supervised"}])
def test_a_run_without_a_generator_is_refused(gray: Path, ddad: Ddad, over: dict[str, Any]) -> None:
    shutil.copytree(gray, "run")
    recorded_config, records = folder.read_config(gray)
    config = config_module.build(merge(config_module.to_dict(recorded_config), over))
    Path("run/config.yaml").write_text(json.dumps({**config_module.to_dict(config), "records": records}))
    line = ddad("generate", "run", "--count", 3, "--output", "out").complaint()
    assert line == f"run has no generator: method={over['method']} learns from real images"


def test_a_pool_stands_for_a_generator(tmp_path: Path, ddad: Ddad) -> None:
    over = {
        "recipe": "digits", "method": "deepinversion", "pictures": True, "data": {"name": "none"},
        "teacher": {"network": "cnn8"}, "student": {"network": "cnn4"}, "inversion": {"steps": 2, "rounds": 1},
    }  # fmt: skip
    run = a_run(tmp_path / "run", over, a_teacher("cnn8", 1, 10))
    assert ddad("generate", run, "--count", COUNT, "--output", "out").code == 0
    labels, answers, _ = read_back(run, Path("out"))
    assert len(labels) == COUNT and torch.equal(labels, answers)
    assert load_student(run)[1]["network"] == "cnn4"
