"""Runs side by side: what is one row, what a row says, what is refused; folders and a real MLflow store."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import config as config_module
from harness import resolve, tracking
from harness.compare import groups, plots, runs, tables
from harness.compare.runs import Run
from harness.config import Config
from harness.config.parse import Overlay, merge
from harness.errors import UserError
from harness.run import folder, metrics


def a_config(over: Overlay | None = None, recipe: str = "digits") -> Config:
    return resolve.resolve(recipe, None, merge({"rounds": 20, "tracking": {"uri": "none"}}, over or {}))


def a_run(
    path: Path,
    accuracy: float | None,
    over: Overlay | None = None,
    evaluated: tuple[int, ...] = (10, 20),
    **result: Any,
) -> Path:
    """A finished run's folder, its figures made up: `accuracy` at the end, a tenth of it less an evaluation before."""
    teacher = path.parent / "teacher.safetensors"
    if not teacher.exists():
        teacher.write_bytes(b"weights")
    config = a_config(merge({"teacher": {"checkpoint": str(teacher)}}, over or {}))
    path.mkdir()
    folder.open_run(path, config)
    rows = metrics.Log(path / "metrics.jsonl")
    for place, number in zip(reversed(range(len(evaluated))), evaluated, strict=True):
        rows.write(number, number / 4, {"student/total": 1.0, "rounds_per_second": 4.0})
        if accuracy is not None:
            score = accuracy * (1 - place / 10)
            rows.write(number, number / 4, {"evaluation/agreement": score, "evaluation/student_accuracy": score})
    rows.close()
    found = {
        "student": {"accuracy": accuracy}, "teacher": {"accuracy": 0.99}, "agreement": 0.5,
        "agreement_on": "generated" if config.data.name == "none" else "test", "wall_seconds": 5.0,
    }  # fmt: skip
    folder.write_result(path, found | result)
    return path


def compared(*sources: Path | str, uri: str = "none") -> tuple[groups.Comparison, list[str]]:
    said: list[str] = []
    found = runs.read([str(source) for source in sources], uri, said.append)
    return groups.compare(*found, said.append), said


def refusal(*sources: Path | str, uri: str = "none") -> str:
    with pytest.raises(UserError) as error:
        compared(*sources, uri=uri)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def six(tmp_path: Path) -> list[Path]:
    """Two configurations, of which one has three seeds and the other two, and a stranger with another teacher."""
    scores = {0: 0.90, 1: 0.92, 2: 0.97}
    first = [a_run(tmp_path / f"a{seed}", score, {"seed": seed}) for seed, score in scores.items()]
    other = {"student": {"lr": 0.03}, "weights": {"one_hot": [[0, 0.1], [10, 0.2]]}}
    second = [a_run(tmp_path / f"b{seed}", 0.5, {**other, "seed": seed}) for seed in (0, 1)]
    return [*first, *second]


def test_runs_that_differ_in_their_seed_alone_are_one_row_by_hand(six: list[Path]) -> None:
    found, said = compared(*six)
    assert said == []
    assert found.differing == ["weights.one_hot", "student.lr"]
    assert [[run.seed for run in row.runs] for row in found.rows] == [[0, 1, 2], [0, 1]]
    spread = found.rows[0].spread("accuracy")
    assert spread is not None
    # mean (90 + 92 + 97) / 3 = 93; deviations -3, -1, 4: (9 + 1 + 16) / (3 - 1) = 13
    assert [spread.mean, spread.deviation, spread.count] == pytest.approx([0.93, 13**0.5 / 100, 3])
    alone, _ = compared(six[0])
    spread = alone.rows[0].spread("accuracy")
    assert spread is not None and (spread.deviation, spread.count) == (None, 1)
    assert alone.rows[0].spread("miou") is None


