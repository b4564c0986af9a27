"""The data sets: whole, in part, damaged, and as nobody should have made them."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import pickle
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from harness import image_files
from harness.config import Config, build
from harness.config.parse import merge
from harness.errors import UserError
from harness.networks.preprocessing import preprocessing
from harness.training.data import TrainingBatches, evaluation_loader
from harness.training.record import class_names
from tasks.classification import data, task
from tests.miniature import Cifar


def config(name: str, root: Path | None, classes: int, size: int | list[int] = 32, **teacher: Any) -> Config:
    return build(
        {
            "task": "classification",
            "classes": classes,
            "input": {"size": size},
            "data": {"name": name, "root": None if root is None else str(root)},
            "teacher": teacher,
        }
    )


def one_line(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    """The message is one line that holds every part."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def levels(image: Tensor) -> Tensor:
    """0..1 -> 0..255, bytes."""
    assert image.dtype == torch.float32
    return (image * 255).round().byte()


# CIFAR ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar:
    return Cifar(tmp_path, datasets.CIFAR10, monkeypatch)


def test_cifar10_reads_both_splits_in_their_order(cifar10: Cifar, tmp_path: Path) -> None:
    wanted = config("cifar10", tmp_path, 10)
    train, test = task.dataset(wanted, "train"), task.dataset(wanted, "test")
    assert train.classes == test.classes == [f"class {i}" for i in range(10)]
    assert (len(train), len(test)) == (30, 6)
    assert [train[i][1] for i in range(0, 30, 6)] == [0, 1, 2, 3, 4]
    assert test[0][1] == 5
    for row, (batch, index) in {0: ("data_batch_1", 0), 17: ("data_batch_3", 5)}.items():
        assert torch.equal(levels(train[row][0]), cifar10.pixels[batch][index])
    assert torch.equal(levels(test[3][0]), cifar10.pixels["test_batch"][3])


def test_cifar_agrees_with_torchvision(cifar10: Cifar, tmp_path: Path) -> None:
    theirs = datasets.CIFAR10(tmp_path, train=True)
    ours = task.dataset(config("cifar10", tmp_path, 10), "train")
    for index in (0, 13, 29):
        image, label = theirs[index]
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal(levels(ours[index][0]), expected) and ours[index][1] == label


def test_cifar100_has_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cifar(tmp_path, datasets.CIFAR100, monkeypatch)
    train = task.dataset(config("cifar100", tmp_path, 10), "train")
    assert [train[i][1] for i in range(len(train))] == [0, 0, 1, 2, 3, 4]


def test_the_cifar_test_split_needs_no_training_batch(cifar10: Cifar, tmp_path: Path) -> None:
    for name in dict(cifar10.files.train_list):
        (cifar10.folder / name).unlink()
    wanted = config("cifar10", tmp_path, 10)
    assert len(task.dataset(wanted, "test")) == 6
    with pytest.raises(UserError) as error:
        task.dataset(wanted, "train")
    one_line(error, "data_batch_1, data_batch_2", "of the train split not found in", str(cifar10.folder))
    one_line(error, f"CIFAR10({str(tmp_path)!r}, download=True)")


def test_the_cifar_training_split_needs_every_batch(cifar10: Cifar, tmp_path: Path) -> None:
    (cifar10.folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"data\.name=cifar10: data_batch_4 of the train split not found in "):
        task.dataset(config("cifar10", tmp_path, 10), "train")


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_changed_cifar_file_is_corrupt(cifar10: Cifar, tmp_path: Path, name: str) -> None:
    path = cifar10.folder / name
    expected = hashlib.md5(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-1])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as error:
        task.dataset(config("cifar10", tmp_path, 10), "test")
    one_line(error, f"{path} is corrupt: md5 {found}, expected {expected}", "download=True")


