"""`ddad teach` and `ddad distill`: again, from Python, ended early, without data, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from harness import resolve, task
from harness.networks import build
from harness.training import distill
from tests.end_to_end.conftest import (
    CPU,
    QUIET,
    SHORT,
    TEACHER,
    Ddad,
    Run,
    contents,
    copy_teacher,
    importing_ddad,
    only,
    rows,
    sha256,
)
from tests.helpers import DDAD, environment


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


def test_a_teacher_that_was_taught_otherwise_is_said(workplace: Path, ddad: Ddad, taught: tuple[Path, object]) -> None:
    """Only of one that was taught here: the note beside it is of its very bytes."""
    words = ("distill", "digits", "rounds=1", "batch_size=16", "tracking.uri=none", "pictures=false", "teach.epochs=2")
    note = TEACHER.with_suffix(".json")
    shutil.copy(taught[0] / note, note)
    assert "was taught with" not in ddad(*words, "--output", "alike").err
    said = ddad(*words, "teach.seed=1", "teacher.mean=[0.25]", "--output", "other")
    assert said.code == 0
    assert f"{TEACHER} was taught with teach.seed=0, here 1; teacher.mean=" in said.err
    save_file({key: value + 1 for key, value in load_file(TEACHER).items()}, TEACHER)
    assert "was taught with" not in ddad(*words, "teach.seed=1", "--output", "third").err


def test_same_command_again_says_that_it_is_finished(run: Run) -> None:
    before = contents(run.folder)
    again, imported = importing_ddad("distill", "digits", *SHORT, cwd=run.place)
    assert again.returncode == 0
    assert "finished" in again.stdout + again.stderr
    assert f"{run.result['student']['accuracy']:.2%}" in again.stdout
    assert "round 2/6" not in again.stdout
    assert contents(run.folder) == before
    needed = {"mlflow", "matplotlib", "torchmetrics"}  # to record a run, to draw its pictures, to score it
    assert needed <= run.imported and not needed & imported


def test_resolved_config_replays_without_a_recipe_into_the_same_folder(
    run: Run, ddad: Ddad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.place)
    before = contents(run.folder)
    said = ddad("distill", "--config", run.folder / "config.yaml")
    assert said.code == 0 and "finished" in said.out + said.err
    assert [path.name for path in (run.place / "runs").iterdir()] == [run.folder.name]
    assert contents(run.folder) == before


def test_python_api_gives_the_same_student_in_this_process(
    workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    over = {"rounds": 6, "batch_size": 32, "log_every": 3, "tracking": {"uri": "none"}, "pictures": False}
    config = resolve.resolve("digits", overrides=over)
    reports = list(distill.rounds(config))
    assert [report.round for report in reports] == [3, 6, 6]
    assert [report.result is not None for report in reports] == [False, False, True]
    result = distill.distill(config)
    assert result == reports[-1].result == json.loads((reports[-1].folder / "result.json").read_text())
    assert reports[-1].folder.name == run.folder.name, "fields that do not determine the result changed the hash"
    assert sha256(reports[-1].folder / "student.safetensors") == sha256(run.folder / "student.safetensors")


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:mlflow\..*")
def test_no_generated_image_is_kept_without_pictures(run: Run, ddad: Ddad, tmp_path: Path) -> None:
    copy_teacher(run.place, tmp_path)
    # The store of `run`, since making another takes seconds; another experiment, since tests count that one's.
    store = (f"tracking.uri=sqlite:///{run.place}/mlflow.db", "tracking.experiment=pictures")
    said = ddad("distill", "digits", "rounds=4", "batch_size=32", "pictures=false", *store)
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
    shutil.rmtree(folder / "checkpoints")
    assert "it held the generator: name test images" in ddad("evaluate", folder).complaint()


def test_own_teacher_in_ones_own_file_without_any_data(
    workplace: Path, ddad: Ddad, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained elsewhere, saved as a checkpoint of a training script; colour images, 12 x 20 pixels."""
    (workplace / "mine.py").write_text(
        "from torch import nn\n"
        "def net(classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(width, classes))\n"
    )
    module = build.network(task.load("classification"), "mine.py:net", 17, 3, {"width": 6})
    module.train()(torch.randn(32, 3, 12, 20))
    wrapped = {f"module.{key}": value for key, value in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, "mine.pth")
    words = ("teacher.network=mine.py:net", "teacher.arguments.width=6", "teacher.checkpoint=mine.pth", "classes=17")
    more = ("student.network=mine.py:net", "input.size=[12,20]", "generator.width=8", "generator.latent_size=8",
            "teacher.mean=[0.5,0.5,0.5]", "teacher.std=[0.25,0.25,0.25]")  # fmt: skip
    said = ddad("distill", "classification", *words, *more, "rounds=2", "batch_size=16", "tracking.uri=none")
    assert (said.code, said.err) == (0, "")
    folder = only(workplace, "runs/*")
    result = json.loads((folder / "result.json").read_text())
    assert result["teacher"]["sha256"] == sha256(workplace / "mine.pth")
    assert result["agreement_on"] == "generated" and result["student"]["accuracy"] is None
    records = yaml.safe_load((folder / "config.yaml").read_text())["records"]
    assert records.keys() == {"teacher.checkpoint", "teacher.network", "student.network"}
    monkeypatch.chdir("/")  # the paths in config.yaml are relative to where the run was started
    assert json.loads(ddad("evaluate", folder, "--json").out)["agreement"] == result["agreement"]
    (workplace / "mine.py").rename(workplace / "hers.py")
    refused = ddad("evaluate", folder).complaint()
    assert "mine.py" in refused


