"""Every network by name: its size as the literature gives it, the shapes of its answers, and what a wrong name gets."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness import files, task
from harness.errors import UserError
from harness.networks import layers, own_file
from harness.networks.build import network
from tasks.classification.networks import NAMES, PadShortcut
from tests.helpers import ROOT

CLASSIFICATION = task.load("classification")
EXAMPLE = f"{ROOT / 'examples' / 'karanchahal_resnet.py'}"


def build(name: str, classes: int = 10, channels: int = 3, **arguments: Any) -> nn.Module:
    return network(CLASSIFICATION, name, classes, channels, arguments)


def refusal(call: Callable[..., Any], *args: Any, **keywords: Any) -> str:
    """The one line that a mistake gets."""
    with pytest.raises(UserError) as caught:
        call(*args, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


# With 10 classes and RGB: He et al. 2016 table 6 (0.27, 0.46, 0.66, 0.85, 1.7 M), Zagoruyko and Komodakis 2016 table 4
# (WRN-40-1 0.6 M, WRN-40-2 2.2 M), and what public CIFAR code counts for the rest.
PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "wrn16_1": 175_066,
    "wrn16_2": 691_674,
    "wrn28_1": 369_498,
    "wrn28_10": 36_479_194,
    "wrn40_1": 563_930,
    "wrn40_2": 2_243_546,
    "vgg11_bn": 9_228_362,
    "vgg13_bn": 9_413_066,
    "vgg16_bn": 14_724_042,
    "mobilenetv2": 2_236_682,
    "shufflenetv2": 1_263_854,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        assert layers.num_parameters(build(name)) == count


def test_the_digits_student_has_a_seventh_of_its_teacher() -> None:
    teacher, student = (layers.num_parameters(build(name, channels=1)) for name in ("cnn32", "cnn12"))
    assert (teacher, student) == (56_554, 8_254)
    assert 6.5 < teacher / student < 7.5


@pytest.mark.parametrize("name", NAMES)
def test_every_name_answers_with_logits(name: str) -> None:
    module = build(name, classes=7)
    assert module(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    for layer in module.modules():  # a bias before a batch norm has no gradient but noise
        assert not isinstance(layer, nn.Conv2d) or layer.bias is None
    assert layers.head(module) is [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("cnn32", 1, 8),
        ("lenet5", 1, 28),
        ("resnet20", 1, 28),
        ("wrn16_1", 3, 33),
        ("vgg11_bn", 1, 28),
        ("resnet18", 3, 64),
    ],
)
def test_other_sizes_and_channels(name: str, channels: int, size: int) -> None:
    module = build(name, channels=channels)
    assert module(torch.randn(2, channels, size, size)).shape == (2, 10)


def test_parameter_names_are_those_of_the_public_checkpoints() -> None:
    with torch.device("meta"):
        deep, small, wide = (set(build(name).state_dict()) for name in ("resnet18", "resnet20", "wrn16_1"))
    assert {"conv1.weight", "bn1.bias", "layer2.0.shortcut.0.weight", "layer4.1.bn2.running_var", "linear.bias"} <= deep
    assert {"conv1.weight", "layer3.2.conv2.weight", "linear.weight"} <= small
    assert not any("shortcut" in key for key in small)
    assert {"layer1.layer.0.bn1.weight", "layer2.layer.0.convShortcut.weight", "bn1.weight", "linear.weight"} <= wide
    assert "layer1.layer.0.convShortcut.weight" not in wide


def test_option_a_takes_every_second_pixel_between_channels_of_zeros() -> None:
    x = torch.arange(2 * 9, dtype=torch.float32).reshape(1, 2, 3, 3)
    corners = torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    zeros = torch.zeros(2, 2)
    assert torch.equal(PadShortcut(2, 4)(x), torch.stack([zeros, corners, corners + 9, zeros])[None])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet21", "'resnet20'"),
        ("", "known: cnn12"),
        ("wrn17_1", "6n + 4"),
        ("wrn4_1", "6n + 4"),
        ("wrn16_0", "WIDTH"),
        ("cnn0", "unknown network 'cnn0'"),
        ("nets.py", "path/to/file.py:function"),
        ("hub:resnet18", "path/to/file.py:function"),
        ("timm:resnet19", "resnet18"),
        ("timm:resnet18.no_such_tag", "no_such_tag"),
        ("torchvision:resnet19", "resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown network"),
        ("smp:Unet", "smp:ARCH/ENCODER"),
        ("smp:Unett/resnet18", "Unet"),
        ("smp:Unet/resnet19", "resnet18"),
    ],
)
def test_an_unknown_name_is_answered_with_known_ones(name: str, said: str) -> None:
    assert said in refusal(build, name)


def test_arguments_that_do_not_fit() -> None:
    assert refusal(build, "resnet20", width=3) == (
        "network 'resnet20' takes no arguments, got width=3: remove them, or use a file of your own"
    )
    assert "classes" in refusal(network, CLASSIFICATION, "resnet20", 10, 3, {"classes": 5})
    assert "no_such" in refusal(build, "timm:resnet18", no_such=1)
    assert "no_such" in refusal(build, "torchvision:resnet18", no_such=1)
    assert "no_such" in refusal(build, "smp:Unet/resnet18", no_such=1)


def test_timm_takes_classes_channels_and_arguments() -> None:
    module = build("timm:resnet10t", classes=5, channels=1, drop_rate=0.25)
    assert module(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert getattr(module, "drop_rate") == 0.25  # noqa: B009  # not an attribute of nn.Module


def test_torchvision_without_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert build("torchvision:squeezenet1_1", classes=5)(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    x = torch.randn(2, 3, 32, 64)
    module = build("torchvision:lraspp_mobilenet_v3_large", classes=4).eval()
    assert module(x).shape == (2, 4, 32, 64)
    bare = models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4)
    bare.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected = bare.eval()(x)["out"]
        assert torch.equal(module(x), expected)
        assert torch.equal(copy.deepcopy(module)(x), expected)
    assert not list(tmp_path.iterdir())
    assert "use timm:NAME" in refusal(build, "torchvision:resnet18", channels=1)


def test_segmentation_models_pytorch() -> None:
    module = build("smp:DeepLabV3Plus/resnet18", classes=4, channels=1).eval()
    assert module(torch.randn(1, 1, 32, 48)).shape == (1, 4, 32, 48)
    head = layers.head(module)
    assert isinstance(head, nn.Conv2d) and head.out_channels == 4


OWN = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Sizes:
    hidden: int = 5

def net(classes, channels=3, hidden=Sizes().hidden):
    features = nn.Sequential(nn.Conv2d(channels, hidden, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return features.append(nn.Linear(hidden, classes))

def fixed():
    return net(4)

def passes_on(**keywords):
    return net(**keywords)

class Net(nn.Linear):
    def __init__(self, classes):
        super().__init__(6, classes)

def number(classes):
    return classes

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

def fails(classes):
    raise RuntimeError("no luck\\ntoday")

setting = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], str]:
    """Names a function in a user's file."""
    path = tmp_path / "my nets.py"
    path.write_text(OWN)
    return lambda function: f"{path}:{function}"


