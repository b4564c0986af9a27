"""Checkpoints as people have them: wrapped, prefixed, half precision, foreign, damaged, and dangerous."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from harness import task
from harness.errors import UserError
from harness.networks.build import network
from harness.networks.weights import load

CLASSIFICATION = task.load("classification")
NAME = "teacher.network=resnet20"


def build(classes: int = 10, name: str = "resnet20") -> nn.Module:
    return network(CLASSIFICATION, name, classes, 3)


def weights(classes: int = 10, name: str = "resnet20") -> dict[str, Tensor]:
    """A state_dict that no fresh network has, running statistics included."""
    source = torch.Generator().manual_seed(7)
    found = {
        key: torch.full_like(value, 5) if value.dtype == torch.long else torch.randn(value.shape, generator=source)
        for key, value in build(classes, name).state_dict().items()
    }
    return {key: value.abs() if key.endswith("running_var") else value for key, value in found.items()}


def assert_loads(content: object, path: Path, expected: dict[str, Tensor]) -> None:
    torch.save(content, path)
    module = build()
    load(module, path, NAME)
    found = module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def refusal(path: Path, module: nn.Module | None = None) -> str:
    """The one line that a checkpoint gets which does not load; it leaves the network as it was."""
    module = module or build()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load(module, path, NAME)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message and str(path) in message
    return message


@pytest.mark.parametrize("suffix", ["pt", "pth", "th"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
def test_torch_files(tmp_path: Path, suffix: str, legacy: bool) -> None:
    path, expected, module = tmp_path / f"weights.{suffix}", weights(), build()
    torch.save(expected, path, _use_new_zipfile_serialization=not legacy)
    load(module, path, NAME)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in expected.items())


def test_safetensors(tmp_path: Path) -> None:
    path, expected, module = tmp_path / "weights.safetensors", weights(), build()
    safetensors.torch.save_file({f"module.{key}": value for key, value in expected.items()}, path)
    load(module, path, NAME)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: {"state_dict": inner, "best_prec1": 91.7},
        lambda inner: {"model_state_dict": inner, "optimizer_state_dict": {"state": {0: torch.ones(3)}}, "epoch": 3},
        lambda inner: {"model": inner, "args": {"lr": 0.1}},
        lambda inner: {"net": inner, "acc": 1, "epoch": 2},
        lambda inner: {"epoch": 3, "model": {"state_dict": inner}},
        lambda inner: {**inner, "epoch": 3, "arch": "resnet20"},
    ],
    ids=["state_dict", "model_state_dict", "model", "net", "twice", "beside"],
)
def test_wrappers(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    expected = weights()
    assert_loads(wrap(expected), tmp_path / "weights.pt", expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "student.backbone."])
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    expected = weights()
    assert_loads({prefix + key: value for key, value in expected.items()}, tmp_path / "weights.pt", expected)


def test_a_prefix_of_the_networks_own_stays(tmp_path: Path) -> None:
    module = nn.Sequential()
    module.add_module("model", nn.Linear(3, 2))
    expected = {"model.weight": torch.randn(2, 3), "model.bias": torch.randn(2)}
    for prefix in ("", "module."):
        torch.save({prefix + key: value for key, value in expected.items()}, tmp_path / "weights.pt")
        load(module, tmp_path / "weights.pt", NAME)
        assert all(torch.equal(module.state_dict()[key], value) for key, value in expected.items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_networks_own(tmp_path: Path, kind: torch.dtype) -> None:
    path, module = tmp_path / "weights.pt", build()
    half = {key: value if value.dtype == torch.long else value.to(kind) for key, value in weights().items()}
    torch.save(half, path)
    load(module, path, NAME)
    for key, value in module.state_dict().items():
        assert value.dtype in (torch.float32, torch.long)
        assert torch.equal(value, half[key].to(value.dtype))


def test_the_batch_counter_may_be_missing(tmp_path: Path) -> None:
    expected = {key: value for key, value in weights().items() if not key.endswith("num_batches_tracked")}
    assert_loads(expected, tmp_path / "weights.pt", expected)


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights().items()}}, path)
    expected = "the checkpoint has 10 classes, classes=17: set classes=10 or give another checkpoint"
    assert refusal(path, build(17)) == f"{path} does not fit {NAME}: {expected}"


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_another_number_of_classes_of_a_convolution(tmp_path: Path, layer: type[nn.Conv2d]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(nn.Sequential(nn.Conv2d(3, 6, 3), layer(6, 12, 2)).state_dict(), path)
    message = refusal(path, nn.Sequential(nn.Conv2d(3, 6, 3), layer(6, 11, 2)))
    assert "the checkpoint has 12 classes, classes=11" in message


def test_missing_and_unexpected_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({f"module.{key}": value for key, value in weights(name="resnet32").items()}, path)
    assert "it has 72 keys ('layer1.3.conv1.weight', 'layer1.3.bn1.weight', ...) that the network" in refusal(path)
    assert "; it has" not in refusal(path) and "lacks" not in refusal(path)
    torch.save(weights(), path)
    module = build(name="resnet32")
    assert "lacks 60 keys ('layer1.3.conv1.weight', 'layer1.3.bn1.weight', ...)" in refusal(path, module)
    torch.save({"linear.weight": torch.ones(10, 64), "other": torch.ones(1)}, path)
    message = refusal(path)
    assert "lacks 96 keys" in message and "it has 1 key ('other') that the network does not know" in message


def test_the_first_other_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(weights(name="wrn16_2"), path)
    message = refusal(path, build(name="wrn16_1"))
    assert "layer1.layer.0.convShortcut.weight" in message  # a key too many comes before shapes
    narrow = {key: value[:8] if key == "conv1.weight" else value for key, value in weights().items()}
    torch.save(narrow, path)
    assert "conv1.weight is [8, 3, 3, 3] in the file, [16, 3, 3, 3] in the network" in refusal(path)
    torch.save({**weights(), "linear.weight": torch.ones(17, 32), "linear.bias": torch.ones(17)}, path)
    assert "linear.weight is [17, 32] in the file, [10, 64] in the network (and 1 more differ)" in refusal(path)


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, protocol: int) -> None:
    path, marker = tmp_path / "weights.pt", tmp_path / "it ran"
    for content in (Bomb(marker), {"state_dict": weights(), "note": Bomb(marker)}):
        torch.save(content, path, pickle_protocol=protocol)
        refusal(path)
        path.write_bytes(pickle.dumps(content, protocol))
        assert "weights_only=False" not in refusal(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # so the bomb is a real one
    assert marker.exists()


def test_what_a_refused_pickle_would_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(Bomb(tmp_path / "it ran"), path)
    message = refusal(path)
    assert "is refused" in message and "posix.system" in message and "torch.save(network.state_dict(), FILE)" in message
    torch.save(build(), path)  # a whole network holds its classes
    assert "tasks.classification.networks.ResNet" in refusal(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
def test_a_truncated_file(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save(weights(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for part in (0, 1, 2, 100, 1000, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        assert "is damaged, or not a checkpoint" in refusal(path)


def test_a_truncated_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights(), path)
    whole = path.read_bytes()
    for part in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        assert "is damaged, or not a checkpoint" in refusal(path)


@pytest.mark.parametrize("suffix", ["pt", "th", "safetensors"])
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, suffix: str) -> None:
    """Whatever a few wrong bytes make of a file, no error comes out but the one line."""
    path, content, source = tmp_path / f"weights.{suffix}", nn.Linear(3, 2).state_dict(), random.Random(0)
    if suffix == "safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix == "pt")
    whole, refused = path.read_bytes(), []
    for _ in range(100):
        damaged = bytearray(whole)
        for position in source.sample(range(len(whole)), 3):
            damaged[position] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            load(nn.Linear(3, 2), path, NAME)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 20 and not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", b"<!DOCTYPE html>\n<html>", b"\x00" * 64],
    ids=["git-lfs", "html", "zeros"],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    assert "is damaged, or not a checkpoint" in refusal(path)


def test_a_program_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated, its files are still about
        torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)).save(path)
    assert "is refused: it is a TorchScript program" in refusal(path)
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), tmp_path / "weights.pth")
    assert "not a checkpoint" in refusal(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "holds no weights: it has 2 keys ('epoch', 'optimizer')"),
        ({"state_dict": {}}, "holds no weights: it has 1 key ('state_dict')"),
        ({}, "holds no weights: it has nothing"),
        (torch.ones(3), "holds a Tensor"),
        ([torch.ones(3)], "holds a list"),
        (3, "holds a int"),
        ({"model": "resnet20"}, "holds no weights: it has 1 key ('model')"),
        ({1: torch.ones(3)}, "does not fit"),
    ],
)
def test_a_file_without_weights(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert said in refusal(path)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "absent.pt cannot be read: No such file" in refusal(tmp_path / "absent.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "folder.pt cannot be read: Is a directory" in refusal(tmp_path / "folder.pt")
    assert "name the file of weights in it" in refusal(tmp_path / "folder.pt")