def test_markdown_is_a_table(six: list[Path]) -> None:
    lines = tables.markdown(compared(*six)[0]).splitlines()
    assert lines[:4] == [
        "| weights.one_hot | student.lr | n | accuracy, % | agreement, % | seconds |",
        "|---|---|---:|---:|---:|---:|",
        "| 0 | 0.1 | 3 | 93.00 ± 3.61 | 50.00 ± 0.00 | 5.0 ± 0.0 |",
        "| [[0, 0.1], [10, 0.2]] | 0.03 | 2 | 50.00 ± 0.00 | 50.00 ± 0.00 | 5.0 ± 0.0 |",
    ]
    assert lines[4] == "" and len(lines) == 6
    assert "teacher's accuracy 99.00 %" in lines[5] and "recipe digits" in lines[5] and "rounds 20" in lines[5]


def test_csv_has_every_figure_in_full(six: list[Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(compared(*six)[0]))))
    assert [row["seeds"] for row in rows] == ["0 1 2", "0 1"]
    assert rows[0]["runs"] == " ".join(map(str, six[:3]))
    assert float(rows[0]["accuracy std"]) == pytest.approx(13**0.5 / 100, rel=1e-12)
    assert (rows[1]["student.lr"], rows[1]["accuracy mean"], rows[1]["accuracy n"]) == ("0.03", "0.5", "2")
    (row,) = csv.DictReader(io.StringIO(tables.comma_separated(compared(six[0])[0])))
    assert (row["accuracy mean"], row["accuracy std"], row["recipe"]) == ("0.9", "", "digits")


def test_terminal_breaks_no_line_unless_told_and_names_single_runs(six: list[Path]) -> None:
    text = tables.terminal(compared(*six)[0])
    assert "93.00 ± 3.61" in text and "\n" in text and "[[0" in text
    assert str(six[0]) not in text
    text = tables.terminal(compared(six[0], six[3])[0])
    assert str(six[0]) in text and str(six[3]) in text and "no deviation is known" in text
    narrow = tables.terminal(compared(six[0], six[3])[0], width=60)
    assert max(map(len, narrow.splitlines())) <= 60


def test_values_may_hold_what_markdown_and_rich_read_as_marks(tmp_path: Path) -> None:
    marked = [Run(name, {"task": "classification", "seed": 0, "student.network": name}, {"agreement": 0.5})
              for name in ("a|b", "[bold]c[/bold]")]  # fmt: skip
    found = groups.compare(marked, None, print)
    assert "| a\\|b |" in tables.markdown(found)
    assert "[bold]c[/bold]" in tables.terminal(found)


def test_bookkeeping_and_a_teachers_place_do_not_part_runs_but_its_content_does(tmp_path: Path) -> None:
    for name, content in {"x": b"weights", "y": b"weights", "z": b"others"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "teacher.safetensors").write_bytes(content)
    kept = {"log_every": 5, "tracking": {"experiment": "elsewhere"}, "seed": 1}
    x, y, z = (a_run(tmp_path / name / "run", 0.5, kept if name == "y" else {}) for name in "xyz")
    found, _ = compared(x, y)
    assert found.differing == [] and len(found.rows) == 1
    found, _ = compared(x, y, z)
    assert found.differing == ["teacher.checkpoint"] and len(found.rows) == 2
    assert "| teacher.safetensors (" in tables.markdown(found)


def test_a_teacher_that_scores_otherwise_for_another_seed_is_said(tmp_path: Path) -> None:
    a = a_run(tmp_path / "a", 0.5, {"seed": 0}, teacher={"accuracy": 0.98})
    b = a_run(tmp_path / "b", 0.5, {"seed": 1}, teacher={"accuracy": 0.9583})
    (line,) = compared(a, b)[1]
    assert line.startswith(f"{b} and {a} differ in the seed alone, and their teachers have 95.83% and 98.00%")
    c = a_run(tmp_path / "c", 0.5, {"seed": 2}, teacher={"accuracy": 0.9805})
    assert not compared(a, c)[1], "another machine's rounding"