class Attack:
    """Pickled, it is a call that leaves a mark."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_would_run_something_is_refused(cifar10: Cifar, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    honest = pickle.loads((cifar10.folder / "test_batch").read_bytes())
    for call, arguments in ((os.mkdir, [str(mark)]), (eval, [f"open({str(mark)!r}, 'w')"]), (np.loadtxt, [str(mark)])):
        cifar10.write("test_batch", {**honest, "filenames": Attack(call, *arguments)})
        with pytest.raises(UserError) as error:
            task.dataset(config("cifar10", tmp_path, 10), "test")
        one_line(error, "test_batch: refused", call.__name__)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Attack(os.mkdir, str(mark))))
    assert mark.exists()  # the attack is a real one


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_the_real_cifar_test_split(data_root: Path, name: str, classes: int) -> None:
    test = data.dataset(config(name, data_root, classes), "test")
    assert (len(test), len(test.classes)) == (10_000, classes)
    assert Counter(test.labels) == dict.fromkeys(range(classes), 10_000 // classes)
    image, label = test[0]
    assert (image.shape, test.classes[label]) == ((3, 32, 32), "cat" if classes == 10 else "mountain")
    with pytest.raises(UserError, match="of the train split not found"):
        data.dataset(config(name, data_root, classes), "train")


# Digits ---------------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all() -> None:
    grey = {"channels": "gray", "mean": [0.0], "std": [1.0]}
    wanted = config("digits", None, 10, size=8, **grey)
    train, test = data.dataset(wanted, "train"), data.dataset(wanted, "test")
    assert (len(train), len(test)) == (1437, 360)
    assert test.classes == list("0123456789")
    shares = Counter(test.labels)
    assert all(35 <= shares[digit] <= 37 for digit in range(10))
    from sklearn.datasets import load_digits

    everything = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    both = [(split[i][0] * 16).double().round().numpy().tobytes() for split in (train, test) for i in range(len(split))]
    assert set(both) == set(everything) and len(both) == 1797
    assert everything[both[1437]] == test[0][1]


def test_grey_survives_the_way_through_rgb() -> None:
    wanted = config("digits", None, 10, size=8, channels="gray", mean=[0.3], std=[0.4])
    test = data.dataset(wanted, "test")
    image = test[7][0]
    assert image.shape == (1, 8, 8) and image.dtype == torch.float32
    pixels = preprocessing(wanted).denormalise(image)
    assert pixels.shape == (3, 8, 8)
    sixteenths = pixels * 16
    assert torch.allclose(sixteenths, sixteenths.round(), atol=1e-5) and sixteenths.max() > 15


@pytest.mark.parametrize("split", ["digits", "caltech101 train"])
def test_a_changed_split_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    name = split.split()[0]
    text = (data.SPLITS / f"{name}.txt").read_text()
    (tmp_path / f"{name}.txt").write_text(text.rstrip()[:-1])  # another last number
    monkeypatch.setattr(data, "SPLITS", tmp_path)
    with pytest.raises(UserError) as error:
        task.dataset(config(name, tmp_path, 10, size=8), "train")
    one_line(error, f"the {split} split in {tmp_path} was changed", data.SPLIT_SHA256[split])


# Caltech-101 ----------------------------------------------------------------------------------------------------------


def test_the_real_caltech101_and_its_split(data_root: Path) -> None:
    for split, count in (("train", 5784), ("test", 2893)):
        images = data.dataset(config("caltech101", data_root, 101, size=64), split)  # type: ignore[arg-type]
        assert isinstance(images.images, data.Files)
        names = {"/".join(Path(path).parts[-2:]) for path in images.images.paths}
        assert names == set((data_root / "caltech101" / f"{split}.txt").read_text().split())
        assert (len(images), len(images.classes), len(set(images.labels))) == (count, 101, 101)
        assert all(f"/{images.classes[y]}/" in path for path, y in zip(images.images.paths, images.labels, strict=True))
    assert "BACKGROUND_Google" not in images.classes


@pytest.mark.parametrize("size", [32, 224, [96, 128]])
def test_caltech101_at_any_size(data_root: Path, size: int | list[int]) -> None:
    height, width = size if isinstance(size, list) else (size, size)
    for augment in (False, True):
        images = task.dataset(config("caltech101", data_root, 101, size=size), "train", augment)
        shapes = {images[index][0].shape for index in range(0, 5784, 1000)}
        assert shapes == {(3, height, width)}


def test_missing_caltech101_images_are_counted(tmp_path: Path) -> None:
    place = tmp_path / "caltech101" / "101_ObjectCategories"
    (place / "accordion").mkdir(parents=True)
    (place / "accordion" / "image_0001.jpg").touch()
    with pytest.raises(UserError) as error:
        task.dataset(config("caltech101", tmp_path, 101), "test")
    one_line(error, "2892 of 2893 images of the test split, first Faces/image_0002.jpg, not found in", str(place))
    one_line(error, f"Caltech101({str(tmp_path)!r}, download=True)")


# Fashion-MNIST --------------------------------------------------------------------------------------------------------


def idx(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw", "fashion-mnist"])
@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_in_any_of_its_places(tmp_path: Path, folder: str, packed: bool) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    for name, values in (("images-idx3", pixels), ("labels-idx1", np.array([9, 0, 3, 1, 1], np.uint8))):
        content = idx(values)
        name = f"t10k-{name}-ubyte"
        (place / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    test = task.dataset(config("fashion_mnist", tmp_path, 10, size=28, channels="gray"), "test")
    assert len(test) == 5
    assert test.classes[test[0][1]] == "Ankle boot"
    assert torch.allclose(test[2][0], torch.from_numpy(pixels[2:3]).float() / 255, atol=1e-6)
    with pytest.raises(UserError) as error:
        task.dataset(config("fashion_mnist", tmp_path, 10), "train")
    one_line(error, "train-images-idx3-ubyte", f"not found in {tmp_path}, ", "FashionMNIST/raw", "download=True")


@pytest.mark.parametrize("damage", ["cut", "kind", "empty", "gz", "pair"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    images, labels = idx(np.zeros((5, 28, 28), np.uint8)), idx(np.zeros(5, np.uint8))
    name = "t10k-images-idx3-ubyte"
    content = {
        "cut": images[:-1],
        "kind": b"\0\0\x0d" + images[3:],
        "empty": b"",
        "gz": gzip.compress(images)[:-9],
        "pair": idx(np.zeros((4, 28, 28), np.uint8)),
    }[damage]
    path = tmp_path / (name + ".gz" if damage == "gz" else name)
    path.write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(UserError) as error:
        task.dataset(config("fashion_mnist", tmp_path, 10), "test")
    one_line(error, str(path), "no pair" if damage == "pair" else "is corrupt")


# A user's own folder --------------------------------------------------------------------------------------------------


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_an_image_folder_for_testing_alone(tmp_path: Path) -> None:
    paint(tmp_path / "bee" / "1.png", (255, 0, 0))
    paint(tmp_path / "ant" / "2.JPG", (0, 255, 0), (7, 50))
    Image.new("L", (9, 9), 128).save(tmp_path / "ant" / "grey.png")
    Image.new("RGBA", (64, 64), (0, 0, 255, 255)).save(tmp_path / "bee" / "alpha.png")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    wanted = config("image_folder", tmp_path, 2, size=[16, 24])
    test = task.dataset(wanted, "test")
    assert test.classes == ["ant", "bee"]
    assert [test[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert {test[i][0].shape for i in range(4)} == {(3, 16, 24)}
    assert torch.allclose(test[1][0], torch.tensor(128 / 255))
    for index, colour in ((2, [1.0, 0.0, 0.0]), (3, [0.0, 0.0, 1.0])):
        assert torch.equal(test[index][0], torch.tensor(colour)[:, None, None].expand(3, 16, 24))
    with pytest.raises(UserError) as error:
        task.dataset(wanted, "train")
    one_line(error, f"{tmp_path / 'train'}: no such folder")


def test_an_image_folder_in_two_parts_numbers_its_classes_alike(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cow"):
        paint(tmp_path / "train" / name / "1.png", (0, 0, 0))
    paint(tmp_path / "test" / "cow" / "1.png", (0, 0, 0))
    wanted = config("image_folder", tmp_path, 3)
    train, test = task.dataset(wanted, "train", augment=True), task.dataset(wanted, "test")
    assert train.classes == test.classes == ["ant", "bee", "cow"]
    assert [train[i][1] for i in range(3)] == [0, 1, 2]
    assert (len(test), test[0][1]) == (1, 2)


def test_an_image_folder_with_another_number_of_classes(tmp_path: Path) -> None:
    paint(tmp_path / "ant" / "1.png", (0, 0, 0))
    paint(tmp_path / "bee" / "1.png", (0, 0, 0))
    with pytest.raises(UserError) as error:
        task.dataset(config("image_folder", tmp_path, 17), "test")
    one_line(error, f"classes=17: data.name=image_folder has 2 classes in {tmp_path}; set classes=2")


def test_an_image_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=null: data\.name=image_folder needs data\.root"):
        task.dataset(config("image_folder", None, 2), "test")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        task.dataset(config("image_folder", tmp_path / "nowhere", 2), "test")
    with pytest.raises(UserError, match=f"{tmp_path}: no images; image_folder expects a folder a class"):
        task.dataset(config("image_folder", tmp_path, 2), "test")
    (tmp_path / "ant").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}: no images; image_folder expects a folder a class"):
        task.dataset(config("image_folder", tmp_path, 2), "test")
    paint(tmp_path / "1.png", (9, 9, 9), (8, 8))
    with pytest.raises(UserError, match=f"{tmp_path}: its images are not in folders; image_folder expects"):
        task.dataset(config("image_folder", tmp_path, 2), "test")


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | str) -> None:
    """A few of the 20 images are read at once, the first among them; the others when it is their turn."""
    (tmp_path / "bee").mkdir()
    for index in range(20):
        paint(tmp_path / "ant" / f"{index:02}.png", (9, 9, 9), (300, 300))
    path = tmp_path / "ant" / "01.png"
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:200])
    wanted = config("image_folder", tmp_path, 2)
    test = task.dataset(wanted, "test")
    for workers in (0, 1):
        with pytest.raises(UserError) as error:
            list(evaluation_loader(test, 1, workers=workers))
        one_line(error, f"{path}: not a readable image (")
    path = path.rename(tmp_path / "ant" / "00.png")
    with pytest.raises(UserError) as error:
        task.dataset(wanted, "test")
    one_line(error, f"{path}: not a readable image (")


def test_an_image_that_is_not_read_is_not_passed_over(tmp_path: Path) -> None:
    paint(tmp_path / "ant" / "1.png", (0, 0, 0))
    (tmp_path / "ant" / "._1.png").write_bytes(b"what macOS leaves")
    (tmp_path / "bee").mkdir()
    assert len(task.dataset(config("image_folder", tmp_path, 2), "test")) == 1
    (tmp_path / "ant" / "2.HEIC").touch()
    with pytest.raises(UserError, match=r"2\.HEIC: \.heic is not read; convert such images to PNG or JPEG"):
        task.dataset(config("image_folder", tmp_path, 2), "test")


def test_images_below_the_folder_of_their_class(tmp_path: Path) -> None:
    """Those of a user count, what a file server or an editor put there does not, and none counts twice."""
    for name in ("1.png", "more/2.png", ".ipynb_checkpoints/1-checkpoint.png", "@eaDir/1.png/SYNO_THUMB.jpg"):
        paint(tmp_path / "ant" / name, (0, 0, 0))
    paint(tmp_path / "__MACOSX" / "ant" / "1.png", (0, 0, 0))
    (tmp_path / "ant" / "loop").symlink_to(tmp_path / "ant")
    (tmp_path / "bee").symlink_to(tmp_path / "ant" / "more")
    test = task.dataset(config("image_folder", tmp_path, 2), "test")
    assert isinstance(test.images, data.Files)
    assert [str(Path(path).relative_to(tmp_path)) for path in test.images.paths] == [
        "ant/1.png",
        "ant/more/2.png",
        "bee/2.png",
    ]


@pytest.mark.parametrize("parts", [("training_set", "test_set"), ("test/test", "train/train")])
def test_folders_of_classes_one_level_too_deep_are_refused(tmp_path: Path, parts: tuple[str, str]) -> None:
    for part in parts:
        for name in ("cat", "dog"):
            paint(tmp_path / part / name / "1.png", (0, 0, 0))
    with pytest.raises(UserError) as error:
        task.dataset(config("image_folder", tmp_path, 2), "test")
    one_line(
        error, "every image lies in a folder below that of its class, such as", "cat/1.png", "set data.root deeper"
    )


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: the folder cannot be read \(Not a directory\)"):
        image_files.entries(tmp_path / "file")


@pytest.mark.parametrize(("method", "reads"), [("ddad", ["test"]), ("kd", ["train", "test"])])
def test_a_run_looks_at_each_split_it_reads_before_it_begins(tmp_path: Path, method: str, reads: list[str]) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            paint(tmp_path / split / name / "1.png", (0, 0, 0))
    wanted = dataclasses.replace(config("image_folder", tmp_path, 2), method=method)
    assert class_names(wanted) == ["ant", "bee"]
    for split in ("train", "test"):
        path = tmp_path / split / "ant" / "1.png"
        whole = path.read_bytes()
        path.write_bytes(b"")
        if split in reads:
            with pytest.raises(UserError, match=f"{path}: not a readable image"):
                class_names(wanted)
        else:
            assert class_names(wanted) == ["ant", "bee"]
        path.write_bytes(whole)


# What holds for every set ---------------------------------------------------------------------------------------------


def test_unknown_names_and_counts() -> None:
    assert task.data_names() == ["digits", "cifar10", "cifar100", "caltech101", "fashion_mnist", "image_folder"]
    with pytest.raises(UserError, match=r"data\.name='cifar1': no such data set; did you mean .*'cifar10'"):
        task.dataset(config("cifar1", None, 10), "test")
    with pytest.raises(
        UserError, match=r"data\.name=none: real images are needed here; set data\.name to one of digits,"
    ):
        task.dataset(config("none", None, 10), "test")
    with pytest.raises(UserError, match=r"^classes=100: data\.name=digits has 10 classes; set classes=10$"):
        task.dataset(config("digits", None, 100), "test")


def test_images_are_normalised_for_the_teacher(cifar10: Cifar, tmp_path: Path) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    image = task.dataset(config("cifar10", tmp_path, 10, mean=mean, std=std, channels="bgr"), "test")[2][0]
    pixels = cifar10.pixels["test_batch"][2].flip(0).float() / 255
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(image, expected, atol=1e-6)


def test_other_sizes_are_scaled_to_cover_and_cropped_about_the_centre() -> None:
    image = torch.arange(8.0).expand(3, 4, 8)  # 4 x 8, each column its number
    assert torch.equal(data.fit(image, 4, 4), image[..., 2:6])
    assert torch.equal(data.fit(image, 4, 8), image)
    assert data.fit(image, 3, 9).shape == (3, 3, 9)
    assert torch.allclose(data.fit(image, 8, 8).mean(), torch.tensor(3.5))
    assert data.fit(torch.zeros(3, 21, 333), 224, 224).shape == (3, 224, 224)


def test_augmented_cifar_is_shifted_by_up_to_four_pixels_and_mirrored(cifar10: Cifar, tmp_path: Path) -> None:
    train = task.dataset(config("cifar10", tmp_path, 10), "train", augment=True)
    plain = torch.nn.functional.pad(cifar10.pixels["data_batch_1"][0], (4, 4, 4, 4))
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        image = levels(train[0][0])
        for mirrored in (False, True):
            found = image.flip(-1) if mirrored else image
            seen |= {
                (mirrored, y, x)
                for y in range(9)
                for x in range(9)
                if torch.equal(found, plain[:, y : y + 32, x : x + 32])
            }
    assert len(seen) > 25
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {y for _, y, _ in seen} == {x for _, _, x in seen} == set(range(9))


def test_workers_augment_as_the_main_process_does(cifar10: Cifar, tmp_path: Path) -> None:
    train = task.dataset(config("cifar10", tmp_path, 10), "train", augment=True)
    here, there = (next(TrainingBatches(train, 8, seed=1, workers=workers).batches(5)) for workers in (0, 2))
    assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])
    assert here[0].shape == (8, 3, 32, 32) and here[1].dtype == torch.int64


def test_the_root_may_come_from_the_environment(
    cifar10: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDAD_DATA", str(tmp_path))
    assert len(task.dataset(config("cifar10", None, 10), "test")) == 6
    wanted = build(merge({"classes": 10, "data": {"name": "cifar10"}}, {"data": {"root": str(tmp_path / "other")}}))
    with pytest.raises(UserError, match="other/cifar-10-batches-py"):
        task.dataset(wanted, "test")
