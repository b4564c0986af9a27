"""A student that begins with its teacher's weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from harness import config, task
from harness.errors import UserError
from harness.networks import build, maps
from harness.networks.inheriting import Inherited, inherit


def network(name: str, where: str = "classification", classes: int = 5) -> nn.Module:
    return build.network(task.load(where), name, classes, 3)


def inherited(
    student: str, teacher: str, blocks: Any = None, where: str = "classification"
) -> tuple[nn.Module, nn.Module, Inherited]:
    torch.manual_seed(0)
    ours, theirs = network(student, where), network(teacher, where)
    for buffer in theirs.buffers():  # so that they differ from those of a fresh network
        buffer += 1
    return ours, theirs, inherit(ours, theirs, (student, teacher), blocks)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (None, {1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 2)}),
        ([0, 4, 8], {1: (0, 4, 8), 2: (0, 4, 8), 3: (0, 4, 8)}),
        ({"layer2": [0, 7, 8]}, {1: (0, 1, 2), 2: (0, 7, 8), 3: (0, 1, 2)}),
    ],
)
def test_a_stage_of_nine_blocks_gives_three(blocks: Any, expected: dict[int, tuple[int, ...]]) -> None:
    student, teacher, found = inherited("resnet20", "resnet56", blocks)
    assert found == Inherited(1.0, {f"layer{stage}": list(chosen) for stage, chosen in expected.items()})
    ours, theirs = student.state_dict(), teacher.state_dict()
    by_hand = {name: name for name in ours if not name.startswith("layer")}
    for stage, chosen in expected.items():
        for place, source in enumerate(chosen):
            prefix = f"layer{stage}.{place}."
            by_hand |= {
                name: name.replace(prefix, f"layer{stage}.{source}.") for name in ours if name.startswith(prefix)
            }
    assert by_hand.keys() == ours.keys()
    for name, source in by_hand.items():
        assert torch.equal(ours[name], theirs[source]), name


@pytest.mark.parametrize(
    ("student", "teacher", "where", "stages"),
    [
        ("wrn16_1", "wrn28_1", "classification", {f"layer{n}.layer": [0, 1] for n in (1, 2, 3)}),
        ("torchvision:resnet18", "torchvision:resnet34", "classification", {f"layer{n}": [0, 1] for n in (1, 2, 3, 4)}),
        ("timm:resnet18", "timm:resnet34", "classification", {f"layer{n}": [0, 1] for n in (1, 2, 3, 4)}),
        (
            "smp:DeepLabV3Plus/resnet18", "smp:DeepLabV3Plus/resnet34", "segmentation",
            {f"encoder.layer{n}": [0, 1] for n in (1, 2, 3, 4)},
        ),
    ],
)  # fmt: skip
def test_families_of_the_libraries(student: str, teacher: str, where: str, stages: dict[str, list[int]]) -> None:
    ours, theirs, found = inherited(student, teacher, where=where)
    assert found == Inherited(1.0, stages)
    name = f"{next(iter(stages))}.1"
    assert ours.get_submodule(name).state_dict().keys() == theirs.get_submodule(name).state_dict().keys()
    mine, its = (dict(module.get_submodule(name).named_parameters()) for module in (ours, theirs))
    assert all(torch.equal(mine[key], its[key]) for key in mine)


def test_what_has_another_shape_stays_fresh_and_the_share_says_so() -> None:
    student, teacher, found = inherited("wrn16_1", "wrn16_2")
    same = ("conv1.weight", "layer1.layer.0.bn1.weight", "layer1.layer.0.bn1.bias", "linear.bias")
    sizes = {name: values.numel() for name, values in student.named_parameters()}
    assert found == Inherited(sum(sizes[name] for name in same) / sum(sizes.values()), {})
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"])
    assert torch.equal(ours["layer1.layer.0.bn1.running_mean"], theirs["layer1.layer.0.bn1.running_mean"])
    assert ours["linear.weight"].shape != theirs["linear.weight"].shape


def test_layers_one_after_another_are_no_blocks() -> None:
    _, _, found = inherited("vgg11_bn", "vgg16_bn")
    assert found.blocks == {} and 0 < found.share < 1


def test_nothing_in_common_is_refused_with_both_first_names() -> None:
    with pytest.raises(UserError) as caught:
        inherited("vgg11_bn", "resnet20")
    assert str(caught.value) == (
        "student.start=teacher: vgg11_bn and resnet20 have no layer's weight in common: the first one's is "
        "'features.0.weight' [64, 3, 3, 3], the other's 'conv1.weight' [16, 3, 3, 3]: set student.start=fresh"
    )


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([0, 1], "=[0, 1]: layer1 has 3 blocks in the student, 5 in the teacher: expected 3 numbers from 0 to 4"),
        ([0, 1, 5], "student.blocks=[0, 1, 5]: layer1 has 3 blocks"),
        ({"layer2": [0, 1, "x"]}, "student.blocks=[0, 1, 'x']: layer2 has 3 blocks"),
        ({"layer4": [0]}, "student.blocks.layer4: no such stage with fewer blocks; did you mean"),
        ([1, 2, 3], "student.blocks=[1, 2, 3]: the teacher's layer2.1 has not the shape of the student's layer2.0"),
    ],
)  # fmt: skip
def test_blocks_that_do_not_fit(blocks: Any, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        inherited("resnet20", "resnet32", blocks)


def test_blocks_where_no_stage_has_fewer() -> None:
    with pytest.raises(UserError, match=r"^student\.blocks=\[0\]: no stage of the student has fewer blocks"):
        inherited("resnet20", "resnet20", [0])


def test_blocks_by_a_path_with_dots() -> None:
    _, _, found = inherited("wrn16_1", "wrn28_1", {"layer2": {"layer": [0, 3]}})
    assert found.blocks == {"layer1.layer": [0, 1], "layer2.layer": [0, 3], "layer3.layer": [0, 1]}


def test_blocks_behind_a_plain_layer_of_their_stage_are_compared_with_those_they_come_from() -> None:
    def net(count: int) -> nn.Module:
        blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(count)]
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        return nn.ModuleDict({"stage": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks), "head": head})

    class Net(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.parts = net(count)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.parts["head"](self.parts["stage"](x))
            return answer

    student, teacher = Net(2), Net(4)
    settings = config.build({"task": "classification", "classes": 5, "input": {"size": 8}})
    theirs, ours = maps.shared_blocks(settings, teacher, student, {"parts.stage": [0, 1, 3]})
    stage, other = student.parts["stage"], teacher.parts["stage"]
    assert ours == [stage[1], stage[2]]
    assert theirs == [other[2], other[4]], "each does the work up to the next one that was kept"