def test_the_same_run_counts_once(six: list[Path]) -> None:
    found, said = compared(six[0], six[0], six[1])
    assert [len(row.runs) for row in found.rows] == [2] and said == []
    twin = a_run(six[0].with_name("twin"), 0.1, {"seed": 0})
    found, said = compared(six[0], twin)
    assert [run.name for run in found.rows[0].runs] == [str(twin)]
    assert said == [f"{six[0]} and {twin} are the same configuration and seed: the latter counts"]


def test_without_test_images_agreement_is_on_generated_ones_and_judges(tmp_path: Path) -> None:
    without = {"data": {"name": "none"}}
    alone, _ = compared(a_run(tmp_path / "a", None, without))
    assert (alone.primary, alone.scores) == ("agreement on generated", ["agreement on generated", "teacher", "seconds"])
    both, _ = compared(tmp_path / "a", a_run(tmp_path / "b", 0.5))
    assert (both.primary, both.scores[:3]) == ("accuracy", ["accuracy", "agreement", "agreement on generated"])
    assert "| none | 1 | - | - | 50.00 | 5.0 |" in tables.markdown(both)


def test_a_score_that_some_seeds_lack_says_over_how_many_it_is(tmp_path: Path) -> None:
    a_run(tmp_path / "a", 0.5), a_run(tmp_path / "b", None, {"seed": 1})
    assert "| 2 | 50.00 (n = 1) |" in tables.markdown(compared(tmp_path / "a", tmp_path / "b")[0])


