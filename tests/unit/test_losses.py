"""Discrepancies and terms against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.algorithm import losses
from harness.algorithm.turns import Term, combine, unreduced


def value(term: Term) -> float:
    return combine({"it": (1.0, term)}, lambda sums: sums).total.item()


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


P = [math.log(0.7), math.log(0.3)]
Q = [math.log(0.5), math.log(0.5)]


def test_l1_is_the_mean_absolute_logit_difference() -> None:
    assert value(losses.discrepancy(logits([1, 2], [3, 4]), logits([0, 4], [3, 8]), "l1", 1.0)) == pytest.approx(7 / 4)


def test_mse_is_the_mean_squared_logit_difference() -> None:
    assert value(losses.discrepancy(logits([1, 2], [3, 4]), logits([0, 4], [3, 8]), "mse", 1.0)) == pytest.approx(
        21 / 4
    )


def test_kl_sums_over_classes_and_averages_over_samples() -> None:
    expected = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert value(losses.discrepancy(logits(P), logits(Q), "kl", 1.0)) == pytest.approx(expected)
    assert value(losses.discrepancy(logits(P, Q), logits(Q, Q), "kl", 1.0)) == pytest.approx(expected / 2)


def test_kl_at_a_temperature_is_scaled_by_its_square() -> None:
    t, s = logits([4.0, 0.0]), logits([0.0, 0.0])
    p = 1 / (1 + math.exp(-2))
    expected = 4 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert value(losses.discrepancy(t, s, "kl", 2.0)) == pytest.approx(expected)


def test_js_is_symmetric_and_at_most_ln_2() -> None:
    m = [(0.7 + 0.5) / 2, (0.3 + 0.5) / 2]
    expected = sum(
        a / 2 * math.log(a / c) + b / 2 * math.log(b / c) for a, b, c in zip([0.7, 0.3], [0.5, 0.5], m, strict=True)
    )
    assert value(losses.discrepancy(logits(P), logits(Q), "js", 1.0)) == pytest.approx(expected)
    assert value(losses.discrepancy(logits(Q), logits(P), "js", 1.0)) == pytest.approx(expected)
    assert value(losses.discrepancy(logits([40, -40]), logits([-40, 40]), "js", 1.0)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["l1", "mse", "kl", "js"])
def test_dense_discrepancies_are_means_over_pixels(name: str) -> None:
    t, s = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    flat_t, flat_s = t.permute(0, 2, 3, 1).reshape(-1, 3), s.permute(0, 2, 3, 1).reshape(-1, 3)
    dense = value(losses.discrepancy(t, s, name, 1.0))
    assert dense == pytest.approx(value(losses.discrepancy(flat_t, flat_s, name, 1.0)))


def test_log1p_is_taken_of_the_mean() -> None:
    t, s = logits([1, 2], [3, 4]), logits([0, 4], [3, 8])
    assert value(losses.adversarial(t, s, "l1", 1.0, "log1p")) == pytest.approx(math.log(1 + 7 / 4))
    assert value(losses.adversarial(t, s, "l1", 1.0, "identity")) == pytest.approx(7 / 4)


def test_one_hot_is_the_cross_entropy_with_the_own_argmax() -> None:
    assert value(losses.one_hot(logits(P))) == pytest.approx(-math.log(0.7))


def test_class_balance_is_minus_the_entropy_of_the_mean_prediction() -> None:
    assert value(losses.class_balance(logits([50, -50], [-50, 50]))) == pytest.approx(-math.log(2))
    assert value(losses.class_balance(logits([900, -900], [900, -900]))) == 0.0
    assert value(losses.class_balance(logits(P, Q))) == pytest.approx(0.6 * math.log(0.6) + 0.4 * math.log(0.4))


def test_activation_is_minus_the_mean_absolute_feature() -> None:
    assert value(losses.activation(logits([1, -2], [3, 0]))) == pytest.approx(-1.5)


def test_sample_entropy_is_a_mean_over_predictions() -> None:
    expected = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert value(losses.sample_entropy(logits(P))) == pytest.approx(expected)
    assert value(losses.sample_entropy(logits(P, Q))) == pytest.approx((expected + math.log(2)) / 2)
    assert value(losses.sample_entropy(logits([900, -900]))) == 0.0


def test_attention_compares_where_maps_are_active() -> None:
    t = torch.tensor([[[[3.0, 0.0]], [[3.0, 4.0]]]], dtype=torch.float64)  # squares over channels: 9, 8
    s = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)  # one channel: 1, 0
    norm = math.hypot(9, 8)
    expected = ((9 / norm - 1) ** 2 + (8 / norm) ** 2) / 2
    assert value(losses.attention([t], [s])) == pytest.approx(expected)
    assert value(losses.attention([t, t], [s, s])) == pytest.approx(2 * expected)
    both = torch.cat([t, t]), torch.cat([s, t.square().mean(1, keepdim=True).sqrt()])  # the second one agrees
    assert value(losses.attention([both[0]], [both[1]])) == pytest.approx(expected / 2)
    assert value(losses.attention([5 * t], [t])) == pytest.approx(0)


def test_total_variation_sums_four_directions_a_sample() -> None:
    x = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    across, down = math.hypot(1, 2), math.hypot(2, 3)
    assert value(losses.total_variation(x)) == pytest.approx(across + down + 4 + 1)
    assert value(losses.total_variation(torch.cat([x, torch.zeros_like(x)]))) == pytest.approx((across + down + 5) / 2)


def test_image_norm_is_a_mean_over_samples() -> None:
    assert value(losses.image_norm(torch.tensor([[[[3.0, 4.0]]], [[[0.0, 1.0]]]]))) == pytest.approx(3.0)


def test_cross_entropy_leaves_ignored_labels_out() -> None:
    s, labels = logits(P, Q, Q), torch.tensor([0, 1, 9])
    assert value(losses.cross_entropy(s, labels, 9)) == pytest.approx((-math.log(0.7) - math.log(0.5)) / 2)
    assert value(losses.cross_entropy(s[:2], labels[:2], None)) == pytest.approx((-math.log(0.7) - math.log(0.5)) / 2)


def test_a_batch_without_a_scored_label_contributes_nothing() -> None:
    s = logits(P, Q).requires_grad_()
    term = losses.cross_entropy(s, torch.tensor([9, 9]), 9)
    total = combine({"cross_entropy": (1.0, term)}, lambda sums: sums).total
    total.backward()
    assert total.item() == 0 and s.grad is not None and s.grad.tolist() == [[0, 0], [0, 0]]


def test_watched_entropy_and_top_class() -> None:
    balanced, single = logits([50, -50], [-50, 50]), logits([50, -50], [50, -50])
    assert value(losses.entropy(balanced)) == pytest.approx(1.0)
    assert value(losses.entropy(single)) == pytest.approx(0.0, abs=1e-12)
    assert value(losses.top_class(balanced)) == 0.5
    assert value(losses.top_class(single)) == 1.0


def test_combine_weighs_watches_and_reduces_once() -> None:
    calls = []

    def reduce(sums: Tensor) -> Tensor:
        calls.append(sums.numel())
        return 2 * sums  # as if another process held the same

    t, s = logits([1, 2], [3, 4]), logits([0, 4], [3, 8])
    terms = {
        "adversarial": (-3.0, losses.adversarial(t, s, "l1", 1.0, "identity")),
        "class_balance": (2.0, losses.class_balance(t)),
        "entropy": (0.0, losses.entropy(t)),
    }
    combined = combine(terms, reduce)
    assert len(calls) == 1
    assert combined.values["adversarial"].item() == pytest.approx(7 / 4)
    balance = combined.values["class_balance"].item()
    assert combined.total.item() == pytest.approx(-3 * 7 / 4 + 2 * balance)
    assert combined.values["entropy"].item() == pytest.approx(-balance / math.log(2))


def test_p_ln_p_has_a_finite_gradient_at_zero() -> None:
    t = torch.tensor([[900.0, -900.0]], requires_grad=True)
    combine({"balance": (1.0, losses.class_balance(t))}, lambda sums: sums).total.backward()
    assert t.grad is not None and t.grad.isfinite().all()


def test_features_are_the_squared_difference_over_the_teachers_variance() -> None:
    t = [logits([1, 3], [5, 7]), logits([0, 2], [0, 2])]  # variances 5 and 1
    s = [logits([1, 3], [5, 9]).requires_grad_(), logits([1, 1], [1, 1])]  # mean squares 1 and 1
    total = combine({"features": (1.0, losses.features(t, s))}, lambda sums: sums).total
    assert total.item() == pytest.approx((1 / 5 + 1) / 2)
    total.backward()
    assert s[0].grad is not None and s[0].grad.tolist() == [[0, 0], [0, pytest.approx(2 * 2 / 4 / 5 / 2)]]
    assert value(losses.features(t, t)) == 0


@pytest.mark.parametrize("term", [losses.features, losses.hints])
def test_features_of_two_processes_are_those_of_one(term: Callable[[list[Tensor], list[Tensor]], Term]) -> None:
    t, s = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    whole = value(term([t], [s]))
    parts: list[Tensor] = []
    combine({"it": (1.0, term([t[:2]], [s[:2]]))}, lambda sums: parts.append(sums) or sums)  # type: ignore[func-returns-value]
    found = combine({"it": (1.0, term([t[2:]], [s[2:]]))}, lambda sums: sums + parts[0])
    assert found.total.item() == pytest.approx(whole)


def test_hints_are_what_a_least_squares_fit_of_the_students_maps_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    s = torch.randn(8, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    t = torch.randn(8, 5, 4, 4, dtype=torch.float64) + 3
    exact = torch.einsum("tc,nchw->nthw", torch.randn(5, 3, dtype=torch.float64), s.detach()) - 2
    assert 0 < value(losses.hints([exact], [s])) < 1.1 * losses.RIDGE
    monkeypatch.setattr(losses, "RIDGE", 0.0)
    assert value(losses.hints([exact], [s])) == pytest.approx(0, abs=1e-12)
    rows, inputs = (maps.detach().movedim(1, 3).flatten(0, 2) for maps in (t, s))
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    error = (rows - inputs @ torch.linalg.lstsq(inputs, rows).solution).square().sum()
    expected = (error / (rows - rows.mean(0)).square().sum()).item()
    assert value(losses.hints([t], [s])) == pytest.approx(expected)
    assert value(losses.hints([t, exact], [s, s])) == pytest.approx(expected / 2), "the mean over the pairs"
    assert torch.autograd.gradcheck(lambda x: combine({"": (1.0, losses.hints([t], [x]))}, unreduced).total, (s,))


def test_hints_of_maps_that_are_not_finite_are_not_finite() -> None:
    t, s = torch.randn(2, 4, 3, 2, 2)
    for bad in (math.nan, math.inf):
        s[0, 0, 0, 0] = bad
        assert not math.isfinite(value(losses.hints([t], [s])))


def test_hints_of_a_student_whose_maps_are_constant_are_all_of_the_teachers_variance() -> None:
    s = torch.zeros(4, 3, 2, 2, requires_grad=True)
    total = combine({"hints": (1.0, losses.hints([torch.randn(4, 5, 2, 2)], [s]))}, unreduced).total
    total.backward()
    assert total.item() == 1
    assert s.grad is not None and s.grad.isfinite().all()