def test_a_users_own_file(own: Callable[[str], str], tmp_path: Path) -> None:
    x = torch.randn(2, 1, 9, 9)
    assert build(own("net"), classes=7, channels=1)(x).shape == (2, 7)
    assert layers.head(build(own("net"), hidden=11)).in_features == 11
    assert layers.head(build(own("fixed"), classes=7)).out_features == 4
    assert build(own("passes_on"), classes=7, channels=1)(x).shape == (2, 7)
    assert layers.head(build(own("Net"), classes=7)).out_features == 7
    assert own_file.source_file(own("net")) == tmp_path / "my nets.py"
    assert own_file.source_file("resnet20") is None and own_file.source_file("timm:resnet18") is None


def test_the_example_is_such_a_file() -> None:
    for name, count in (("resnet8", 89_322), ("resnet14", 186_538), ("resnet26", 380_970)):
        module = build(f"{EXAMPLE}:{name}")
        assert layers.num_parameters(module) == count
        assert module(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nett", "has no function 'nett'; did you mean 'net'"),
        ("setting", "has no function 'setting'"),
        ("", "path/to/file.py:function"),
        ("number", "expected a torch.nn.Module, got int"),
        ("fails", "RuntimeError: no luck today"),
        ("lazy", "has lazy layers, which have no weights before their first input (1.weight): give them their sizes"),
    ],
)
def test_a_users_function_that_does_not_work(own: Callable[[str], str], function: str, said: str) -> None:
    assert said in refusal(build, own(function))


def test_a_users_function_called_wrongly(own: Callable[[str], str]) -> None:
    assert "unexpected keyword argument 'width'" in refusal(build, own("net"), width=3)
    assert "unexpected keyword argument 'width'" in refusal(build, own("fixed"), width=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def net(:", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("\0", "source code string cannot contain null bytes"),
        ("", "it defines none"),
    ],
)
def test_a_users_file_that_cannot_be_imported(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    message = refusal(build, f"{path}:net")
    assert said in message and str(path) in message


def test_a_users_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refusal(build, f"{tmp_path / 'absent.py'}:net")
    (tmp_path / "folder.py").mkdir()
    assert "folder.py cannot be read" in refusal(build, f"{tmp_path / 'folder.py'}:net")


def test_features_are_the_input_of_the_head() -> None:
    module, x = build("resnet20").eval(), torch.randn(2, 3, 32, 32)
    with layers.observe_features(module) as features:
        logits = module(x)
    module(x)  # outside the context nothing is collected
    assert len(features) == 1 and features[0].shape == (2, 64)
    assert torch.equal(layers.head(module)(features[0]), logits)
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU())
    assert layers.head(convolutions) is convolutions[2]
    assert "neither a linear layer nor a convolution" in refusal(layers.head, nn.ReLU())


@pytest.mark.parametrize("name", ["smp:Segformer/resnet18", "smp:Unet/mit_b0"])
def test_the_head_of_a_segmentation_network_with_linear_layers(name: str) -> None:
    module = network(task.load("segmentation"), name, 5, 3).eval()
    head = layers.head(module, 5)
    assert head is module.segmentation_head[0]
    with torch.no_grad(), layers.observe_features(module, 5) as features:
        module(torch.zeros(2, 3, 64, 64))
    assert features[0].dim() == 4


def test_a_file_is_recorded_by_path_size_and_digest(tmp_path: Path) -> None:
    Path("weights.pt").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert files.file_record(Path("weights.pt")) == {"path": f"{tmp_path}/weights.pt", "size": 3, "sha256": digest}
    assert "absent.pt cannot be read: No such file" in refusal(files.sha256, Path("absent.pt"))