def test_what_is_refused(tmp_path: Path, six: list[Path]) -> None:
    for name in ("empty", "begun", "other"):
        (tmp_path / name).mkdir()
    assert "there is no such folder" in refusal(tmp_path / "nowhere")
    assert "empty is not a run folder" in refusal(six[0], tmp_path / "empty")
    folder.open_run(tmp_path / "begun", a_config({"teacher": {"checkpoint": str(tmp_path / "teacher.safetensors")}}))
    assert "begun is not finished" in refusal(six[0], tmp_path / "begun")
    untrained = a_run(tmp_path / "untrained", 0.1, {"teacher": {"checkpoint": "untrained"}})
    assert "untrained has an untrained teacher" in refusal(six[0], untrained)
    smoke = {"teacher": {"checkpoint": str(tmp_path / "teacher.safetensors")}, "tracking": {"uri": "none"}}
    folder.open_run(tmp_path / "other", resolve.resolve("camvid-smoke", None, smoke))
    metrics.Log(tmp_path / "other" / "metrics.jsonl").close()
    scores = {"miou": None, "pixel_accuracy": None}
    result = {"student": scores, "teacher": scores, "agreement": 0.5, "agreement_on": "generated", "wall_seconds": 1.0}
    folder.write_result(tmp_path / "other", result)
    line = refusal(six[0], tmp_path / "other")
    assert "runs of different tasks" in line and "a0 is classification" in line and "other is segmentation" in line
    folder.write_result(tmp_path / "other", result | {"student": {"accuracy": 0.5}})
    assert "is not the result of a run of segmentation" in refusal(tmp_path / "other")
    assert "was given with folders" in refusal(six[0], "mlflow:ddad")
    for uri in ("none", f"sqlite:///{tmp_path}/absent.db"):
        assert "no MLflow store at" in refusal("mlflow:ddad", uri=uri)
    assert not (tmp_path / "absent.db").exists()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three finished trials, one that was pruned after its first evaluation, and what a sweep writes of itself."""
    (tmp_path / "sweep" / "trials").mkdir(parents=True)
    for name, (batch_norm, accuracy, probe) in {"a": (0.1, 0.5, 0.6), "b": (1, 0.7, 0.9), "c": (10, 0.6, 0.2)}.items():
        path = a_run(tmp_path / "sweep" / "trials" / name, accuracy, {"weights": {"batch_norm": batch_norm}})
        rows = metrics.Log(path / "metrics.jsonl", keep_through=20)
        rows.write(20, 5.0, {"evaluation/student_accuracy": accuracy, "evaluation/probe_agreement": probe})
        rows.close()
    pruned = a_run(tmp_path / "sweep" / "trials" / "d", 0.3, {"weights": {"batch_norm": 100}}, evaluated=(10,))
    (pruned / "result.json").unlink()
    entries = [{"folder": f"trials/{name}", "outcome": "pruned" if name == "d" else "finished"} for name in "abcd"]
    entries.append({"folder": "trials/e", "outcome": "failed"})  # before its run began
    (tmp_path / "sweep" / "trials.json").write_text(json.dumps({"trials": entries}))
    describe(tmp_path / "sweep", "probe_agreement", "agreement on the probe (data-free)")
    return tmp_path / "sweep"


def describe(sweep: Path, score: str, words: str) -> None:
    (sweep / "sweep.json").write_text(json.dumps({"metric": f"evaluation/{score}", "objective_in_words": words}))


def test_a_sweep_is_its_trials_best_first_by_what_it_maximised(sweep: Path) -> None:
    found, said = compared(sweep)
    assert said == [f"{sweep}: 1 of 4 runs are left out (1 pruned)"]
    assert [row.config["weights.batch_norm"] for row in found.rows] == [1, 0.1, 10]
    assert found.scores[:2] == ["probe_agreement", "accuracy"]
    text = tables.markdown(found)
    assert "| weights.batch_norm | n | probe agreement (objective), % | accuracy, % |" in text
    assert "The objective is agreement on the probe (data-free)." in text
    describe(sweep, "student_accuracy", "accuracy on real data (ORACLE)")
    found, _ = compared(sweep)
    assert [row.config["weights.batch_norm"] for row in found.rows] == [1, 10, 0.1]
    text = tables.markdown(found)
    assert "| n | accuracy (oracle objective), % |" in text and text.count("accuracy (") == 1
    assert "accuracy on real data (ORACLE)" in text
    assert "accuracy (oracle objective) mean" in tables.comma_separated(found)


def test_a_sweep_beside_a_run_and_another_sweep(sweep: Path, tmp_path: Path) -> None:
    found, _ = compared(sweep, a_run(sweep / "default", 0.4))
    assert [run.name for row in found.rows for run in row.runs][-1] == str(sweep / "default"), "nobody judged it"
    assert len(found.trials) == 4
    other = shutil.copytree(sweep, tmp_path / "other")
    describe(other, "student_accuracy", "accuracy on real data (ORACLE)")
    assert "sweeps of different objectives (accuracy on" in refusal(sweep, other)
    (other / "sweep.json").write_text("[]")
    assert "other is no readable sweep" in refusal(other)
    (sweep / "trials.json").unlink()
    assert f"{sweep} has no run to compare (it is empty)" in refusal(sweep)


def test_a_sweeps_figure_has_coordinates_below_its_curves(sweep: Path, tmp_path: Path) -> None:
    plots.draw(compared(sweep)[0], tmp_path / "sweep.png")
    plots.draw(compared(*sorted((sweep / "trials").glob("[abc]")))[0], tmp_path / "plain.png")
    with Image.open(tmp_path / "sweep.png") as tall, Image.open(tmp_path / "plain.png") as flat:
        assert tall.width == flat.width and tall.height > flat.height + 400
    assert colour_in(tmp_path / "sweep.png", "#440154") > 300, "the best is dark"
    assert colour_in(tmp_path / "plain.png", "#440154") == 0


def test_form_is_as_it_is_called_or_as_the_file_is_named() -> None:
    assert tables.formatter(None, None) is tables.terminal
    assert (
        tables.formatter(None, Path("a.MD")) is tables.markdown
        and tables.formatter(None, Path("a.csv")) is tables.comma_separated
    )
    assert tables.formatter("markdown", Path("a.csv")) is tables.markdown
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        tables.formatter("markdwn", None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An sqlite store with two finished seeds, one stopped, one untrained, a lesson, and what is no run of ours."""
    place = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{place}/mlflow.db"
    for name, status, over in (
        ("a", "FINISHED", {}), ("b", "FINISHED", {"seed": 1}), ("c", "KILLED", {"seed": 2}),
        ("d", "FINISHED", {"teacher": {"checkpoint": "untrained"}}), ("e", "FINISHED", {"method": "supervised"}),
    ):  # fmt: skip
        path = a_run(place / name, 0.9 if name == "a" else 0.8, merge({"tracking": {"uri": uri}}, over))
        config, _ = folder.read_config(path)
        said: list[str] = []
        tags = {f"{role}.sha256": record["sha256"] for role, record in folder.recorded(path).items()}
        experiment = tracking.Experiment(config, path, tags, said.append)
        experiment.params(config_module.flat(config))
        experiment.close(status)  # type: ignore[arg-type] # a literal that lost its type on the way
        assert said == []
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    swept = client.create_experiment("swept")
    tags = {"kind": "sweep", "objective": "accuracy on real data (ORACLE)", "data_free_objective": "false"}
    parent = client.create_run(swept, tags=tags).info.run_id
    params = {"task": "classification", "method": "ddad", "objective": "accuracy", "teacher.checkpoint": "t"}
    for name, value in params.items():
        client.log_param(parent, name, value)
    for name, accuracy, more in (("low", 0.2, {"outcome": "finished"}), ("high", 0.8, {"outcome": "finished"}),
                                 ("pruned", 0.1, {"outcome": "pruned"}), ("repeated", 0.7, {})):  # fmt: skip
        child = client.create_run(swept, tags={**more, "mlflow.parentRunId": parent}, run_name=name).info.run_id
        for key, text in {**params, "student.lr": str(accuracy)}.items():
            client.log_param(child, key, text)
        client.log_metric(child, "evaluation/student_accuracy", accuracy, step=10)
        client.log_metric(child, "rounds_per_second", 2.0, step=10)
        client.set_terminated(child, "KILLED" if name == "pruned" else "FINISHED")
    client.create_run(swept, tags=tags)  # a sweep that was killed as it began
    client.set_tag(child, "weights", json.dumps({"batch_norm": [[0, 1.0], [6, 2.0]]}))  # "repeated" took over others
    client.create_run(client.get_experiment_by_name("ddad").experiment_id, run_name="a stranger's")
    client.create_experiment("empty")
    return uri, place


