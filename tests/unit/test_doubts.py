"""What is said of networks whose scores show that something about them is wrong."""

import pytest
import torch

from harness import config
from harness.config.parse import Overlay, merge
from harness.training.doubts import doubt, of_settings


def said(confusion: torch.Tensor, dense: bool = False) -> list[str]:
    lines: list[str] = []
    doubt(confusion, "net", lines.append, dense)
    return lines


def matrix(order: list[int], right: int = 90, wrong: int = 10) -> torch.Tensor:
    """K classes of 100 images, of which class i is mostly called order[i], and else its neighbour."""
    found = torch.zeros(len(order), len(order) + 1, dtype=torch.long)
    for row, answer in enumerate(order):
        found[row, answer] += right
        found[row, (answer + 1) % len(order)] += wrong
    return found


@pytest.mark.parametrize(
    ("over", "begin"),
    [
        ({}, []),
        ({"temperature": 4.0}, ["temperature=4 has no effect: l1 does not divide logits by it"]),
        ({"temperature": 4.0, "student_discrepancy": "kl"}, []),
        ({"student_temperature": 20.0}, ["student_temperature=20 has no effect: l1"]),
        (
            {"temperature": 4.0, "student_discrepancy": "kl", "student_temperature": 2.0},
            ["temperature=4 has no effect"],
        ),
        ({"teacher": {"mean": None, "std": None}}, ["teacher.mean and teacher.std are not given"]),
        ({"teacher": {"mean": None, "std": None, "checkpoint": "untrained"}}, []),
    ],
)
def test_settings_without_effect_and_input_that_nothing_is_said_of(over: Overlay, begin: list[str]) -> None:
    own = {"network": "cnn8", "checkpoint": "my.pth", "mean": [0.5] * 3, "std": [0.2] * 3}
    lines = of_settings(config.build(merge({"classes": 3, "teacher": own}, over)))
    assert len(lines) == len(begin)
    assert all(line.startswith(each) for line, each in zip(lines, begin, strict=True))


def test_one_class_for_all_images() -> None:
    confusion = torch.zeros(3, 4, dtype=torch.long)
    confusion[:, 1] = 50
    (line,) = said(confusion)
    assert line.startswith("net names one class for all test images")
    confusion[[0, 2]] = 0  # and all images are of that class
    assert not said(confusion)


def test_classes_in_another_order() -> None:
    """Folders 0 to 11 in the order of their names, 0 1 10 11 2 ..., and a teacher that has them by number."""
    order = sorted(range(12), key=str)
    (line,) = said(matrix(order))
    assert line.startswith("net seems to have its classes in another order than the data: its mean recall is 15%")
    assert line.endswith("and in another 90%, with the data's class 2 as its class 10")


@pytest.mark.parametrize(
    "confusion",
    [
        matrix(list(range(10))),  # right
        matrix([0, 1, 2, 4, 3, 5, 6, 7, 8, 9], 50, 50),  # poor
        matrix([1, 0], 4, 0),  # few images
        torch.randint(0, 12, (10, 11), generator=torch.Generator().manual_seed(0)),  # at chance
        torch.zeros(3, 4, dtype=torch.long),  # void alone
    ],
)
def test_what_is_not_doubted(confusion: torch.Tensor) -> None:
    assert not said(confusion)


def test_a_class_without_an_image_counts_for_nothing() -> None:
    confusion = matrix([1, 0, 2])
    confusion[2] = 0
    assert len(said(confusion)) == 1


def test_a_class_of_no_label_that_a_pixel_is_called() -> None:
    confusion = matrix([0, 1, 2])
    confusion[2] = 0
    (line,) = said(confusion, dense=True)
    assert line.startswith("net answers with class 2, of which the test labels have no pixel: its IoU counts as 0")
    assert not said(confusion), "accuracy does not have it in a mean"
    confusion[:, 2] = 0
    assert not said(confusion, dense=True)