def test_digits_from_an_untrained_teacher(workplace: Path, ddad: Ddad) -> None:
    words = ("teacher.checkpoint=untrained", "rounds=1", "batch_size=16", "--output", "my [red] folder")
    said = ddad("distill", "digits", *words, *QUIET)
    assert (said.code, said.err) == (0, "")
    assert "run folder  my [red] folder\n" in said.out
    result = json.loads(Path("my [red] folder/result.json").read_text())
    assert result["teacher"]["untrained"] is True and result["agreement_on"] == "test"


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_other_precisions(workplace: Path, ddad: Ddad, precision: str) -> None:
    said = ddad("distill", "digits", f"precision={precision}", "rounds=1", "batch_size=16", "tracking.uri=none")
    assert (said.code, said.err) == (0, "")
    folder = only(workplace, "runs/*")
    result = json.loads((folder / "result.json").read_text())
    dtypes = {value.dtype for value in load_file(folder / "student.safetensors").values() if value.is_floating_point()}
    assert dtypes == {torch.float64 if precision == "fp64" else torch.float32}
    again = json.loads(ddad("evaluate", folder, "--json").out)
    assert again["agreement"] == result["agreement"], "the run scored what it wrote"


def test_knowledge_distillation_on_real_data_is_not_data_free(workplace: Path, ddad: Ddad) -> None:
    said = ddad("distill", "digits", "method=kd", "rounds=2", "batch_size=32", *QUIET)
    assert (said.code, said.err) == (0, "")
    result = json.loads((only(workplace, "runs/*") / "result.json").read_text())
    assert (result["method"], result["data_free"], result["agreement_on"]) == ("kd", False, "test")


def test_bar_on_a_terminal(workplace: Path) -> None:
    ours, theirs = pty.openpty()
    words = ("distill", "digits", "rounds=4", "batch_size=32", "log_every=1", *QUIET)
    process = subprocess.Popen(
        [*DDAD, *words], cwd=workplace, env=environment({**CPU, "TERM": "xterm", "COLUMNS": "120"}),
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 300)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # how a pty says that the other end is closed
            break
    os.close(ours)
    assert process.wait(300) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in text and "4/4" in text
    assert re.search(r"student \d\S*  generator -?\d\S* +\d+\.\d\d rounds/s", text)
    assert re.search(r"\d:\d\d:\d\d", text), "no time that is left"
    assert "student cnn12" in text
