"""Every task and every recipe keeps the promises that the harness and its users build on."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import step_path
from harness import config as config_module
from harness import resolve
from harness import task as tasks
from harness.config import Config, image_shape
from harness.config.parse import merge
from harness.networks import build, layers, roles
from harness.task import Task
from tests.helpers import ROOT

RECIPES = [(task, name) for task in tasks.names() for name in tasks.load(task).recipes()]


def resolved(task: str, name: str) -> Config:
    """A recipe with what it leaves to its user filled in."""
    over = {"teacher": {"checkpoint": "untrained"}}
    if name == task:
        network = tasks.load(task).network_names()[0]
        over = merge(over, {"classes": 3, "teacher": {"network": network}, "student": {"network": network}})
    return resolve.resolve(name, None, over)


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_supplies_what_the_protocol_names(name: str) -> None:
    task = tasks.load(name)
    for member, declared in inspect.getmembers(Task, inspect.isfunction):
        if not member.startswith("_"):
            wanted = list(inspect.signature(declared).parameters)[1:]
            assert list(inspect.signature(getattr(task, member)).parameters) == wanted, member
    assert name in task.recipes(), "the recipe of the task's own name is for a user's own teacher"


@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)], ids=["right", "wrong"])
def test_a_tasks_metrics_count_what_its_networks_answer(name: str, shift: int, expected: float) -> None:
    task = tasks.load(name)
    shape = task.answer_shape(3, 4, 5)
    labels = torch.arange(6 * math.prod(shape[1:])).view(6, *shape[1:]) % 3
    if task.ignore_index is not None:
        labels.view(6, -1)[:, 0] = task.ignore_index
    answers = torch.nn.functional.one_hot((labels.clamp(max=2) + shift) % 3, 3).movedim(-1, 1).float()
    metrics = task.metrics(3)
    metrics.update(answers[:4], labels[:4])
    metrics.update(answers[4:], labels[4:])
    found = metrics.compute()
    assert task.primary_metric in task.reported_metrics
    assert {name: found[name] for name in task.reported_metrics} == dict.fromkeys(task.reported_metrics, expected)


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_draws_its_answers_beside_labels(name: str) -> None:
    task = tasks.load(name)
    logits = torch.rand(2, *task.answer_shape(3, 8, 8))
    names = ["a", "b", "c"]
    plain = task.picture(torch.rand(2, 3, 8, 8), logits, None, names)
    full = task.picture(torch.rand(2, 3, 8, 8), logits, -logits, names, logits.argmin(1))
    assert plain.mode == full.mode == "RGB" and full.width * full.height > plain.width * plain.height


def test_every_column_of_a_segmentation_picture_has_its_heading() -> None:
    logits = torch.rand(2, 3, 8, 8)
    page = tasks.load("segmentation").picture(
        torch.rand(2, 3, 8, 8), logits, -logits, ["a", "b", "c"], logits.argmin(1)
    )
    line = np.asarray(page.convert("L"))[:10]
    for heading in np.array_split(line, 4, axis=1):  # image, truth, teacher, student
        assert (heading < 128).any()


@pytest.mark.parametrize(("task", "name"), RECIPES)
def test_a_recipes_networks_take_its_images_and_its_generator_makes_them(task: str, name: str) -> None:
    config = resolved(task, name)
    with torch.device("meta"):  # shapes alone: quick for the largest
        for make in (roles.teacher, roles.student, roles.generator):
            make(config)


@pytest.mark.parametrize(("task", "name"), RECIPES)
def test_a_recipe_resolves_and_says_how_it_is_run(task: str, name: str) -> None:
    config = resolved(task, name)
    assert (config.task, config.recipe) == (task, name)
    assert config_module.build(config_module.to_dict(config)) == config
    text = tasks.load(task).recipes()[name].__doc__ or ""
    assert re.search(rf"^ +ddad (distill|teach) {re.escape(name)}\b", text, re.MULTILINE), (
        "its docstring has no command"
    )


@pytest.mark.parametrize(("task", "name"), RECIPES)
def test_a_recipes_networks_exist_and_the_student_is_not_larger(task: str, name: str) -> None:
    config = resolved(task, name)
    with torch.device("meta"):
        sizes = [
            layers.num_parameters(
                build.network(tasks.load(task), spec.network, config.classes, image_shape(config)[0], spec.arguments)
            )
            for spec in (config.teacher, config.student)
        ]
    assert sizes[1] <= sizes[0] or "vgg11_bn" in name  # the published pair VGG-11 -> ResNet-18 has the larger student


def test_a_step_can_be_followed_through_ten_files() -> None:
    found = step_path.entered(resolve.resolve("digits", None, step_path.SMALL))
    assert set(found) == {"student", "generator"}
    assert all("harness/algorithm/turns.py" in files and len(files) <= 10 for files in found.values()), found


@pytest.mark.parametrize("path", sorted((ROOT / "harness").rglob("*.py")), ids=lambda path: path.name)
def test_the_harness_does_not_branch_on_the_task(path: Path) -> None:
    assert not re.search(r"[\"'](classification|segmentation)[\"']", path.read_text())
