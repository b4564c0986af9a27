"""`ddad compare` on runs that were really made: tables, files, a figure, MLflow, and what it refuses."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import pytest
from PIL import Image

from harness.run import folder
from tests.end_to_end.conftest import DIGITS, SMALL, UNTAUGHT, Ddad, Run, contents, copy_teacher
from tests.end_to_end.test_sweep import give

FOUR = {"a0": (), "a1": ("seed=1",), "a2": ("seed=2",), "b0": ("student.lr=0.03",)}
"""Three seeds of one configuration and one of another."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, taught: tuple[Path, object]) -> Path:
    """A folder with those runs, two rounds each, evaluated after each round."""
    place = tmp_path_factory.mktemp("made")
    copy_teacher(taught[0], place)
    for name, words in FOUR.items():
        said = give(*DIGITS, "evaluate_every=1", *words, "--output", name, cwd=place)
        assert said.code == 0, said.err
    return place


@pytest.fixture
def four(made: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Their names, in the current folder."""
    monkeypatch.chdir(made)
    return list(FOUR)


def test_table_and_figure_of_real_runs(four: list[str], ddad: Ddad) -> None:
    said = ddad("compare", *four, "--figure", "figure.png")
    assert (said.code, said.err) == (0, "the figure is figure.png\n")
    accuracies = [(folder.result(Path(name)) or {})["student"]["accuracy"] for name in four]
    mean, deviation = statistics.fmean(accuracies[:3]), statistics.stdev(accuracies[:3])
    assert f"{100 * mean:.2f} ± {100 * deviation:.2f}" in said.out and f"{100 * accuracies[3]:.2f}" in said.out
    assert "student.lr" in said.out and "batch_size 16" in said.out
    with Image.open("figure.png") as figure:
        assert figure.format == "PNG" and figure.width > 1000

    said = ddad("compare", *four, "--output", "out/table.md")
    assert (said.code, said.out, said.err) == (0, "", "the table is out/table.md\n")
    shown = ddad("compare", *four, "--format", "markdown")
    assert shown.out == Path("out/table.md").read_text()
    assert shown.out.splitlines()[2].startswith(f"| 0.1 | 3 | {100 * mean:.2f} ± ")

    said = ddad("compare", *four, "--format", "csv")
    table = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["runs"] for row in table] == ["a0 a1 a2", "b0"]
    assert float(table[0]["accuracy mean"]) == mean and table[1]["accuracy std"] == ""


def test_comparing_changes_nothing(four: list[str], made: Path, ddad: Ddad) -> None:
    before = contents(made)
    assert ddad("compare", *four).code == 0
    assert contents(made) == before


def test_mlflow_says_what_the_folder_says(run: Run, tmp_path: Path, ddad: Ddad) -> None:
    """From another folder; the store is the run's own."""
    uri = f"sqlite:///{run.place}/mlflow.db"
    said = ddad("compare", "mlflow:ddad", "--uri", uri, "--format", "csv")
    assert (said.code, said.err) == (0, "")
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert float(row["accuracy mean"]) == run.result["student"]["accuracy"]
    assert float(row["agreement mean"]) == run.result["agreement"]
    assert float(row["seconds mean"]) == pytest.approx(run.result["wall_seconds"], abs=0.001)
    assert (row["runs"], row["seeds"]) == (run.folder.name, "0")
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_leaves_nothing(workplace: Path, ddad: Ddad) -> None:
    assert ddad(*DIGITS, "--output", "good").code == 0
    assert ddad("distill", "digits", *SMALL, *UNTAUGHT, "--output", "untrained").code == 0
    assert ddad(*DIGITS, "max_minutes=0.00001", "--output", "begun").code == 0
    assert ddad("distill", "camvid-smoke", *SMALL, "--output", "camvid").code == 0
    before = contents(workplace)
    for words, expected in {
        ("good", "untrained"): "untrained has an untrained teacher: its figures mean nothing",
        ("good", "camvid"): "camvid has an untrained teacher",
        ("good", "begun"): "begun is not finished",
        ("good", "teachers"): "teachers is not a run folder",
        ("good", "nowhere"): "nowhere: there is no such folder",
        ("good", "--format", "html"): "--format html: no such format",
        ("good", "--figure", "figure.jpg"): "--figure figure.jpg: expected a file that ends in .png",
        ("mlflow:ddad",): "no MLflow store at",
    }.items():
        line = ddad("compare", *words, "--output", "table.md").complaint()
        assert expected in line
    assert "Missing argument" in ddad("compare").complaint()
    assert contents(workplace) == before
    line = ddad("compare", "good", "--output", "good/config.yaml/table.md").complaint()
    assert "cannot write good/config.yaml/table.md" in line
    assert contents(workplace) == before
