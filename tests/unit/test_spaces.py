"""Search spaces: the built-in ones, files, and which files are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness import resolve
from harness.config import build, parse, to_dict
from harness.errors import UserError
from tune import spaces
from tune.spaces import Distribution

DIGITS = resolve.resolve("digits", None, {"teacher": {"checkpoint": "untrained"}})


def in_file(folder: Path, text: str) -> spaces.Space:
    path = folder / "mine.yaml"
    path.write_text(text)
    return spaces.find(str(path))


@pytest.mark.parametrize("name", spaces.SPACES)
def test_every_grid_point_of_a_built_in_space_is_a_valid_configuration(name: str) -> None:
    space = spaces.find(name)
    spaces.check(space, DIGITS)
    for path, distribution in space.items():
        for value in distribution.grid():
            config = build(parse.merge(to_dict(DIGITS), parse.nest({path: value})))
            found: object = config
            for part in path.split("."):
                found = getattr(found, part)
            assert found == value


def test_loss_weights_are_four_logarithmic_ranges() -> None:
    space = spaces.find("loss_weights")
    assert set(space) == {f"weights.{name}" for name in ("adversarial", "batch_norm", "one_hot", "class_balance")}
    assert {one.kind for one in space.values()} == {"log_uniform"}
    assert set(spaces.find("everything")) > set(space) | set(spaces.find("turns"))


def test_a_yaml_file_can_contain_a_space(tmp_path: Path) -> None:
    space = in_file(
        tmp_path,
        "student.lr: {log_uniform: [1e-3, 1]}\n"
        "generator.latent_size: {log_integer: [16, 256]}\n"
        "student_steps: {choice: [2, 5]}\n"
        "data.size: {choice: [null, 8]}\n",
    )
    assert space["student.lr"] == Distribution("log_uniform", (0.001, 1.0))
    assert space["generator.latent_size"] == Distribution("log_integer", (16, 256))
    assert space["data.size"].values == (None, 8)
    del space["data.size"]
    spaces.check(space, DIGITS)
    assert spaces.to_plain(space)["student_steps"] == {"choice": [2, 5]}


def test_grid_points_have_equal_distances_on_the_scale_and_include_both_ends() -> None:
    assert Distribution("uniform", (0.0, 1.0)).grid() == [0.0, 0.5, 1.0]
    low, middle, high = Distribution("log_uniform", (0.01, 1.0)).grid()
    assert (low, high) == (0.01, 1.0)
    assert middle == pytest.approx(0.1)
    assert Distribution("log_integer", (1, 100)).grid() == [1, 10, 100]
    assert Distribution("integer", (1, 2)).grid() == [1, 2]
    points = spaces.grid({"a": Distribution("choice", (1, 2)), "b": Distribution("uniform", (0.0, 1.0))})
    assert len(points) == 6
    assert points[0] == {"a": 1, "b": 0.0}


def test_none_is_kept_as_a_value() -> None:
    assert parse.nest({"data.size": None, "data.name": "x"}) == {"data": {"size": None, "name": "x"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student.lrr: {uniform: [0, 1]}", "space: unknown path 'student.lrr'; did you mean 'student.lr'"),
        ("student_steps: {uniform: [1, 10]}", "student_steps: uniform does not fit the field: .* a whole number"),
        ("discrepancy: {integer: [1, 3]}", "discrepancy: integer does not fit the field: discrepancy=1: expected text"),
        ("discrepancy: {choice: [l1, l3]}", "discrepancy='l3': expected one of"),
        ("weights.tv: {uniform: [-1, 1]}", r"weights.tv=-1.0: expected a number of at least 0"),
        ("seed: {integer: [0, 9]}", "seed cannot be searched: the best of several seeds is chance; --retrain"),
        (
            "teacher.network: {choice: [cnn8, cnn32]}",
            "cannot be searched: all trials have the same teacher",
        ),
        ("rounds: {choice: [10, 20]}", "rounds cannot be searched: it is the length of a trial"),
        ("log_every: {choice: [1, 2]}", "log_every cannot be searched: it does not change the result of a run"),
        ("tracking.uri: {choice: [a, b]}", "tracking.uri cannot be searched"),
    ],
)
def test_a_space_that_does_not_fit_the_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    space = in_file(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        spaces.check(space, DIGITS)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student.lr: 0.1", "student.lr: 0.1: expected one of uniform, log_uniform"),
        ("student.lr: {logarithmic: [1, 2]}", "no such distribution as 'logarithmic'"),
        ("student.lr: {uniform: [1]}", r"uniform \[1\]: expected \[low, high\], two numbers"),
        ("student.lr: {uniform: [2, 1]}", r"expected \[low, high\] with low below high"),
        ("student.lr: {log_uniform: [0, 1]}", "a logarithmic scale needs a low end above 0"),
        ("student_steps: {integer: [1.5, 3]}", "two whole numbers"),
        ("student_steps: {choice: [1]}", "a list of at least two"),
        ("student_steps: {choice: [[1], [2]]}", "a list of at least two numbers, texts or booleans"),
        ("- 1", "expected lines of"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_a_file_that_is_not_a_valid_space_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        in_file(tmp_path, text)
    assert re.match(r"--space .*mine\.yaml", str(error.value))
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_name_and_a_missing_file_have_different_messages() -> None:
    with pytest.raises(UserError, match=r"--space 'loss_weight': no such space; did you mean 'loss_weights'"):
        spaces.find("loss_weight")
    with pytest.raises(UserError, match=r"--space absent\.yaml: cannot be read \(No such file"):
        spaces.find("absent.yaml")
