"""Least-squares reconstruction against networks whose best weights are known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from harness.networks.reconstruct import reconstruct

KEPT = {"0": {"out": [0, 1, 2]}, "1": {"out": [0, 1, 2]}, "3": {"in": [0, 1, 2]}}


def doubled(bias: bool) -> nn.Sequential:
    """conv, batch norm, ReLU, conv, batch norm, in which channels 3 to 5 between the convolutions equal 0 to 2."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1, stride=2, bias=bias), nn.BatchNorm2d(4),
    ).double()  # fmt: skip
    network[0].weight.data[3:] = network[0].weight.data[:3]
    network[4].running_mean.uniform_(-1, 1)
    network[4].running_var.uniform_(0.5, 2)
    return network.eval()


def halved(network: nn.Sequential) -> nn.Sequential:
    """The network without channels 3 to 5."""
    student = copy.deepcopy(network)
    first, norm, last = student[0], student[1], student[3]
    first.weight, first.out_channels = nn.Parameter(first.weight.data[:3]), 3
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name).data[:3]))
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[:3])
    norm.num_features = last.in_channels = 3
    last.weight = nn.Parameter(last.weight.data[:, :3])
    return student


def images(count: int = 2) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 10, 10, generator=source, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("bias", [True, False])
def test_channels_that_equal_others_can_be_removed(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.networks.reconstruct.RIDGE", 1e-9)
    teacher = doubled(bias)
    student = halved(teacher)
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    assert (student(x) - teacher(x)).abs().max() > 0.1
    assert reconstruct(teacher, student, KEPT, images()) == ["3"]
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_removed_constant_goes_into_the_bias_or_the_batch_norm(bias: bool) -> None:
    teacher = doubled(bias)
    teacher[0].weight.data[3:] = 0  # these channels are the batch norm's constant, 0 or above
    teacher[1].bias.data[3:] = torch.tensor([0.5, 1.0, 2.0])
    teacher[3].padding = (0, 0)  # at a padded edge they would not be constant
    student = halved(teacher)
    reconstruct(teacher, student, KEPT, images())
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    assert (student(x) - teacher(x)).abs().max() < 0.05 * teacher(x).abs().max()


def test_processes_that_add_up_their_sums_find_what_one_finds() -> None:
    teacher = doubled(False)
    alone, first = halved(teacher), halved(teacher)
    reconstruct(teacher, alone, KEPT, images(2))
    parts: list[torch.Tensor] = []
    reconstruct(teacher, halved(teacher), KEPT, images(2)[1:], lambda sums: parts.append(sums) or sums)  # type: ignore[func-returns-value]
    reconstruct(teacher, first, KEPT, images(2)[:1], lambda sums: sums + parts[0])
    torch.testing.assert_close(first.state_dict(), alone.state_dict(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(64,), (4, 2, 8)], ids=["rows", "a map, channels last, as ConvNeXt's"])
def test_a_linear_layer_is_fitted_and_the_modes_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    teacher[0].weight.data[2:], teacher[0].bias.data[2:] = teacher[0].weight.data[:2], teacher[0].bias.data[:2]
    student = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    student[0].weight.data, student[0].bias.data = teacher[0].weight.data[:2], teacher[0].bias.data[:2]
    x = torch.randn(*shape, 5, dtype=torch.float64)
    assert reconstruct(teacher, student, {"0": {"out": [0, 1]}, "2": {"in": [0, 1]}}, [x]) == ["2"]
    assert (student(x) - teacher(x)).abs().max() < 1e-2
    assert teacher.training and student.training
