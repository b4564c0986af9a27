"""Scores against hand counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.config import Config
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.task import load
from harness.training.evaluate import on_test_set
from tasks.segmentation import task
from tasks.segmentation.metrics import VOID


def logits(answers: list[list[int]], outputs: int) -> torch.Tensor:
    """[1, outputs, H, W] whose largest entries are the answers [H, W]."""
    return torch.nn.functional.one_hot(torch.tensor(answers)[None], outputs).movedim(-1, 1).float()


def test_iou_by_hand() -> None:
    truth = torch.tensor([[[0, 0, 0, 1], [1, 1, 2, 2]]])
    scores = task.metrics(3)
    scores.update(logits([[0, 0, 1, 1], [1, 2, 2, 0]], 3), truth)
    # class 0: 2 right of {3 true, 3 called, 4 together}; 1: 2 of 4; 2: 1 of 3
    found = scores.compute()
    assert found["per_class_iou"] == [2 / 4, 2 / 4, 1 / 3]
    assert found["miou"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 3) / 3, abs=1e-12)
    assert found["pixel_accuracy"] == 5 / 8


def test_void_counts_nowhere() -> None:
    scores = task.metrics(2)
    scores.update(logits([[0, 1, 1, 0]], 2), torch.tensor([[[0, 1, VOID, VOID]]]))
    assert scores.compute() == {"miou": 1.0, "per_class_iou": [1.0, 1.0], "pixel_accuracy": 1.0}


def test_counts_are_over_the_set_and_no_mean_of_batches() -> None:
    scores = task.metrics(2)
    scores.update(logits([[0, 0, 0, 0]], 2), torch.tensor([[[0, 0, 0, 1]]]))
    scores.update(logits([[1, 1]], 2), torch.tensor([[[1, 1]]]))
    assert scores.compute()["per_class_iou"] == [3 / 4, 2 / 3]
    assert scores.compute()["pixel_accuracy"] == 5 / 6


def test_a_class_never_true_is_nought_where_it_was_called_and_left_out_where_not() -> None:
    scores = task.metrics(4)
    scores.update(logits([[0, 0, 2, 1]], 4), torch.tensor([[[0, 0, 0, 1]]]))
    found = scores.compute()
    assert found["per_class_iou"] == [2 / 3, 1.0, 0.0, None]
    assert found["miou"] == pytest.approx((2 / 3 + 1 + 0) / 3, abs=1e-12)


def test_an_output_beyond_the_classes_is_never_right_and_no_class_of_its_own() -> None:
    scores = task.metrics(2)
    scores.update(logits([[0, 0, 1, 2]], 3), torch.tensor([[[0, 0, 1, 1]]]))
    assert scores.compute() == {"miou": 0.75, "per_class_iou": [1.0, 0.5], "pixel_accuracy": 0.75}


def test_nothing_is_scored_where_all_is_void() -> None:
    scores = task.metrics(2)
    scores.update(logits([[0, 1]], 2), torch.tensor([[[VOID, VOID]]]))
    assert scores.compute() == {"miou": None, "per_class_iou": [None, None], "pixel_accuracy": None}


class Says(nn.Module):
    """A network that answers every image with the same map."""

    def __init__(self, answers: list[list[int]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits(answers, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1, -1, -1)


@pytest.mark.parametrize(
    ("labels", "share"), [([[0, 1, 1, VOID]], 2 / 3), ([[0, VOID, VOID, VOID]], 1.0), ([[VOID] * 4], None)]
)
def test_agreement_is_over_scored_pixels(labels: list[list[int]], share: float | None) -> None:
    networks: dict[str, nn.Module] = {"student": Says([[0, 0, 1, 0]]), "teacher": Says([[0, 1, 1, 1]])}
    batch = (torch.zeros(1, 3, 1, 4), torch.tensor([labels]))
    found = on_test_set(load("segmentation"), 2, networks, [batch, batch], Runtime(Config(batch_size=1)), (1, 4))
    assert found.agreement == share
    size = [1, 4]
    assert found.sizes == {role: [{"image": size, "network": size, "labels": size}] for role in networks}
    assert found.teacher["miou"] == (None if share is None else 1.0)


def test_logits_that_are_nan_are_refused() -> None:
    network = Says([[0, 0, 1, 0]])
    batch = (torch.zeros(3, 3, 1, 4), torch.tensor([[[0, 1, 1, 1]]]).expand(3, 1, 4))
    runtime = Runtime(Config(batch_size=1))
    assert on_test_set(load("segmentation"), 2, {"student": network}, [batch, batch], runtime, (1, 4)).test_images == 6
    network.logits.data[0, 1, 0, 2] = torch.nan
    with pytest.raises(UserError, match="the student answers 6 of 6 test images with logits that are NaN"):
        on_test_set(load("segmentation"), 2, {"student": network}, [batch, batch], runtime, (1, 4))
