"""Networks that take only some sizes: found by trying, refused in a run, resized for in an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import config, task
from harness.errors import UserError
from harness.networks import roles, sizes
from harness.networks.layers import evaluating
from harness.training.evaluate import Fitted


class Halving(nn.Module):
    """A map [B, 3, H, W] -> [B, 3, H, W] that goes down `times` and back: sides divisible by 2 ** times."""

    def __init__(self, times: int, strict: bool = True) -> None:
        super().__init__()
        self.times, self.strict = times, strict
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(self.times):
            y = F.avg_pool2d(y, 2)
        y = F.interpolate(y, scale_factor=2.0**self.times)
        return (y + x if self.strict else y) * self.weight


@pytest.mark.parametrize("strict", [True, False], ids=["raises", "answers smaller"])
@pytest.mark.parametrize(
    ("times", "given", "expected"),
    [(3, (180, 240), (184, 240)), (4, (180, 240), (176, 240)), (5, (180, 240), (192, 256)), (3, (3, 16), (8, 16))],
)
def test_nearest(strict: bool, times: int, given: tuple[int, int], expected: tuple[int, int]) -> None:
    assert sizes.nearest(Halving(times, strict), torch.zeros(1, 3, *given)) == expected


def test_no_size_will_do() -> None:
    assert sizes.nearest(nn.Conv2d(4, 1, 3), torch.zeros(1, 3, 8, 8)) is None


def test_images_and_logits_are_resized_and_it_is_stated() -> None:
    fitted = Fitted(Halving(3), (8, 8))
    x = torch.arange(3.0)[None, :, None, None].expand(2, 3, 180, 240)
    with evaluating([fitted.network]):
        y = fitted(x, (90, 120))
        fitted(x, (90, 120))
    assert y.shape == (2, 3, 90, 120) and torch.allclose(y, 2 * x[..., :90, :120])
    assert fitted.sizes == [{"image": [180, 240], "network": [184, 240], "labels": [90, 120]}]


def test_images_for_a_network_of_one_size_are_resized_to_it() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 8 * 8), nn.Unflatten(1, (1, 8, 8)))
    fitted = Fitted(network, (8, 8))
    with evaluating([network]):
        assert fitted(torch.zeros(2, 3, 50, 70), (50, 70)).shape == (2, 1, 50, 70)
    assert fitted.sizes == [{"image": [50, 70], "network": [8, 8], "labels": [50, 70]}]


def test_a_classifier_that_takes_the_size_leaves_no_record() -> None:
    fitted = Fitted(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (8, 8))
    with evaluating([fitted.network]):
        assert fitted(torch.ones(2, 3, 8, 8), ()).shape == (2, 3)
        assert fitted.sizes == []
        fitted(torch.ones(2, 3, 7, 7), ())
    assert fitted.sizes == [{"image": [7, 7], "network": [7, 7]}], "not the run's size"


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        ("smp:DeepLabV3Plus/resnet18", 100, "input.size=96"),
        ("smp:FPN/resnet18", [100, 128], "input.size=[96, 128]"),
        ("unet4", 30, None),
    ],
)
def test_a_run_is_refused_with_the_nearest_size(network: str, size: object, expected: str | None) -> None:
    student = {"network": network}
    settings = config.build({"task": "segmentation", "classes": 3, "student": student, "input": {"size": size}})
    if expected is None:
        roles.student(settings)
        return
    with pytest.raises(UserError) as caught:
        roles.student(settings)
    line = str(caught.value)
    assert f"the nearest it takes is {expected}: " in line and "\n" not in line


def test_a_classifier_is_no_segmentation_network() -> None:
    student = {"network": "torchvision:resnet18"}
    settings = config.build({"task": "segmentation", "classes": 3, "student": student, "input": {"size": 32}})
    with pytest.raises(UserError, match=r"answers with \[2, 3\], expected logits \[2, 3, 32, 32\] of 3 classes$"):
        roles.student(settings)


@pytest.mark.parametrize("network", ["torchvision:lraspp_mobilenet_v3_large", "smp:Unet/mobilenet_v2"])
def test_libraries_networks_answer_each_pixel(network: str) -> None:
    settings = config.build({"task": "segmentation", "classes": 3, "student": {"network": network}})
    module = roles.student(settings)
    with evaluating([module]):
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, *task.load("segmentation").answer_shape(3, 32, 32))


@pytest.mark.parametrize("strict", [True, False], ids=["raises", "answers smaller"])
@pytest.mark.parametrize(
    ("times", "given", "expected"), [(0, (7, 9), 1), (3, (16, 32), 8), (4, (16, 16), 16), (3, (12, 16), None)]
)
def test_what_sides_may_vary_by(strict: bool, times: int, given: tuple[int, int], expected: int | None) -> None:
    assert sizes.multiple(Halving(times, strict), torch.zeros(1, 3, *given)) == expected


def test_a_network_of_one_size_has_fixed_sides() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 8 * 8), nn.Unflatten(1, (1, 8, 8)))
    assert sizes.multiple(network, torch.zeros(1, 3, 8, 8)) is None
