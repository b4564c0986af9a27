"""`teacher.checkpoint=pretrained`: what timm and torchvision publish, from their caches; one line without a network."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import nn
from torchvision import models

from harness import config, resolve, task
from harness.config import Config
from harness.errors import UserError
from harness.networks import build, pretrained, roles, sources
from harness.training import teaching
from tests.fake_hub import point

TIMM, TORCHVISION = "timm:test_resnet", "torchvision:squeezenet1_1"

CACHED = {"squeezenet1_1": "hub/checkpoints/squeezenet1_1-b8a52dc0.pth"}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of the libraries, and no network: nobody listens at the hub's endpoint and at the proxy."""
    point(monkeypatch, "http://127.0.0.1:9", tmp_path / "hf")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def settings(network: str = TIMM, classes: int = 1000, **teacher: Any) -> Config:
    return config.build(
        {
            "task": "classification",
            "classes": classes,
            "input": {"size": 64},
            "teacher": {"network": network, "checkpoint": "pretrained", **teacher},
            "student": {"network": "cnn4"},
        }
    )


def other_values(module: nn.Module) -> nn.Module:
    """The network with weights that no fresh one has."""
    with torch.no_grad():
        for value in module.state_dict().values():
            value += 1
    return module


def of_timm(place: Path, name: str = "test_resnet.r160_in1k") -> nn.Module:
    """A network whose weights lie in the cache as the hub's own download leaves them."""
    module = other_values(timm.create_model(name, pretrained=False))
    folder, commit = place / "hf/hub" / f"models--timm--{name}", "c" * 40
    for path, content in {
        folder / "refs/main": commit.encode(),
        folder / f"snapshots/{commit}/model.safetensors": safetensors.torch.save(module.state_dict()),
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return module.eval()


def of_torchvision(place: Path) -> nn.Module:
    module = other_values(models.squeezenet1_1())
    path = place / "torch" / CACHED["squeezenet1_1"]
    path.parent.mkdir(parents=True)
    torch.save(module.state_dict(), path)
    return module.eval()


@pytest.mark.parametrize(
    ("name", "made"), [(TIMM, of_timm), (TORCHVISION, of_torchvision)], ids=["timm", "torchvision"]
)
def test_weights_in_the_cache_are_the_teachers(caches: Path, name: str, made: Any) -> None:
    theirs, chosen = made(caches), settings(name)
    teacher, x = roles.teacher(chosen).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(teacher(x), theirs(x))
    record = sources.records(chosen)["teacher.checkpoint"]
    assert record["sha256"] == hashlib.sha256(Path(record["path"]).read_bytes()).hexdigest()
    assert sources.recorded(record) == "pretrained" and sources.change("teacher.checkpoint", record) is None
    Path(record["path"]).write_bytes(b"changed")
    assert "is not the file the run began with" in str(sources.change("teacher.checkpoint", record))


@pytest.mark.parametrize(
    "name", [TIMM, TORCHVISION, "timm:test_vit.r160_in1k", "smp:Unet/resnet18", "smp:Unet/tu-test_resnet"]
)
def test_without_a_network_one_line_says_what_to_do(caches: Path, name: str) -> None:
    def made() -> nn.Module:
        if name.startswith("smp:"):
            return build.network(task.load("segmentation"), name, 5, 3, {"encoder_weights": "imagenet"})
        return roles.teacher(settings(name))

    with pytest.raises(UserError) as caught:
        made()
    message = str(caught.value)
    assert "\n" not in message and "without a network" in message and str(caches) in message


def test_a_cached_pickle_runs_nothing(caches: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (caches / "ran",)

    path = caches / "torch" / CACHED["squeezenet1_1"]
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(UserError, match="could not be built"):
        roles.teacher(settings(TORCHVISION))
    given = {"checkpoint_path": str(path)}  # an argument of timm's own
    with pytest.raises(UserError, match="could not be built"):
        build.network(task.load("classification"), TIMM, 10, 3, given)
    assert not (caches / "ran").exists()


def test_other_classes_and_channels_are_refused(caches: Path) -> None:
    of_timm(caches)  # timm itself would give a head of random weights
    with pytest.raises(UserError, match=r"classes=10: the weights of timm:test_resnet\.r160_in1k have 1000: set"):
        roles.teacher(settings(classes=10))
    with pytest.raises(UserError, match=r"teacher\.channels=gray"):
        roles.teacher(settings(channels="gray"))


@pytest.mark.parametrize(
    ("network", "arguments", "says"),
    [
        ("resnet20", {}, "no published weights"),
        ("smp:Unet/resnet18", {}, "smp has weights of encoders"),
        ("timm:efficientnet_lite1", {}, "timm publishes no weights"),
        ("timm:test_resnet.r16_in1k", {}, "did you mean 'r160_in1k'"),
        ("timm:test_resnot", {}, "did you mean 'test_resnet'"),
        ("torchvision:resnot18", {}, "did you mean"),
        (TORCHVISION, {"weights": "IMAGENET1K_V2"}, "did you mean 'IMAGENET1K_V1'"),
        (TORCHVISION, {"weights": 7}, "no such weights"),
    ],
)
def test_weights_that_nobody_publishes(network: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        pretrained.find(network, arguments)


@pytest.mark.parametrize(
    ("network", "arguments"),
    [(TIMM, {"pretrained": True}), (TORCHVISION, {"weights": "DEFAULT"}), (TORCHVISION, {"pretrained": 1})],
)
def test_weights_are_named_by_the_checkpoint_alone(network: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no argument here: teacher\.checkpoint=pretrained takes"):
        build.network(task.load("classification"), network, 1000, 3, arguments)


def resolved(recipe: str = "classification", **teacher: Any) -> tuple[Config, list[str]]:
    said: list[str] = []
    over = {
        "classes": 1000,
        "teacher": {"network": TORCHVISION, "checkpoint": "pretrained", **teacher},
        "student": {"network": "cnn4"},
    }
    return resolve.resolve(recipe, None, over, say=said.append), said


def test_normalisation_is_the_weights_own_where_none_is_given() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    chosen, said = resolved()
    assert (chosen.teacher.mean, chosen.teacher.std) == (mean, std)
    values = f"teacher.mean={mean}, teacher.std={std}"
    assert said == [f"{values}: as the weights expect that torchvision:squeezenet1_1 is published with"]
    replayed: list[str] = []
    assert resolve.resolve(None, config.to_dict(chosen), {}, say=replayed.append) == chosen and not replayed
    assert resolved(network=TIMM)[0].teacher.mean == [0.5, 0.5, 0.5]
    chosen, said = resolved(mean=[0.1, 0.2, 0.3])
    assert (chosen.teacher.mean, chosen.teacher.std) == ([0.1, 0.2, 0.3], std) and "mean" not in said[0]
    assert resolved("cifar10-resnet34-resnet18")[0].teacher.mean == mean, (
        "not the recipe's, which is of its own teacher"
    )
    assert resolved(checkpoint="x.pth")[0].teacher.mean is None
    with pytest.raises(UserError, match=r"teacher\.channels=gray: the weights of torchvision:squeezenet1_1"):
        resolved(channels="gray")
    chosen, said = resolved("digits")
    assert (chosen.teacher.channels, chosen.teacher.mean) == ("rgb", mean) and "teacher.channels=rgb" in said[0]


def test_nothing_is_taught_into_what_is_not_a_file() -> None:
    for checkpoint in ("pretrained", "hub:a/b/model.safetensors"):
        with pytest.raises(UserError, match="expected the file that the teacher is to be written to"):
            teaching.target(settings(checkpoint=checkpoint))


def test_an_encoders_weights_are_not_fetched_for_a_network_that_has_its_own(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # timm and smp then look into the cache at once
    name, arguments = (
        "smp:Unet/tu-test_resnet",
        {"encoder_weights": True, "encoder_depth": 3, "decoder_channels": [8, 4, 4]},
    )
    plain = {key: value for key, value in arguments.items() if key != "encoder_weights"}
    own = build.network(task.load("segmentation"), name, 5, 3, plain)
    torch.save(own.state_dict(), "own.pth")
    chosen = config.build(
        {
            "task": "segmentation",
            "classes": 5,
            "input": {"size": 64},
            "teacher": {"network": name, "arguments": arguments, "checkpoint": "own.pth"},
        }
    )
    loaded = roles.teacher(chosen).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in own.state_dict().items())
    theirs = of_timm(caches).state_dict()
    fresh = build.network(task.load("segmentation"), name, 5, 3, arguments).state_dict()
    assert torch.equal(fresh["encoder.model.conv1.0.weight"], theirs["conv1.0.weight"])
