"""The student on image files of every kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from harness import config, files, task
from harness.commands import predict
from harness.errors import UserError
from harness.networks import build
from harness.networks.preprocessing import Preprocessing, fit
from harness.run.student import write_student

SPEC = Preprocessing(8, 8, "bgr", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def write_run(folder: Path, names: list[str] | None) -> tuple[Path, nn.Module]:
    torch.manual_seed(1)
    module = build.network(task.load("classification"), "cnn12", 7, 3, {})
    module(torch.randn(32, 3, 8, 8))
    record = {
        "task": "classification", "network": "cnn12", "arguments": {}, "classes": 7, "class_names": names,
        "preprocessing": dataclasses.asdict(SPEC), "source": None,
    }  # fmt: skip
    write_student(folder, module, record)
    return folder, module.eval()


def write_image(path: Path, height: int, width: int, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_answers_are_the_networks_on_normalised_pixels(tmp_path: Path) -> None:
    run, module = write_run(tmp_path, [f"kind {index}" for index in range(7)])
    image = write_image(tmp_path / "a.png", 8, 8)
    rgb = torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1).float() / 255
    blue_first = rgb.flip(0)  # by hand, not through Preprocessing
    x = (blue_first - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[:, None, None]
    with torch.no_grad():
        expected = module(x[None]).softmax(1)[0]
    (found,) = predict.predict(run, [image])
    order = expected.argsort(descending=True)[:5].tolist()
    assert (found["image"], found["label"], found["class"]) == (str(image), order[0], f"kind {order[0]}")
    assert found["probability"] == pytest.approx(expected.max().item(), rel=1e-5)
    assert [entry["label"] for entry in found["top5"]] == order
    assert [entry["class"] for entry in found["top5"]] == [f"kind {label}" for label in order]
    assert [entry["probability"] for entry in found["top5"]] == pytest.approx(expected[order].tolist(), rel=1e-5)


def test_many_images_of_any_size_and_mode_keep_their_order(tmp_path: Path) -> None:
    run, _ = write_run(tmp_path, None)
    kinds = [("a.png", 8, 8, "RGB"), ("b.jpg", 30, 11, "L"), ("c.png", 5, 40, "RGBA"), ("d.png", 9, 9, "P")]
    images = [write_image(tmp_path / name, height, width, mode) for name, height, width, mode in kinds] * 20
    found = predict.predict(run, images)
    assert [entry["image"] for entry in found] == [str(path) for path in images]
    assert found[76]["probability"] == pytest.approx(found[4]["probability"]) != pytest.approx(found[5]["probability"])
    assert found[0]["class"] is None
    assert predict.predict(run, []) == []


@pytest.mark.parametrize(("height", "width"), [(8, 8), (31, 17), (6, 50), (300, 200)])
def test_image_is_prepared_as_test_images_are(tmp_path: Path, height: int, width: int) -> None:
    path = write_image(tmp_path / "a.png", height, width)
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
    spec = dataclasses.replace(SPEC, height=16, width=12)
    assert torch.equal(predict.load_image(path, spec), fit(pixels, 16, 12).float() / 255)


def test_what_is_no_image_is_said_in_one_line(tmp_path: Path) -> None:
    run, _ = write_run(tmp_path, None)
    good = write_image(tmp_path / "a.png", 8, 8)
    (tmp_path / "text.png").write_text("not an image")
    whole = write_image(tmp_path / "torn.png", 64, 64)
    whole.write_bytes(whole.read_bytes()[:2000])
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    for name, message in {
        "absent.png": "there is no such file",
        "text.png": "not a readable image",
        "torn.png": "not a readable image",
        "clear.png": r"100\.0% of its pixels are transparent; say .* --background 255,255,255",
        ".": "not a readable image",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            predict.predict(run, [good, tmp_path / name])
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_transparent_pixels_show_the_runs_background_or_the_one_given(tmp_path: Path) -> None:
    run, _ = write_run(tmp_path / "run", None)
    image = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (200, 100, 50, 0)).save(image)
    flat = {}
    for colour in ((255, 255, 255), (0, 40, 255)):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "flat.png")
        flat[colour] = predict.predict(run, [tmp_path / "flat.png"])[0]["top5"]
    assert predict.predict(run, [image], background=[255, 255, 255])[0]["top5"] == flat[255, 255, 255]
    settings = config.to_dict(config.build({"classes": 7, "data": {"background": [0, 40, 255]}}))
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "records": {}}))
    assert predict.predict(run, [image])[0]["top5"] == flat[0, 40, 255] != flat[255, 255, 255]
    assert predict.predict(run, [image], background=[255, 255, 255])[0]["top5"] == flat[255, 255, 255]


def test_unknown_device_and_dense_students_are_refused(tmp_path: Path) -> None:
    run, _ = write_run(tmp_path, None)
    image = write_image(tmp_path / "a.png", 8, 8)
    with pytest.raises(UserError, match="device 'warp': not usable here"):
        predict.predict(run, [image], device="warp")
    source = tmp_path / "dense.py"
    source.write_text("import torch\n\n\ndef network(classes):\n    return torch.nn.Conv2d(3, classes, 1)\n")
    record = {
        "task": "classification", "network": f"{source}:network", "arguments": {}, "classes": 7, "class_names": None,
        "preprocessing": dataclasses.asdict(SPEC), "source": files.file_record(source),
    }  # fmt: skip
    write_student(tmp_path, nn.Conv2d(3, 7, 1), record)
    with pytest.raises(UserError, match="its student answers each pixel"):
        predict.predict(tmp_path, [image])


def test_load_image_gives_fractions_of_one(tmp_path: Path) -> None:
    pixels: Tensor = predict.load_image(write_image(tmp_path / "a.png", 20, 20), SPEC)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.float32
    assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.max() > 0.5
