"""`ddad distill` and what it leaves behind, from one short run that all these tests look at."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from harness import config as config_module
from harness import distill, export, networks, resolve, task
from harness.config import Config
from harness.evaluate import measure
from harness.strict import paths
from tests.end_to_end.conftest import TEACHER, Ddad, contents, copy_teacher, only, sha256
from tests.helpers import DDAD, ROOT, environment, run_ddad

SHORT = ("rounds=6", "batch_size=32", "log_every=2", "checkpoint.every=2", "checkpoint.keep=2")

QUIET = ("tracking.uri=none", "pictures=false")


@dataclass(frozen=True)
class Run:
    place: Path
    """The folder in which the command was given."""
    folder: Path
    """The run folder."""
    done: subprocess.CompletedProcess[str]
    cpu_seconds: float

    @property
    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return content

    @property
    def config(self) -> Config:
        return resolve.resolve(None, resolve.read_file(self.folder / "config.yaml"))


def timed_ddad(*words: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command, and the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_ddad(*words, cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, taught: tuple[Path, object]) -> Run:
    """One run with everything on, its MLflow store included."""
    place = tmp_path_factory.mktemp("distilled")
    copy_teacher(taught[0], place)
    done, seconds = timed_ddad("distill", "digits", *SHORT, cwd=place)
    assert done.returncode == 0, done.stderr
    return Run(place, only(place, "runs/*"), done, seconds)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_teach_leaves_the_teacher_and_says_where(taught: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, done = taught
    assert done.stdout.splitlines()[-1] == f"the teacher is {TEACHER}"
    assert done.stderr == ""
    assert sorted(load_file(place / TEACHER)) == sorted(
        task.load("classification").network("cnn32", 10, 1).state_dict()
    )
    lesson = json.loads((only(place, "runs/*") / "result.json").read_text())
    assert (lesson["data_free"], lesson["teacher"], lesson["student"]["network"]) == (False, None, "cnn32")
    assert lesson["student"]["accuracy"] > 0.5


def test_taught_again_says_that_the_teacher_is_there(workplace: Path, ddad: Ddad) -> None:
    before = contents(workplace)
    said = ddad("teach", "digits", "teach.epochs=2")
    assert (said.code, said.err) == (0, "")
    assert said.out == f"{TEACHER} is there already: delete it to teach it again\n"
    assert {path: sha for path, sha in contents(workplace).items() if not path.endswith(".lock")} == before


def test_output_is_plain_lines_without_a_terminal(run: Run) -> None:
    assert run.done.stderr == ""
    assert "\x1b" not in run.done.stdout and "\r" not in run.done.stdout
    lines = run.done.stdout.splitlines()
    pattern = r"round (\d)/6  student \d\S*  generator -?\d\S*  \d+\.\d\d rounds/s  \d+:\d\d left"
    shown = [re.fullmatch(pattern, line) for line in lines[:3]]
    assert [match and match[1] for match in shown] == ["2", "4", "6"], lines
    table = "\n".join(lines[3:])
    for word in ("network", "parameters", "accuracy", "agreement", "seconds", "56,554", "8,254"):
        assert word in table
    assert f"{run.result['student']['accuracy']:.2%}" in table and f"{run.result['agreement']:.2%}" in table
    shown_folder = run.folder.relative_to(run.place)
    for place in (str(shown_folder), str(shown_folder / "samples"), str(shown_folder / "curves.png"), "ddad ui"):
        assert place in table


def test_run_folder_holds_exactly_what_is_specified(run: Run) -> None:
    files = {path for path, sha in contents(run.folder).items() if sha != "folder"}
    samples = {f"samples/round-{number:08d}.png" for number in (0, 2, 3, 5, 6)} | {"samples/test.png"}
    checkpoints = {f"checkpoints/round-{number:08d}.safetensors" for number in (4, 6)}
    record = {"config.yaml", "environment.json", "metrics.jsonl", "student.safetensors", "student.json", "curves.png"}
    assert files == record | {"result.json", "mlflow.json", ".lock"} | samples | checkpoints
    assert {path.name for path in run.place.iterdir()} == {"runs", "teachers", "mlflow.db", "mlartifacts"}


def test_config_is_complete_and_names_the_teachers_file(run: Run) -> None:
    content = yaml.safe_load((run.folder / "config.yaml").read_text())
    records = content.pop("records")
    teacher = run.place / TEACHER
    assert records == {
        "teacher.checkpoint": {"path": str(teacher), "size": teacher.stat().st_size, "sha256": sha256(teacher)}
    }
    flat = config_module.flat(config_module.build(content))
    for path in paths(Config):
        node: Any = content
        for part in path.split("."):
            node = node[part]  # KeyError: config.yaml leaves a field to its default
        assert path not in flat or node == flat[path]
    assert content["schema"] == 1
    chosen = (content["rounds"], content["recipe"], content["method"], content["teacher"]["checkpoint"])
    assert chosen == (6, "digits", "ddad", str(TEACHER))
    assert run.folder.name == f"digits-{config_module.identity(run.config)}"


def test_environment_tells_what_it_ran_on(run: Run) -> None:
    found = json.loads((run.folder / "environment.json").read_text())
    assert found["command"][1:] == ["distill", "digits", *SHORT]
    assert found["threads"] == 1 and found["cpu_count"] == os.cpu_count()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"mlflow", "accelerate", "numpy", "timm"} <= found["versions"].keys()
    assert found["processor"] and found["platform"].startswith("Linux") and found["gpus"] == []
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", found["commit"])


def test_metrics_have_a_row_for_each_report_and_one_for_the_end(run: Run) -> None:
    found = rows(run.folder)
    assert [row["round"] for row in found] == [2, 4, 6, 6]
    for row in found[:3]:
        names = ("student/discrepancy", "student/total", "generator/adversarial", "generator/batch_norm",
                 "generator/total", "generator/entropy", "generator/top_class", "rounds_per_second")  # fmt: skip
        assert row.keys() == {"round", "seconds", *names}
        assert all(isinstance(row[name], float) for name in names)
        assert 0 <= row["generator/entropy"] <= 1 and 0 < row["generator/top_class"] <= 1
        expected = row["generator/batch_norm"] - row["generator/adversarial"]
        assert row["generator/total"] == pytest.approx(expected, rel=1e-5)
    assert found[-1] == {
        "round": 6,
        "seconds": found[-2]["seconds"],
        "evaluation/agreement": run.result["agreement"],
        "evaluation/student_accuracy": run.result["student"]["accuracy"],
    }
    seconds = [row["seconds"] for row in found]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_checkpoint_holds_weights_and_moments_by_parameter_name(run: Run) -> None:
    with safetensors.safe_open(run.folder / "checkpoints/round-00000006.safetensors", framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        keys = set(file.keys())
    assert (state["round"], state["updates"]) == (6, {"student": 30, "generator": 6})
    student = task.load("classification").network("cnn12", 10, 1)
    assert {f"student/model/{key}" for key in student.state_dict()} <= keys
    assert {f"student/optimizer/{name}/momentum_buffer" for name, _ in student.named_parameters()} <= keys
    assert {"generator/optimizer/linear.weight/exp_avg", "generator/optimizer/linear.weight/exp_avg_sq"} <= keys


def test_student_is_rebuilt_from_its_two_files_and_scores_as_recorded(run: Run) -> None:
    record = json.loads((run.folder / "student.json").read_text())
    assert record["network"] == "cnn12" and record["classes"] == 10 and record["arguments"] == {}
    assert record["preprocessing"] == {
        "height": 8, "width": 8, "channels": "gray", "mean": [0.3053], "std": [0.3758]
    }  # fmt: skip
    assert record["class_names"] == [str(digit) for digit in range(10)]
    assert record["sha256"] == sha256(run.folder / "student.safetensors")
    student, _ = export.load_student(run.folder)
    scores = measure(run.config, None, student, torch.device("cpu"), None)
    assert scores.student["accuracy"] == run.result["student"]["accuracy"]


def picture(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def test_pictures_can_be_looked_at(run: Run) -> None:
    start, end = (picture(run.folder / f"samples/round-0000000{number}.png") for number in (0, 6))
    assert start.size == end.size
    assert min(start.size) >= 8 * 64, "64 images of at least 64 pixels, eight in a row"
    assert start.tobytes() != end.tobytes(), "the generator learned nothing"
    colours = end.getcolors(maxcolors=1 << 24)
    assert colours is not None and len(colours) > 50
    assert min(picture(run.folder / "curves.png").size) > 200


def test_result_has_the_agreed_fields(run: Run) -> None:
    result = run.result
    teacher, student = result.pop("teacher"), result.pop("student")
    figures = {key: result.pop(key) for key in ("agreement", "wall_seconds", "rounds_per_second")}
    assert result == {
        "schema": 1, "task": "classification", "recipe": "digits", "method": "ddad", "variant": "paper", "seed": 0,
        "rounds": 6, "student_updates": 30, "agreement_on": "test", "world_size": 1, "device": "cpu", "data_free": True,
    }  # fmt: skip
    assert 0 < teacher.pop("accuracy") < 1 and 0 < student.pop("accuracy") < 1 and 0 < figures["agreement"] < 1
    assert teacher == {"network": "cnn32", "parameters": 56_554, "sha256": sha256(run.place / TEACHER)}
    assert student == {"network": "cnn12", "parameters": 8_254}
    assert figures["rounds_per_second"] == pytest.approx(6 / figures["wall_seconds"], rel=0.01)


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:mlflow\..*")  # its own use of SQLAlchemy
def test_mlflow_holds_the_same(run: Run) -> None:
    import mlflow.pytorch
    from mlflow import MlflowClient

    note = json.loads((run.folder / "mlflow.json").read_text())
    client = MlflowClient(f"sqlite:///{run.place}/mlflow.db")
    found = client.get_run(note["run_id"])
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "ddad"
    tags = {name: found.data.tags[name] for name in ("recipe", "method", "variant", "data_free")}
    assert tags == {"recipe": "digits", "method": "ddad", "variant": "paper", "data_free": "true"}
    environment_record = json.loads((run.folder / "environment.json").read_text())
    assert found.data.tags["commit"] == (environment_record["commit"] or "null")
    params = found.data.params
    assert params.keys() == config_module.flat(run.config).keys()
    chosen = (params["rounds"], params["student.lr"], params["weights.batch_norm"], params["generator.latent_size"])
    assert chosen == ("6", "0.1", "1.0", "64")
    for name in ("student/total", "generator/batch_norm", "evaluation/student_accuracy", "evaluation/agreement"):
        points = sorted((point.step, point.value) for point in client.get_metric_history(note["run_id"], name))
        assert points == [(row["round"], row[name]) for row in rows(run.folder) if name in row]
    artifacts = run.place / "mlartifacts" / note["run_id"] / "artifacts"
    for picture in [*(run.folder / "samples").iterdir(), run.folder / "curves.png"]:
        assert sha256(only(artifacts, f"*/{picture.name}")) == sha256(picture)
    (logged,) = found.outputs.model_outputs
    folder = run.place / "mlartifacts" / "models" / logged.model_id / "artifacts"
    student, _ = export.load_student(run.folder)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(mlflow.pytorch.load_model(str(folder))(x), student(x))
    model = mlflow.models.Model.load(str(folder))
    assert model.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert model.load_input_example(str(folder)).shape[1:] == (1, 8, 8)


def test_same_command_again_says_that_it_is_finished(run: Run) -> None:
    before = contents(run.folder)
    again, seconds = timed_ddad("distill", "digits", *SHORT, cwd=run.place)
    assert again.returncode == 0
    assert "finished" in again.stdout + again.stderr
    assert f"{run.result['student']['accuracy']:.2%}" in again.stdout
    assert "round 2/6" not in again.stdout
    assert contents(run.folder) == before
    assert seconds < run.cpu_seconds / 2


def test_resolved_config_replays_without_a_recipe_into_the_same_folder(
    run: Run, ddad: Ddad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.place)
    before = contents(run.folder)
    said = ddad("distill", "--config", run.folder / "config.yaml")
    assert said.code == 0 and "finished" in said.out + said.err
    assert [path.name for path in (run.place / "runs").iterdir()] == [run.folder.name]
    assert contents(run.folder) == before


def test_python_api_gives_the_same_student_in_this_process(workplace: Path, run: Run) -> None:
    over = {"rounds": 6, "batch_size": 32, "log_every": 3, "tracking": {"uri": "none"}, "pictures": False}
    config = resolve.resolve("digits", overrides=over)
    reports = list(distill.rounds(config))
    assert [report.round for report in reports] == [3, 6, 6]
    assert [report.result is not None for report in reports] == [False, False, True]
    result = distill.distill(config)
    assert result == reports[-1].result == json.loads((reports[-1].folder / "result.json").read_text())
    assert reports[-1].folder.name == run.folder.name, "fields that do not determine the result changed the hash"
    assert sha256(reports[-1].folder / "student.safetensors") == sha256(run.folder / "student.safetensors")


def test_evaluate_gives_one_json_object_with_the_figures_of_the_result(run: Run) -> None:
    done = run_ddad("evaluate", str(run.folder), "--json", cwd=run.place)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["student"]["accuracy"] == run.result["student"]["accuracy"]
    assert found["teacher"]["accuracy"] == run.result["teacher"]["accuracy"]
    assert (found["agreement"], found["agreement_on"]) == (run.result["agreement"], "test")
    assert found["missing"] == []


def test_evaluate_needs_the_run_folder_alone(
    run: Run, ddad: Ddad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder: the run folder was copied away, its teacher is where it was."""
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
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
    student, _ = export.load_student(run.folder)
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
    assert f"torch {torch.__version__.split('+')[0]}" in found["packages"]
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


