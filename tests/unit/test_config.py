"""Building, merging and naming a configuration; its mistakes are in tests/end_to_end/test_bad_input.py."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import config as config_module
from harness import resolve
from harness.config import Config
from harness.config.parse import merge
from harness.errors import UserError
from harness.methods.terms import weight_at

LEAST = {"task": "classification", "classes": 3}


def documented(kind: type) -> Iterator[tuple[str, bool]]:
    """(field, whether a docstring stands under it) of a configuration class, those that it inherits left out."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    for line, after in itertools.pairwise([*tree.body, None]):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield line.target.id, is_text and isinstance(after.value.value, str)


def test_every_field_has_a_docstring() -> None:
    """The docstrings under the fields are the reference of what can be set; a group's is that of its class."""
    queue, found = [Config], set()
    while queue:
        kind = queue.pop()
        types = typing.get_type_hints(kind)
        groups = {name: each for name, each in types.items() if dataclasses.is_dataclass(each)}
        queue += groups.values()
        for base in filter(dataclasses.is_dataclass, kind.__mro__):
            for name, is_documented in documented(base):
                assert is_documented or name in groups, f"{base.__name__}.{name}"
                found.add((kind, name))
        assert {(kind, field.name) for field in dataclasses.fields(kind)} <= found and kind.__doc__
    assert len(found) > 80


def test_a_resolved_configuration_replays_to_itself() -> None:
    first = resolve.resolve("digits", None, {"seed": 3, "weights": {"tv": [[0, 1.0], [5, 0.5]]}})
    again = resolve.resolve(None, config_module.to_dict(first))
    assert again == first
    assert config_module.identity(again) == config_module.identity(first)


def test_layers_override_each_other_in_order() -> None:
    recipe = resolve.resolve("digits")
    assert (recipe.weights.batch_norm, recipe.rounds) == (1.0, 240)  # field default, recipe
    assert resolve.resolve("digits", None, {"method": "dfad"}).weights.batch_norm == 0.0  # method over recipe
    file = {"method": "dfad", "weights": {"batch_norm": 0.5}}
    assert resolve.resolve("digits", file).weights.batch_norm == 0.5  # file over method
    assert resolve.resolve("digits", file, {"weights": {"batch_norm": 0.7}}).weights.batch_norm == 0.7  # command line


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"recipe": "cifar10-resnet34-resnet18"},
            "the values are those of recipe 'digits' of classification: name one",
        ),
        ({"task": "segmentation"}, "task='segmentation': the values are those of recipe 'digits'"),
    ],
)
def test_a_run_has_the_name_of_the_recipe_that_it_has_the_values_of(own: dict[str, Any], message: str) -> None:
    for layers in ((own, None), (None, own)):
        with pytest.raises(UserError, match=message):
            resolve.resolve("digits", *layers)
    assert resolve.resolve("digits", {"recipe": "digits"}).recipe == "digits"


def test_a_resolved_file_takes_no_default_again() -> None:
    resolved = config_module.to_dict(
        resolve.resolve("digits", None, {"method": "dfad", "weights": {"batch_norm": 0.5}})
    )
    assert resolve.resolve(None, resolved, {"seed": 1}).weights.batch_norm == 0.5
    with pytest.raises(UserError, match="cannot change a resolved configuration"):
        resolve.resolve(None, resolved, {"method": "ddad"})


def test_identity_is_blind_to_bookkeeping_alone() -> None:
    base = resolve.resolve("digits")
    same: list[dict[str, Any]] = [
        {"tracking": {"uri": "none"}}, {"checkpoint": {"every": 7}}, {"log_every": 3}, {"max_minutes": 1.0},
        {"pictures": False}, {"evaluate_every": 5}, {"log_seconds": None},
        {"checkpoint": {"minutes": 1.0}}, {"data": {"workers": 4}}, {"replay": {"place": "device"}},
    ]  # fmt: skip
    for over in same:
        changed = resolve.resolve("digits", None, over)
        assert config_module.identity(changed) == config_module.identity(base)
        assert config_module.differences(base, changed) == []
        restored = merge(config_module.to_dict(base), config_module.bookkeeping(changed))
        assert config_module.build(restored) == changed
    other: list[dict[str, Any]] = [
        {"seed": 1},
        {"weights": {"tv": 0.1}},
        {"student": {"lr": 0.2}},
        {"precision": "bf16"},
    ]
    for over in other:
        assert config_module.identity(resolve.resolve("digits", None, over)) != config_module.identity(base)


