"""Scores against hand counts."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from PIL.Image import Image

from harness.config import build
from harness.networks.preprocessing import preprocessing
from tasks.classification import task

LOGITS = torch.tensor(
    [
        [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # 0, right
        [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # 0, truth is last
        [1.0, 9.0, 5.0, 4.0, 3.0, 2.0],  # 1, truth is second to last
        [1.0, 2.0, 9.0, 5.0, 4.0, 3.0],  # 2, right
        [9.0, 1.0, 2.0, 3.0, 4.0, 5.0],  # 0, right
    ]
)
TARGET = torch.tensor([0, 5, 0, 2, 0])


def test_accuracies_are_counts_over_the_set_and_no_mean_of_batches() -> None:
    scores = task.metrics(6)
    scores.update(LOGITS[:4], TARGET[:4])
    scores.update(LOGITS[4:], TARGET[4:])
    found = scores.compute()
    assert found["accuracy"] == 3 / 5  # exactly: the mean of the two batches is 3 / 4
    assert found["top5"] == 3 / 5  # the truths of the second and third come last
    assert found["per_class_accuracy"] == [2 / 3, None, 1.0, None, None, 0.0]


def test_top5_counts_the_fifth_and_is_null_for_five_classes() -> None:
    scores = task.metrics(6)
    scores.update(LOGITS, torch.tensor([4, 4, 5, 0, 5]))  # fifth, fifth, fifth, last, second
    assert scores.compute()["top5"] == 4 / 5
    five = task.metrics(5)
    five.update(LOGITS[:, :5], torch.tensor([0, 0, 0, 0, 0]))
    assert five.compute()["top5"] is None


def test_ranks_are_of_logits_even_where_probabilities_are_all_nought() -> None:
    scores = task.metrics(6)
    logits = torch.tensor([[900.0, 500.0, 400.0, 300.0, 200.0, 100.0]])  # the softmax of the last five is 0 in fp32
    scores.update(logits, torch.tensor([4]))
    scores.update(logits, torch.tensor([5]))
    assert scores.compute()["top5"] == 1 / 2


def test_calibration_error_by_hand() -> None:
    # Confidences .9 (right), .9 (wrong), .6 (right), all in bins of their own: (2/3)|.5 - .9| + (1/3)|1 - .6| = .4
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    scores = task.metrics(2)
    scores.update(probabilities.log(), torch.tensor([0, 1, 1]))
    assert scores.compute()["calibration_error"] == pytest.approx(0.4, abs=1e-6)


def test_calibration_takes_logits_between_0_and_1_for_logits() -> None:
    scores = task.metrics(2)
    scores.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert scores.compute()["calibration_error"] == pytest.approx(1 - torch.tensor(1.0).sigmoid().item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision_counts_the_same(dtype: torch.dtype) -> None:
    scores = task.metrics(6)
    scores.update(LOGITS.to(dtype), TARGET)
    assert scores.compute()["accuracy"] == 3 / 5


INKS = {
    "teacher": lambda red, green, blue: max(red, green, blue) < 120,
    "student": lambda red, green, blue: red > max(green, blue) + 80,
    "truth": lambda red, green, blue: blue > max(red, green) + 80,
}
"""Whether a pixel has a colour, at full strength or at the edge of a letter."""


def cells(page: Image, ink: str) -> set[int]:
    """The cells of a 3 x 2 grid of 64-pixel images that hold an ink, the key to the colours left out."""
    key = 14
    width, height = page.width // 3, (page.height - key) // 2
    found = set()
    for index in range(6):
        left, top = index % 3 * width, key + index // 3 * height
        colours = page.crop((left, top, left + width, top + height)).getcolors(width * height)
        found |= {index for _, colour in colours or () if INKS[ink](*cast(tuple[int, int, int], colour))}
    return found


def test_picture_labels_what_the_student_and_the_truth_say_otherwise() -> None:
    images = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(5, 3, 8, 8)
    student = LOGITS.clone()
    student[2] = LOGITS[0]
    agreed = task.picture(images, LOGITS, LOGITS, ["ant", "bee"], truth=LOGITS.argmax(1))
    page = task.picture(images, LOGITS, student, ["ant", "bee"], truth=TARGET)
    assert page.size == agreed.size and page.width == 3 * (64 + 8)
    assert cells(agreed, "teacher") == cells(page, "teacher") == {0, 1, 2, 3, 4}
    assert cells(agreed, "student") == cells(agreed, "truth") == set()
    assert cells(page, "student") == {2}
    assert cells(page, "truth") == {1, 2}
    assert page.getpixel((30, 40)) == (0, 255, 0)


def test_picture_of_the_data_needs_no_names_and_no_student() -> None:
    config = build({"task": "classification", "classes": 10, "data": {"name": "digits"}, "input": {"size": 8},
                    "teacher": {"channels": "gray"}})  # fmt: skip
    digits = task.dataset(config, "test")
    images = preprocessing(config).denormalise(torch.stack([digits[i][0] for i in range(2)]))
    page = task.picture(images, torch.eye(10)[:2], None, [])
    assert page.width == 2 * (64 + 8)
    assert page.height >= 64
