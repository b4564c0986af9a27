"""What one short run leaves behind: in its folder, on the screen and in MLflow."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import yaml
from PIL import Image

from harness import config as config_module
from harness import task
from harness.config import Config
from harness.config.parse import paths
from harness.distributed.runtime import Runtime
from harness.run.student import load_student
from harness.training.evaluate import measure
from tests.end_to_end.conftest import (
    SHORT,
    TEACHER,
    Run,
    contents,
    only,
    rows,
    sha256,
)
from tests.helpers import ROOT


def test_output_is_plain_lines_without_a_terminal(run: Run) -> None:
    assert run.done.stderr == ""
    assert "\x1b" not in run.done.stdout and "\r" not in run.done.stdout
    lines = run.done.stdout.splitlines()
    pattern = r"round (\d)/6  student \d\S*  generator -?\d\S*  \d+\.\d\d rounds/s  \d+:\d\d left"
    shown = [re.fullmatch(pattern, line) for line in lines[:3]]
    assert [match and match[1] for match in shown] == ["2", "4", "6"], lines
    table = "\n".join(lines[3:])
    for word in ("teacher cnn32", "student cnn12", "parameters", "accuracy", "agreement", "seconds", "56,554", "8,254"):
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
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"mlflow", "accelerate", "numpy", "timm"} <= found["versions"].keys()
    assert found["processor"] and found["platform"].startswith("Linux")
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", found["commit"])


def test_metrics_have_a_row_for_each_report_and_one_for_the_end(run: Run) -> None:
    found = rows(run.folder)
    assert [row["round"] for row in found] == [2, 4, 6, 6]
    for row in found[:3]:
        names = ("student/discrepancy", "student/total", "generator/adversarial", "generator/batch_norm",
                 "generator/total", "generator/entropy", "generator/top_class", "rounds_per_second",
                 "student/gradient_norm", "student/lr", "generator/gradient_norm", "generator/lr")  # fmt: skip
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
    loads = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert loads["system/system_memory_usage_megabytes"] > 0
    assert 0 <= loads["system/cpu_utilization_percentage"] <= 100
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
    student, _ = load_student(run.folder)
    scores = measure(run.config, None, student, None, Runtime(run.config))
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
        "rounds": 6, "student_updates": 30, "agreement_on": "test", "test_images": 360, "world_size": 1,
        "device": "cpu", "data_free": True,
    }  # fmt: skip
    assert 0 < teacher.pop("accuracy") < 1 and 0 < student.pop("accuracy") < 1 and 0 < figures["agreement"] < 1
    for network in (teacher, student):
        assert network.pop("macs") > 0 and network.pop("milliseconds") > 0
        assert network.pop("bytes") >= 4 * network["parameters"]
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
    student, _ = load_student(run.folder)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(mlflow.pytorch.load_model(str(folder))(x), student(x))
    model = mlflow.models.Model.load(str(folder))
    assert model.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert model.load_input_example(str(folder)).shape[1:] == (1, 8, 8)