def test_without_shared_statistics_the_number_of_processes_is_a_part_of_the_run() -> None:
    sizes: list[dict[str, Any]] = [{"distributed": {"world_size": number}} for number in (1, 2)]
    own = [resolve.resolve("digits", None, {"sync_batch_norm": False, **size}) for size in sizes]
    assert config_module.differences(*own) == ["distributed.world_size"]
    assert config_module.identity(own[0]) != config_module.identity(own[1])
    shared = [resolve.resolve("digits", None, size) for size in sizes]
    assert config_module.differences(*shared) == []


def test_an_argument_of_null_is_not_one_that_is_absent() -> None:
    a, b = ({**LEAST, "student": {"network": "cnn4", "arguments": given}} for given in ({}, {"act": None}))
    assert config_module.differences(config_module.build(a), config_module.build(b)) == [
        "student.arguments", "student.arguments.act"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rounds=010", "'rounds=010': YAML reads 010 as 8: write a number to the base 10"),
        ("max_minutes=1:30", "YAML reads 1:30 as 90"),
        ("teacher.mean=[0.5,00.5,010]", "YAML reads 010 as 8"),
        ("teacher.checkpoint=", "there is no value after the =; null stands for none"),
        ("data.root=/my set #2", "YAML takes what follows ' #' for a comment: put the value in quotes"),
    ],
)
def test_values_that_yaml_reads_otherwise_than_they_are_meant(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        resolve.read_overrides([word])
    assert message in str(error.value)
    file = tmp_path / "given.yaml"
    path, _, value = word.partition("=")
    file.write_text(f"{path}: {value}\n")
    if "reads" in message:
        with pytest.raises(UserError, match="YAML reads"):
            resolve.read_file(file)
    assert resolve.read_overrides([f"{path}='{value}'"])


def test_words_are_read_as_yaml() -> None:
    words = ["student.lr=1e-3", "teacher.mean=[0.1]", "weights.tv=[[0,1],[5,.5]]", "max_minutes=null", "pictures=false"]
    assert resolve.read_overrides(words) == {
        "student": {"lr": 1e-3},
        "teacher": {"mean": [0.1]},
        "weights": {"tv": [[0, 1], [5, 0.5]]},
        "max_minutes": None,
        "pictures": False,
    }


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"studnet": {}}, "unknown path 'studnet'; did you mean"),
        ({"student": {"lr": "fast"}}, "student.lr='fast': expected a number"),
        ({"student": {"lr": True}}, "student.lr=True: expected a number"),
        ({"student": {"lr": 10**400}}, ": expected a number"),
        ({"student": {"arguments": {"widths": {1: 16}}}}, "expected a group of keyword arguments"),
        ({"weights": {"tv": [[0, 1.0], [float("nan"), 2.0]]}}, "rounds rising from 0"),
        ({"student": {"weight_decay": float("inf")}}, "student.weight_decay=inf: expected at least 0"),
        ({"rounds": 1.5}, "rounds=1.5: expected a whole number"),
        ({"rounds": 0}, "rounds=0: expected at least 1"),
        ({"discrepancy": "l2"}, "discrepancy='l2': expected one of l1, mse, kl, js"),
        ({"student": 3}, "student=3: expected a group of fields"),
        ({"weights": {"tv": [[1, 2.0]]}}, "rounds rising from 0"),
        ({"weights": {"tv": -1}}, "weights.tv=-1.0: expected a number of at least 0"),
        ({"teacher": {"mean": [0.5]}}, "teacher.mean=[0.5]: expected 3 numbers for rgb images"),
        ({"teacher": {"std": [0.0, 1.0, 1.0]}}, "numbers above 0"),
        ({"input": {"size": [1, 2, 3]}}, "input.size=[1, 2, 3]: expected a side or [height, width]"),
        ({"classes": 1}, "classes=1: expected the number of classes, at least 2"),
        ({"schema": 99}, "has schema 99, this version reads schema 1"),
        ({"student": {"milestones": [0.5, 0.2]}}, "rising fractions"),
    ],
)
def test_mistakes_name_what_was_given_and_expected(over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        config_module.build(merge(LEAST, over))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://me:hidden@host:1", "tracking.uri holds a password, which the run folder would keep: leave it out"),
        ("postgresql://host/db?password=hidden", "tracking.uri holds a password"),
        ("http://me:hidden@[host", "tracking.uri: expected a URI (Invalid IPv6 URL)"),
    ],
)
def test_a_new_run_takes_no_password(uri: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve.resolve("digits", None, {"tracking": {"uri": uri}})
    assert message in str(error.value)
    assert "hidden" not in str(error.value)


def test_weights_hold_until_the_next_round_of_their_schedule() -> None:
    assert [weight_at([[0, 1.0], [3, 0.5]], index) for index in (0, 2, 3, 9)] == [1.0, 1.0, 0.5, 0.5]
    assert weight_at(2.0, 7) == 2.0


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_module.build(LEAST).seed = 1  # type: ignore[misc]
