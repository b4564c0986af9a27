"""The commands that the README and the other pages show are commands: they parse, and their configurations resolve."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
import yaml

from harness import cli, resolve, task
from harness.config import PRUNED, image_shape
from harness.networks import own_file
from harness.networks.build import network
from tests.end_to_end.conftest import Ddad
from tests.helpers import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples/README.md",
]

QUICK = {("--help",), ("recipes",), ("doctor",)}
"""What is run as it stands, beside lines with the comment `# quick`."""


@dataclass(frozen=True)
class Line:
    page: Path
    text: str
    words: tuple[str, ...]
    """The command and its arguments, without variables set before it."""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def lines(page: Path) -> Iterator[Line]:
    """Every command in a page's sh blocks; `a && b` is two."""
    for block in blocks(page, "(?:sh|bash|console)"):
        for text in block.replace("\\\n", " ").splitlines():
            tokens = shlex.split(text.removeprefix("$ "), comments=True)
            commands: list[list[str]] = [[]]
            for token in tokens:
                if token in ("&&", "||", ";", "|", "&"):
                    commands.append([])
                elif commands[-1] or not re.match(r"[A-Z_]+=", token):
                    commands[-1].append(token)
            yield from (Line(page, text, tuple(words)) for words in commands if words)


ALL = [line for page in PAGES if page.exists() for line in lines(page)]
DDAD = [line for line in ALL if Path(line.words[0]).name == "ddad"]
MAKE = [line for line in ALL if line.words[0] == "make"]


def test_readme_shows_commands() -> None:
    shown = {line.words[1] for line in DDAD if line.page.name == "README.md" and len(line.words) > 1}
    assert {"distill", "teach", "evaluate", "predict", "export", "doctor", "recipes"} <= shown
    assert ("make", "demo") in {line.words for line in MAKE} and ("make", "test") in {line.words for line in MAKE}


def test_the_table_of_commands_is_complete() -> None:
    table = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n##")[0]
    listed = set(re.findall(r"^\| .*?`ddad (\w+)", table, re.MULTILINE))
    commands = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009 - typer's group, whose type is not public
    assert listed == set(commands)


@pytest.mark.parametrize("line", MAKE, ids=lambda line: line.name)
def test_make_target_exists(line: Line) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in line.words[1:]:
        name, _, value = word.partition("=")
        pattern = rf"^{name}\b.*\?=|\$\({name}\)" if value else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"


@pytest.mark.parametrize("line", DDAD, ids=lambda line: line.name)
def test_ddad_line_parses_and_resolves(line: Line) -> None:
    if line.words[1] == "--help":
        return
    group = typer.main.get_command(cli.app)
    commands = getattr(group, "commands")  # noqa: B009 - typer's group, whose type is not public
    command, *arguments = line.words[1:]
    assert command in commands, f"there is no command {command}"
    if "--help" in arguments:
        return
    given = commands[command].make_context(command, list(arguments)).params
    if command in ("distill", "teach"):
        check_configuration(line.page, given["words"] or [], given["config"])
    if command == "evaluate" and given["network"]:
        known = {name: each for each in task.names() for name in task.load(each).data_names()}
        assert given["data"] in known
        build(known[given["data"]], given["network"], 10, 3)
    if command == "export":
        from harness.commands.export import ENDINGS

        assert given["kind"] in ENDINGS


def check_configuration(page: Path, words: list[str], file: Path | None) -> None:
    """What the words and the file describe is a whole configuration of networks that there are."""
    recipe = words[0] if words and "=" not in words[0] else None
    overrides = resolve.read_overrides(words[1:] if recipe else words)
    content = None
    if file and file.name == "config.yaml":  # of a run, complete by itself: it needs no recipe, and has one
        assert recipe is None
        recipe = "digits"
    elif file:  # the reader's own, which the page shows
        content = yaml.safe_load(blocks(page, "yaml")[0])
    config = resolve.resolve(recipe, content, overrides)
    for spec in (config.teacher, config.student):
        if spec.network == PRUNED:  # what is left of the teacher
            continue
        build(config.task, spec.network, config.classes, image_shape(config)[0], spec.arguments)


def build(of: str, name: str, classes: int, channels: int, arguments: dict[str, object] | None = None) -> None:
    """The network's name is right; a file that the reader is to write is taken on trust."""
    source = own_file.source_file(name)
    if source and not (ROOT / source).exists():
        return
    with torch.device("meta"):
        network(task.load(of), str(ROOT / name) if source else name, classes, channels, arguments or {})


@pytest.mark.parametrize(
    "line", [line for line in DDAD if line.words[1:] in QUICK or "# quick" in line.text], ids=lambda line: line.name
)
def test_quick_line_runs(line: Line, ddad: Ddad) -> None:
    said = ddad(*line.words[1:])
    assert said.code == 0 and said.out


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_python_shown_can_be_imported(page: Path) -> None:
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("harness", "tasks")):
                exec(compile(ast.Module([node], []), str(page), "exec"), {})  # noqa: S102 - the project's own page