def test_mlflow_holds_the_same_runs(store: tuple[str, Path]) -> None:
    uri, place = store
    found, said = compared("mlflow:ddad", uri=uri)
    assert said == [
        "mlflow:ddad: 3 of 5 runs are left out (1 not finished, 1 of an untrained teacher, 1 the training of a teacher)"
    ]
    folders, _ = compared(place / "a", place / "b")
    assert [run.name for run in found.rows[0].runs] == ["a", "b"]
    assert [run.curve for run in found.rows[0].runs] == [run.curve for run in folders.rows[0].runs]
    assert found.rows[0].config.items() >= folders.rows[0].config.items()
    assert "teacher.safetensors (" in found.rows[0].config["teacher.checkpoint"]
    for score in ("accuracy", "seconds"):
        assert found.rows[0].spread(score) == folders.rows[0].spread(score)


def test_mlflow_sweeps_are_their_trials(store: tuple[str, Path]) -> None:
    uri, _ = store
    found, said = compared("mlflow:swept", uri=uri)
    assert said == ["mlflow:swept: 1 of 4 runs are left out (1 pruned)"]
    assert [row.runs[0].name for row in found.rows] == ["high", "repeated", "low"]
    assert [run.name for run in found.trials] == ["low", "high", "pruned"]
    assert [row.config["weights.batch_norm"] for row in found.rows] == [1.0, [[0, 1.0], [6, 2.0]], 1.0]
    assert found.objective and found.objective.score == found.primary == "accuracy"
    assert found.rows[0].runs[0].curve == [{"round": 10, "seconds": 5.0, "accuracy": 0.8}]
    assert "| student.lr | n | accuracy (oracle objective), % | seconds |" in tables.markdown(found)


