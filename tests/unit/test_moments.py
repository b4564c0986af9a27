"""The teacher's batch-norm statistics: values by hand, gradients by finite differences, layers of every kind."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from harness.algorithm import losses, moments
from harness.algorithm.turns import combine


def distance(module: nn.Module, x: Tensor, form: str) -> Tensor:
    with moments.observe(module) as found:
        module(x)
    return combine({"batch_norm": (1.0, losses.batch_norm(found, form))}, lambda sums: sums).total


def layer_with(mean: list[float], var: list[float]) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(len(mean)).double().eval()
    layer.running_mean = torch.tensor(mean, dtype=torch.float64)
    layer.running_var = torch.tensor(var, dtype=torch.float64)
    return layer


def test_norm_form_by_hand() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, 14.0]], dtype=torch.float64)  # means 2, 12; biased variances 1, 4
    layer = layer_with([2.0 - 3.0, 12.0 - 4.0], [1.0 + 6.0, 4.0 + 8.0])
    assert distance(layer, x, "norm").item() == pytest.approx(5.0 + 10.0)


def test_kl_form_by_hand() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, 14.0]], dtype=torch.float64)
    layer = layer_with([1.0, 12.0], [2.0, 4.0])
    first = ((2 - 1) ** 2 + 1) / (2 * 2) - math.log(1 / 2) / 2 - 0.5
    second = (0 + 4) / (2 * 4) - math.log(1) / 2 - 0.5
    assert distance(layer, x, "kl").item() == pytest.approx((first + second) / 2)


def test_kl_form_floors_a_vanished_variance() -> None:
    layer = layer_with([0.0], [1.0])
    expected = layer.eps / 2 - math.log(layer.eps) / 2 - 0.5
    assert distance(layer, torch.zeros(4, 1, dtype=torch.float64), "kl").item() == pytest.approx(expected)


def test_matches_the_statistics_batch_norm_itself_computes() -> None:
    x = torch.randn(8, 3, 5, 5) * 2 + 7
    learner = nn.BatchNorm2d(3, momentum=1.0)
    learner(x)  # its running statistics become this batch's
    assert learner.running_mean is not None and learner.running_var is not None
    judge = nn.BatchNorm2d(3).eval()
    judge.running_mean = learner.running_mean
    judge.running_var = learner.running_var * (199 / 200)  # ours is the biased variance
    assert distance(judge, x, "norm").item() == pytest.approx(0.0, abs=1e-5)


def test_large_means_do_not_spoil_the_variance() -> None:
    layer = nn.BatchNorm1d(1).eval()
    layer.running_mean, layer.running_var = torch.tensor([1e5]), torch.tensor([1e-2])
    x = (1e5 + 0.1 * torch.tensor([[-1.0], [1.0]])).float()
    exact = (x.double() - x.double().mean()).square().mean().item()
    assert distance(layer, x, "norm").item() == pytest.approx(
        abs(exact - 1e-2) + abs(x.double().mean().item() - 1e5), abs=1e-3
    )


@pytest.mark.parametrize("form", ["norm", "kl"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 2, 2)])
def test_gradcheck(form: str, shape: tuple[int, ...]) -> None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    layer = kind(3).double().eval()
    layer.running_mean = torch.randn(3, dtype=torch.float64)
    layer.running_var = torch.rand(3, dtype=torch.float64) + 0.5
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: distance(layer, x, form), (x,))


def test_gradient_at_distance_zero_is_zero() -> None:
    x = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    layer = nn.BatchNorm1d(1).eval()  # mean 0 and variance 1, which is what x has
    distance(layer, x, "norm").backward()
    assert x.grad is not None and torch.equal(x.grad, torch.zeros(2, 1))


def test_layers_that_never_fire_and_other_norms_are_tolerated() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
            self.group, self.stateless = nn.GroupNorm(1, 2), nn.BatchNorm2d(2, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.stateless(self.group(self.used(x)))
            return output

    network = Network().eval()
    with moments.observe(network) as found:
        network(torch.randn(2, 2, 3, 3))
    assert len(found) == 1


def test_timm_variants_are_seen() -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNormAct2d)]
    with moments.observe(network) as found:
        network(torch.randn(2, 3, 32, 32))
    assert layers and len(found) == len(layers)


def test_no_state_stays_behind() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2)).eval()
    with moments.observe(network):
        network(torch.randn(2, 2, 3, 3))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_reduced_precision_is_summed_in_fp32() -> None:
    layer = nn.BatchNorm2d(2).eval()
    x = (torch.randn(64, 2, 16, 16) + 5).bfloat16().requires_grad_()
    found = moments.layer_moments(layer, x)
    wide = moments.layer_moments(layer, x.detach().float())
    assert found.sums.dtype == torch.float32 and torch.allclose(found.sums, wide.sums)
    found.sums.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
