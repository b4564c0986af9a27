"""The wheel holds the code and its data, and constraints.txt pins what pyproject.toml asks for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser

import pytest
from packaging.requirements import Requirement

from tests.helpers import ROOT

PACKAGES = ("harness", "tasks", "tune")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy of this tree, so that nothing is left in the tree itself."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (*PACKAGES, "tests", "benchmarks", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    splits = copy / "tasks/classification/splits"
    splits.mkdir(exist_ok=True)
    (splits / "packaging_probe.txt").write_text("a manifest of any name is packaged\n")
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    subprocess.run([sys.executable, "-W", "error", "-c", build], cwd=copy, check=True, capture_output=True, timeout=120)
    (path,) = (copy / "dist").glob("ddad-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_every_module_and_split_under_its_own_path(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.parent.name == "splits" or path.name == "py.typed"
    }
    assert found == expected | {"tasks/classification/splits/packaging_probe.txt"}
    assert "harness/py.typed" in found  # a type checker reads the annotations of packages that have one


def test_wheel_names_the_command_and_refuses_upload(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(f"{info}/entry_points.txt").decode().split("\n")[:2] == [
        "[console_scripts]",
        "ddad = harness.cli:main",
    ]
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier", [])
    assert metadata["License-Expression"] == "MIT"


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def _requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]


@pytest.mark.parametrize("requirement", _requirements(), ids=lambda requirement: requirement.name)
def test_requirement_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    assert _pins()[requirement.name.lower()] in requirement.specifier


def test_constraints_only_pin() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "/" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
