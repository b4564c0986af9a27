"""benchmarks.equal_time and its studies: settings that exist, a table whose lines stand in order, runs made once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import methods, parts, results
from benchmarks.equal_time import Study, rows
from benchmarks.methods import Run

STUDIES = {"results": results.STUDY, "parts": parts.STUDY}


def row(name: str, seconds: int, score: float, seed: int = 0) -> dict[str, Any]:
    return {
        "budget": f"seconds={seconds}", "name": name, "seed": seed, "rounds": 8, "student_updates": 40, "score": score,
        "agreement": score, "metric": "accuracy", "teacher": {"accuracy": 0.9}, "curve": [[4, 0.2], [8, score]],
    }  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """`parts`, with results of its own."""
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    return dataclasses.replace(
        parts.STUDY, table_file=tmp_path / "table.md", figure_file=tmp_path / "figures" / "curves.png"
    )


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_every_pair_resolves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pair, suite in STUDIES[name].pairs.items():
        monkeypatch.setitem(methods.SUITES, pair, suite)
        for one in STUDIES[name].possible(pair):
            method, words = STUDIES[name].methods[one]
            assert Run(pair, method, 0, words).steps() >= 1


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_that_is_kept_is_of_a_method_and_has_a_line_of_its_own(name: str) -> None:
    study = STUDIES[name]
    for pair in study.pairs:
        styles = study.styles(pair)
        assert styles.keys() == {row["name"] for row in rows(pair)}
        assert len(set(styles.values())) == len(styles)


def test_a_pair_has_the_methods_that_it_can_run() -> None:
    assert {"kd", "cmi"} <= set(results.possible("caltech101-resnet18-half"))
    assert "kd" not in results.possible("cifar10-resnet32-half")
    assert {"cmi", "fast"}.isdisjoint(results.possible("nyuv2-resnet18-half"))


def test_lines_stand_by_budget_and_then_by_score(study: Study, tmp_path: Path) -> None:
    rows = [
        row("fresh", 300, 0.7), row("fresh", 60, 0.4), row("fresh + mixup", 60, 0.5), row("fresh", 60, 0.6, seed=1),
    ]  # fmt: skip
    for each in rows:
        methods.add(tmp_path / "fashion-parts.jsonl", each)
    lines = study.table().splitlines()[-3:]
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["fresh", "0 1", "90.00"], ["fresh + mixup", "0", "90.00"], ["fresh", "0", "90.00"],
    ]  # fmt: skip
    assert "| 50.00 ± 14.14 | 50.00 ± 14.14 | 60 |" in lines[0] and "| 300 |" in lines[2]
    study.draw()
    assert study.figure_file.stat().st_size > 0


def test_what_is_finished_is_not_run_again(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods.add(tmp_path / "fashion-parts.jsonl", row("fresh", 60, 0.4))

    def run(*_: Any) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(methods, "execute", run)
    monkeypatch.setattr("benchmarks.pace.preparation", lambda _: 1.0)
    monkeypatch.setattr("benchmarks.pace.speeds", lambda *_: [1.0])
    monkeypatch.setitem(methods.SUITES, "fashion-parts", study.pairs["fashion-parts"])
    assert study.execute("fashion-parts", "fresh", 0, 60)["score"] == 0.4
    for name, seed, seconds in (("fresh", 1, 60.0), ("fresh", 0, 300.0), ("fresh + mixup", 0, 60.0)):
        with pytest.raises(AssertionError, match="a run was started"):
            study.execute("fashion-parts", name, seed, seconds)
