"""`ddad evaluate`, `predict`, `export`, `recipes`, `doctor`, `--dry-run` and `--help`."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load_file, save_file

from harness import config as config_module
from harness import task
from harness.run.student import load_student
from tests.end_to_end.conftest import (
    SHORT,
    TEACHER,
    Ddad,
    Run,
    contents,
    importing_ddad,
    run_ddad,
)
from tests.helpers import DDAD, ROOT, environment


def test_evaluate_gives_one_json_object_with_the_figures_of_the_result(run: Run) -> None:
    done = run_ddad("evaluate", str(run.folder), "--json", cwd=run.place)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["student"]["accuracy"] == run.result["student"]["accuracy"]
    assert found["teacher"]["accuracy"] == run.result["teacher"]["accuracy"]
    assert (found["agreement"], found["agreement_on"]) == (run.result["agreement"], "test")
    assert found["missing"] == []


def test_evaluate_needs_the_run_folder_alone(run: Run, ddad: Ddad, tmp_path: Path) -> None:
    """From another folder: the run folder was copied away, its teacher is where it was."""
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    said = ddad("evaluate", copy, "--json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["teacher"]["accuracy"] == run.result["teacher"]["accuracy"]
    plain = ddad("evaluate", "copy")
    assert re.search(rf"teacher accuracy +{run.result['teacher']['accuracy']:.4f}\n", plain.out)


def test_evaluate_says_which_file_moved_and_still_scores_the_student(
    run: Run, ddad: Ddad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.place)
    teacher = run.place / TEACHER
    moved = teacher.rename(teacher.with_name("elsewhere"))
    try:
        said = ddad("evaluate", run.folder, "--json")
        teacher.write_bytes(b"another file")
        changed = ddad("evaluate", run.folder, "--json")
    finally:
        moved.replace(teacher)
    for found, reason in ((said, "not there"), (changed, "not the file")):
        assert found.code == 0
        content = json.loads(found.out)
        assert content["student"]["accuracy"] == run.result["student"]["accuracy"]
        assert content["teacher"] is None and content["agreement"] is None
        (problem,) = content["missing"]
        assert str(teacher) in problem and reason in problem
        assert problem in found.err


def test_predict_and_export_take_the_run(run: Run, ddad: Ddad, tmp_path: Path) -> None:
    image = tmp_path / "digit.png"
    Image.linear_gradient("L").save(image)
    said = ddad("predict", run.folder, image, "--json")
    assert (said.code, said.err) == (0, "")
    (answer,) = json.loads(said.out)["predictions"]
    assert answer["class"] in {str(digit) for digit in range(10)} and 0.1 <= answer["probability"] <= 1
    plain = ddad("predict", run.folder, image)
    assert plain.out == f"{image}: {answer['class']} ({answer['probability']:.1%})\n"
    said = ddad("export", run.folder, "--format", "torch.export", "--output", tmp_path / "s.pt2", "--json")
    assert said.code == 0
    assert json.loads(said.out)["max_difference"] < 1e-5
    student, _ = load_student(run.folder)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(torch.export.load(tmp_path / "s.pt2").module()(x), student(x))


def test_recipes_are_listed_with_what_they_are(ddad: Ddad) -> None:
    said = ddad("recipes")
    assert (said.code, said.err) == (0, "")
    listed = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert listed.keys() == {name for each in task.names() for name in task.load(each).recipes()}
    assert listed["digits"].startswith("Handwritten digits")


def test_doctor_gives_one_json_object_and_writes_nothing(tmp_path: Path) -> None:
    done = run_ddad("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found.keys() == {"python", "packages", "devices", "gloo", "nccl", "deepspeed", "mlflow"}
    assert all(isinstance(sentence, str) and "\n" not in sentence for sentence in found.values())
    assert found["gloo"] == "works"
    assert f"torch {importlib.metadata.version('torch')}" in found["packages"]
    assert "will be made" in found["mlflow"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_in_words(ddad: Ddad, workplace: Path) -> None:
    said = ddad("doctor")
    assert said.code == 0
    assert re.search(r"^gloo +works$", said.out, re.MULTILINE)


@pytest.mark.parametrize("teacher_is_there", [True, False])
def test_dry_run_tells_what_a_run_would_cost_and_writes_nothing(
    workplace: Path, ddad: Ddad, teacher_is_there: bool
) -> None:
    if not teacher_is_there:
        shutil.rmtree(workplace / "teachers")
    before = contents(workplace)
    said = ddad("distill", "digits", "batch_size=32", "seed=5", "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert contents(workplace) == before
    assert ("not there yet" in said.out) != teacher_is_there
    printed, _, estimates = said.out.partition("\nrun folder")
    config = config_module.build(yaml.safe_load(printed))
    assert (config.seed, config.batch_size, config.rounds) == (5, 32, 240)
    assert f"runs/digits-{config_module.identity(config)}" in estimates
    for pattern in (
        r"^teacher +cnn32, 56,554 parameters$",
        r"^student +cnn12, 8,254 parameters$",
        r"^generator +upsample, [\d,]+ parameters$",
        r"^time +240 rounds of [\d.e-]+ s: \d+ ",
        r"^memory +[\d,]+ MiB",
        r"^disk +\d+ MiB",
    ):
        assert re.search(pattern, estimates, re.MULTILINE), (pattern, estimates)


def test_a_run_that_is_repeated_with_another_teacher_says_so(
    run: Run, ddad: Ddad, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workplace / "config.yaml"
    file.write_text((run.folder / "config.yaml").read_text().replace(str(run.place), str(workplace)))
    assert ddad("distill", "--config", file, "--dry-run").err == ""
    weights = load_file(workplace / TEACHER)
    save_file({name: value + value for name, value in weights.items()}, workplace / TEACHER)
    said = ddad("distill", "--config", file, "--dry-run").err
    assert "is not the file the run began with: what follows is another run than" in said


def test_estimated_disk_is_what_a_run_takes(run: Run, ddad: Ddad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.place)
    said = ddad("distill", "digits", *SHORT, "--dry-run")
    estimate = re.search(r"^disk +(\d+) MiB", said.out, re.MULTILINE)
    files = [*(run.folder / "checkpoints").iterdir(), run.folder / "student.safetensors"]
    assert estimate and int(estimate[1]) == pytest.approx(sum(file.stat().st_size for file in files) / 2**20, abs=1)


@pytest.mark.parametrize("words", [["--help"], ["distill", "--help"], ["sweep", "--help"]], ids=" ".join)
def test_help_is_quick_because_it_imports_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    done, imported = importing_ddad(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "Usage" in done.stdout
    assert {"typer", "harness"} <= imported
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {Requirement(line).name.lower() for line in project["dependencies"]} - {"typer"}
    owners = importlib.metadata.packages_distributions().items()
    heavy = {package for package, names in owners if required & {name.lower() for name in names}}
    assert heavy >= {"torch", "mlflow", "ray", "matplotlib", "numpy", "omegaconf", "accelerate"}
    assert not imported & (heavy | {"tasks", "tune"})


def test_nothing_said_is_a_question_for_help(ddad: Ddad) -> None:
    said = ddad()
    assert (said.code, said.err) == (0, "")
    assert said.out == ddad("--help").out and "distill" in said.out


def test_console_command_is_the_same_as_the_module(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("ddad")
    words = ["distill", "digits", "--nonsense"]
    answers = [
        subprocess.run([*start, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        for start in ([str(command)], DDAD)
    ]
    assert [answer.returncode for answer in answers] == [2, 2]
    assert answers[0].stderr == answers[1].stderr
    assert answers[0].stderr.startswith("ddad: ")
