"""What the documentation says of files and names holds: every `path.py` and `path.py:name` in it exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

REFERENCE = re.compile(r"`((?:[a-z_]+/)*[a-z_]+\.py)(?::([A-Za-z_.]+))?`")
"""A file, from the root, from harness/, or beside others of its kind, and perhaps a name in it."""


MADE_UP = ("path/to/file.py", "my_networks.py")
"""Files of a reader's own."""


def candidates(path: str) -> list[Path]:
    """The files that a path in a page may mean."""
    return [*ROOT.glob(path), *ROOT.glob(f"harness/{path}"), *ROOT.glob(f"*/*/{path}"), *ROOT.glob(f"*/{path}")]


def names(path: Path) -> Iterator[str]:
    """What a file defines: its functions, classes, their methods, and its assignments."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_names_exist(page: Path) -> None:
    wrong = []
    for path, name in REFERENCE.findall(page.read_text()):
        found = candidates(path)
        if path in MADE_UP:
            continue
        if not found or (name and not any(name in set(names(file)) for file in found)):
            wrong.append(f"{path}:{name}" if name else path)
    assert not wrong, f"{page.name} names what is not there: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to what is not there: {missing}"


def test_the_architecture_names_every_file_of_the_packages() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page[page.index("```text") : page.index("```", page.index("```text") + 3)]
    files = [file for top in ("harness", "tune", "benchmarks") for file in (ROOT / top).rglob("*.py")]
    absent = [file.relative_to(ROOT) for file in files if not file.name.startswith("__") and file.name not in tree]
    assert not absent