def test_mlflow_experiments_that_hold_nothing(store: tuple[str, Path]) -> None:
    uri, _ = store
    assert "has no experiment 'dda'; did you mean 'ddad'?" in refusal("mlflow:dda", uri=uri)
    assert "mlflow:empty has no run to compare (it is empty)" in refusal("mlflow:empty", uri=uri)
    assert "cannot be read (no answer)" in refusal("mlflow:ddad", uri="http://user:secret@127.0.0.1:1")
    assert "secret" not in refusal("mlflow:ddad", uri="http://user:secret@127.0.0.1:1")


def colour_in(path: Path, colour: str) -> int:
    """How many pixels of a picture are of a colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rgb = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return int((np.abs(pixels - rgb).sum(2) < 20).sum())


def test_figure_has_a_line_a_row(six: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "out" / "figure.png"
    plots.draw(compared(*six)[0], path)
    assert [colour_in(path, colour) > 300 for colour in plots.COLOURS[:3]] == [True, True, False]
    plots.draw(compared(a_run(tmp_path / "none", None))[0], path)
    plots.draw(compared(*six)[0], path.with_suffix(".pdf"))
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["figure.pdf", "figure.png"]


def test_mean_is_over_the_rounds_that_all_were_evaluated_at() -> None:
    curves: list[list[plots.Point]] = [[(10, 1.0, 50), (20, 2.0, 60), (30, 3.0, 70)], [(20, 4.0, 80), (30, 5.0, 90)]]
    assert plots._mean(curves) == [(20, 3.0, 70), (30, 4.0, 80)]


def test_more_rows_than_colours_are_coloured_by_their_score(tmp_path: Path) -> None:
    count = len(plots.COLOURS) + 1
    many = [a_run(tmp_path / f"{i}", 0.5 + i / 100, {"student": {"lr": 0.1 + i / 100}}) for i in range(count)]
    plots.draw(compared(*many)[0], tmp_path / "figure.png")
    assert colour_in(tmp_path / "figure.png", "#440154") > 100, "the best is dark"
    assert colour_in(tmp_path / "figure.png", plots.COLOURS[1]) == 0


def test_coordinates_by_hand() -> None:
    line = plots._coordinate("a", [1.0, 2, float("nan"), 5.0])
    assert line.heights[:2] == [0, 0.25] and line.heights[3] == 1 and np.isnan(line.heights[2])
    assert line.ticks == [(0, "1"), (0.25, "2"), (1, "5")], "few values are told themselves"
    many = plots._coordinate("a", [0.0, 1, 2, 3, 7, 8])
    assert many.ticks == [(0, "0"), (0.25, "2"), (0.5, "4"), (0.75, "6"), (1, "8")]
    close = plots._coordinate("a", [0, 4, 4.1, 5])
    assert close.ticks == [(0, "0"), (0.25, "1.25"), (0.5, "2.5"), (0.75, "3.75"), (1, "5")], "4.1 would cover 4"
    logarithmic = plots._coordinate("a", [0.01, 0.1, 1.0])
    assert logarithmic.heights == pytest.approx([0, 0.5, 1]) and [text for _, text in logarithmic.ticks] == [
        "0.01",
        "0.1",
        "1",
    ]
    assert plots._coordinate("a", [0.0, 50.0]).heights == [0, 1]
    assert plots._coordinate("a", [3, 3]).heights == [0.5, 0.5]
    words = plots._coordinate("a", ["sgd", "adam", "sgd"])
    assert words.heights == [0.75, 0.25, 0.75] and words.ticks == [(0.25, "adam"), (0.75, "sgd")]
    assert len(plots._coordinate("a", [True, False]).ticks) == 2


def test_figure_is_refused_early_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--figure f\.jpg: expected a file that ends in \.png"):
        plots.check_suffix(Path("f.jpg"))
    plots.check_suffix(Path("f.PNG"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # what the import meets is then ModuleNotFoundError
    with pytest.raises(UserError, match="matplotlib, which is not installed"):
        plots.draw(compared(a_run(tmp_path / "a", 0.5))[0], tmp_path / "f.png")