def test_estimated_disk_is_what_a_run_takes(run: Run, ddad: Ddad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.place)
    said = ddad("distill", "digits", *SHORT, "--dry-run")
    estimate = re.search(r"^disk +(\d+) MiB", said.out, re.MULTILINE)
    files = [*(run.folder / "checkpoints").iterdir(), run.folder / "student.safetensors"]
    assert estimate and int(estimate[1]) == pytest.approx(sum(file.stat().st_size for file in files) / 2**20, abs=1)


def test_help_takes_under_a_second_and_no_torch(tmp_path: Path) -> None:
    for words in (["--help"], ["distill", "--help"]):
        done, seconds = timed_ddad(*words, cwd=tmp_path)
        assert done.returncode == 0 and "Usage" in done.stdout
        assert seconds < 1.0
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness", "--help"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in listed.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "omegaconf", "yaml", "accelerate", "mlflow", "tasks"}


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


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:mlflow\..*")
def test_no_generated_image_is_kept_without_pictures(
    run: Run, ddad: Ddad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_teacher(run.place, tmp_path)
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{run.place}/mlflow.db"  # making another would take seconds
    said = ddad("distill", "digits", "rounds=4", "batch_size=32", "pictures=false", f"tracking.uri={store}")
    assert (said.code, said.err) == (0, "")
    folder = only(tmp_path, "runs/*")
    note = json.loads((folder / "mlflow.json").read_text())
    everywhere = [*tmp_path.rglob("*.png"), *(run.place / "mlartifacts" / note["run_id"]).rglob("*.png")]
    assert {path.name for path in everywhere} <= {"curves.png"}, "curves show no image"
    assert not (folder / "samples").exists()


def test_max_minutes_ends_early_and_the_same_command_goes_on(workplace: Path, run: Run, ddad: Ddad) -> None:
    words = ("distill", "digits", *SHORT, *QUIET)
    for number in (1, 2):
        said = ddad(*words, "max_minutes=0.00001")
        assert (said.code, said.err) == (0, "")
        last = said.out.splitlines()[-1]
        reason = "max_minutes=1e-05 is over"
        assert last == f"stopped after round {number} of 6 ({reason}): the same command goes on from there"
        folder = only(workplace, "runs/*")
        assert folder.name == run.folder.name
        assert not (folder / "result.json").exists() and not (folder / "student.safetensors").exists()
    said = ddad(*words)
    assert said.code == 0
    assert sha256(folder / "student.safetensors") == sha256(run.folder / "student.safetensors")
    seconds = [row["seconds"] for row in rows(folder)]
    assert seconds == sorted(seconds)
    result = json.loads((folder / "result.json").read_text())
    assert result["wall_seconds"] == pytest.approx(seconds[-1], abs=0.01), "not summed over resumes"


def test_run_goes_on_without_a_store_and_says_so(workplace: Path, ddad: Ddad) -> None:
    said = ddad("distill", "digits", "rounds=2", "batch_size=16", "pictures=false", "tracking.uri=nonsense://x")
    assert said.code == 0
    (line,) = said.err.splitlines()
    assert "nonsense://x" in line and "metrics.jsonl" in line
    assert len(rows(only(workplace, "runs/*"))) == 2


def test_untrained_teacher_without_data_is_marked(workplace: Path, ddad: Ddad) -> None:
    words = ("teacher.network=cnn8", "student.network=cnn4", "teacher.checkpoint=untrained", "classes=5")
    small = ("input.size=8", "generator.width=8", "generator.latent_size=8", "rounds=2", "batch_size=64")
    said = ddad("distill", "classification", *words, *small, "tracking.uri=none")
    assert (said.code, said.err) == (0, "")
    assert "untrained" in said.out and "generated" in said.out
    folder = only(workplace, "runs/*")
    result = json.loads((folder / "result.json").read_text())
    assert result["teacher"]["untrained"] is True
    assert (result["teacher"]["sha256"], result["teacher"]["accuracy"], result["student"]["accuracy"]) == (None,) * 3
    assert result["agreement_on"] == "generated" and 0 <= result["agreement"] <= 1
    again = ddad("evaluate", folder, "--json")
    assert json.loads(again.out)["agreement"] == result["agreement"]


def test_own_teacher_in_ones_own_file_without_any_data(workplace: Path, ddad: Ddad) -> None:
    """Trained elsewhere, saved as a checkpoint of a training script; colour images, 12 x 20 pixels."""
    (workplace / "mine.py").write_text(
        "from torch import nn\n"
        "def net(classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(width, classes))\n"
    )
    module = networks.build(task.load("classification"), "mine.py:net", 17, 3, {"width": 6})
    wrapped = {f"module.{key}": value for key, value in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, "mine.pth")
    words = ("teacher.network=mine.py:net", "teacher.arguments.width=6", "teacher.checkpoint=mine.pth", "classes=17")
    more = ("student.network=mine.py:net", "input.size=[12,20]", "generator.width=8", "generator.latent_size=8")
    said = ddad("distill", "classification", *words, *more, "rounds=2", "batch_size=16", "tracking.uri=none")
    assert (said.code, said.err) == (0, "")
    folder = only(workplace, "runs/*")
    result = json.loads((folder / "result.json").read_text())
    assert result["teacher"]["sha256"] == sha256(workplace / "mine.pth")
    assert result["agreement_on"] == "generated" and result["student"]["accuracy"] is None
    records = yaml.safe_load((folder / "config.yaml").read_text())["records"]
    assert records.keys() == {"teacher.checkpoint", "teacher.network", "student.network"}
    assert json.loads(ddad("evaluate", folder, "--json").out)["agreement"] == result["agreement"]
    (workplace / "mine.py").rename("hers.py")
    refused = ddad("evaluate", folder).complaint()
    assert "mine.py" in refused


def test_knowledge_distillation_on_real_data_is_not_data_free(workplace: Path, ddad: Ddad) -> None:
    said = ddad("distill", "digits", "method=kd", "rounds=2", "batch_size=32", *QUIET)
    assert (said.code, said.err) == (0, "")
    result = json.loads((only(workplace, "runs/*") / "result.json").read_text())
    assert (result["method"], result["data_free"], result["agreement_on"]) == ("kd", False, "test")


def test_bar_on_a_terminal(workplace: Path) -> None:
    ours, theirs = pty.openpty()
    words = ("distill", "digits", "rounds=4", "batch_size=32", "log_every=1", *QUIET)
    process = subprocess.Popen(
        [*DDAD, *words], cwd=workplace, env=environment({"TERM": "xterm", "COLUMNS": "120"}),
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # how a pty says that the other end is closed
            break
    os.close(ours)
    assert process.wait(120) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in text and "4/4" in text
    assert re.search(r"student \d\S*  generator -?\d\S* +\d+\.\d\d rounds/s", text)
    assert re.search(r"\d:\d\d:\d\d", text), "no time that is left"
    assert "student cnn12" in text
