"""Generators make the shapes they promise and refuse those they cannot."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from harness.algorithm import generators


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("upsample", (1, 8, 8)),
        ("affine", (3, 8, 12)),
        ("pixels", (3, 8, 12)),
        ("upsample", (3, 32, 32)),
        ("upsample", (3, 28, 20)),
        ("dcgan", (3, 32, 48)),
    ],
)
def test_shapes(name: str, shape: tuple[int, int, int]) -> None:
    generator = generators.build(name, 16, shape, width=8)
    assert generator(torch.randn(3, 16)).shape == (3, *shape)


def test_upsample_makes_normalised_images() -> None:
    x = generators.build("upsample", 16, (3, 8, 8), width=8)(torch.randn(64, 16))
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-2)


def test_affine_learns_the_scale_of_each_channel() -> None:
    generator = generators.build("affine", 16, (3, 8, 8), width=8)
    *_, last = generator.modules()
    assert isinstance(last, nn.BatchNorm2d) and last.affine
    with torch.no_grad():
        last.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(generator(torch.randn(64, 16)).std((0, 2, 3)), torch.tensor([1.0, 2.0, 3.0]), rtol=1e-2)


def test_pixels_are_normalised_as_the_teacher_expects() -> None:
    torch.manual_seed(0)
    generator = generators.build("pixels", 16, (3, 8, 8), 8, ([0.5, 0.5, 0.0], [0.5, 0.25, 1.0]))
    x = generator(100 * torch.randn(64, 16))
    for channel, (low, high) in enumerate([(-1, 1), (-2, 2), (0, 1)]):
        assert low <= x[:, channel].min() < x[:, channel].max() <= high
    torch.manual_seed(0)
    pixels = generators.build("pixels", 16, (3, 8, 8), 8)(100 * torch.randn(64, 16))
    assert torch.allclose(x[:, 1], (pixels[:, 1] - 0.5) / 0.25)
    assert not [name for name in generator.state_dict() if "mean" in name and "running" not in name]


def test_dcgan_starts_from_small_normal_weights() -> None:
    weights = [
        m.weight for m in generators.build("dcgan", 100, (3, 32, 32)).modules() if isinstance(m, nn.ConvTranspose2d)
    ]
    assert len(weights) == 4
    assert all(abs(weight.std().item() - 0.02) < 2e-3 for weight in weights)


@pytest.mark.parametrize(("name", "size", "nearest"), [("upsample", 30, 32), ("dcgan", 36, 32), ("dcgan", 5, 16)])
def test_sides_that_do_not_fit_are_refused_with_the_nearest(name: str, size: int, nearest: int) -> None:
    with pytest.raises(ValueError, match=f"the nearest is {nearest}"):
        generators.build(name, 16, (3, size, 64))


@pytest.mark.parametrize("name", generators.GENERATORS)
def test_no_bias_before_a_batch_norm(name: str) -> None:
    layers = list(generators.build(name, 16, (3, 32, 32), width=8).modules())
    for layer, after in itertools.pairwise(layers):
        if isinstance(after, nn.BatchNorm2d) and isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias is None
