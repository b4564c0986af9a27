"""The command around its commands: versions, how much it says, completion, recipes, help, words that are no paths."""

from __future__ import annotations

import importlib.metadata
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from harness import cli, resolve, task
from harness.commands.session import verbosity
from tests.end_to_end.conftest import DIGITS, Ddad, importing_ddad

RUN = ("distill", "classification", "teacher.network=cnn8", "teacher.checkpoint=untrained", "student.network=cnn4",
       "classes=10", "input.size=8", "rounds=2", "batch_size=16", "log_every=1", "tracking.uri=none", "pictures=false",
       "--output", "run")  # fmt: skip
"""A run of untrained networks; it says that matplotlib is missing where `no_curves` is."""


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What -v does to Python's logging ends with the test."""
    root, ours = logging.getLogger(), logging.getLogger("ddad")
    before = root.level, list(root.handlers), ours.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    ours.setLevel(before[2])


def test_the_versions_without_importing_torch(tmp_path: Path) -> None:
    done, imported = importing_ddad("--version", cwd=tmp_path)
    versions = [importlib.metadata.version(name) for name in ("ddad", "torch")]
    assert (done.returncode, done.stdout) == (0, f"ddad {versions[0]}, torch {versions[1]}\n")
    assert "torch" not in imported


@pytest.mark.usefixtures("no_curves")
def test_quiet_leaves_the_table_and_errors(ddad: Ddad) -> None:
    said = ddad("-q", *RUN)
    assert (said.code, said.err) == (0, "") and said.out.startswith("┏") and "agreement" in said.out
    again = ddad(*RUN)
    assert again.err == "run is finished: this is what it found\n" and again.out == said.out
    assert ddad("-q", *RUN).err == ""
    assert ddad("--quiet", *DIGITS, "studnet.lr=1").complaint().startswith("unknown path")
    assert "\nround 1/2" in "\n" + ddad(*RUN[:-1], "other").out


def test_verbose_logs_on_standard_error(ddad: Ddad) -> None:
    assert ddad("-v", "-q", "recipes").complaint() == "-v and -q: give one of them"
    said = ddad("-v", *DIGITS, "studnet.lr=1")
    assert (said.code, said.out) == (2, "")
    assert " ddad: ddad -v distill digits" in said.err and "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("ddad: unknown path 'studnet.lr'")


def test_started_processes_say_as_much(ddad: Ddad) -> None:
    for words in ((), ("-q",), ("-v",)):
        ddad(*words, "recipes")
        assert verbosity() == list(words)


@pytest.mark.parametrize(
    ("words", "expected"), [("ddad ge", "generate"), ("ddad generate --for", "--format"), ("ddad --vers", "--version")]
)
def test_completion(ddad: Ddad, monkeypatch: pytest.MonkeyPatch, words: str, expected: str) -> None:
    monkeypatch.setenv("_DDAD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert ddad().out.split() == [expected]


def test_completion_is_shown_for_a_shell(ddad: Ddad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    said = ddad("--show-completion", "bash")
    assert said.code == 0 and "complete -o default -F _ddad_completion ddad" in said.out


@pytest.mark.parametrize("name", [recipe for each in task.names() for recipe in task.load(each).recipes()])
def test_a_recipes_page_is_a_file_that_gives_the_recipe(ddad: Ddad, name: str) -> None:
    said = ddad("recipes", name)
    assert (said.code, said.err) == (0, "")
    _, function = task.find_recipe(name)
    doc = " ".join((function.__doc__ or "").split())
    comments = " ".join(" ".join(line[1:] for line in said.out.splitlines() if line.startswith("#")).split())
    assert comments == doc
    content = yaml.safe_load(said.out)
    assert content == {"recipe": name, **function()}
    over = {"teacher": {"network": "x", "checkpoint": "untrained"}, "student": {"network": "x"}, "classes": 2}
    assert resolve.resolve(None, content, over) == resolve.resolve(name, None, over)


def test_an_unknown_recipe_is_answered_with_the_nearest(ddad: Ddad) -> None:
    assert ddad("recipes", "digts").complaint() == "unknown recipe 'digts'; did you mean 'digits'?"


def test_the_examples_of_distill_are_commands(ddad: Ddad) -> None:
    said = ddad("distill", "--help")
    shown = said.out.partition("Examples:\n")[2].replace("\\\n", " ").splitlines()
    examples = [shlex.split(line) for line in shown if line.strip()]
    assert len(examples) == 3
    for program, command, *words in examples:
        assert (program, command) == ("ddad", "distill")
        context = getattr(typer.main.get_command(cli.app), "commands")[command].make_context(command, words)  # noqa: B009
        recipe, *rest = context.params["words"]
        resolve.resolve(recipe, None, resolve.read_overrides(rest))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("teach", "digits", "output=y"), "'output=y': output is an option, not a path: --output y"),
        (("distill", "digits", "dry_run=true"), "'dry_run=true': dry_run is an option, not a path: --dry-run true"),
        (("sweep", "digits", "trials=3"), "'trials=3': trials is an option, not a path: --trials 3"),
        (("distill", "digits", "qwerty=1"), "unknown path 'qwerty'; `ddad distill RECIPE --dry-run` prints all paths"),
        (
            ("distill", "digits", "lr=1"),
            "unknown path 'lr'; did you mean 'generator.lr' or 'student.lr' or 'teach.lr'?",
        ),
        (("distill", "digits", "qwerty"), "'qwerty': expected path=value; `ddad distill RECIPE --dry-run` prints"),
    ],
)
def test_a_word_that_is_no_path(ddad: Ddad, words: tuple[str, ...], expected: str) -> None:
    assert ddad(*words).complaint().startswith(expected)
