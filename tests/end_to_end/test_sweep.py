"""`ddad sweep` with real Ray and a real MLflow server on the loopback interface; and what it refuses before it starts.

The command runs in the process of the test. test_sweep_faults.py also starts it as a process.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from harness import cli, resolve
from tests.end_to_end import held_network
from tests.end_to_end.conftest import CPU, TEACHER, Ddad, Said, copy_teacher, rows, sha256
from tests.helpers import environment

TIMEOUT = 1500.0
"""Seconds after which a sweep counts as hung: Ray starts several processes, and the machine may be busy."""

pytestmark = pytest.mark.timeout(2 * TIMEOUT)

TINY = ("rounds=16", "batch_size=32", "student.network=cnn4", "generator.width=8", "pictures=false")
"""A trial of a few seconds, with 8 evaluations."""

BARE = ("data.name=none", "teacher.network=cnn8", "teacher.checkpoint=untrained")
"""No data, because its metrics take seconds to import, and no trained teacher."""

RATES = "student.lr: {choice: [0.1, 1e-7, 1e30, 0.05]}\n"
"""Learning rates of a trial that learns, one that does not, one whose loss is not finite, and one that learns."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` for this module."""
    cwd = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--backend-store-uri", f"sqlite:///{cwd}/mlflow.db", "--artifacts-destination", str(cwd / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (cwd / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *words],
            env=environment(quiet), cwd=cwd, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 300
        while True:  # until it answers from its store, seconds after it listens
            try:
                urllib.request.urlopen(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout=60).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (cwd / "log").read_text()
                time.sleep(0.05)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # others may use the machine
            yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Swept:
    cwd: Path
    uri: str
    said: Said

    @property
    def folder(self) -> Path:
        return self.cwd / "sweep"

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The records of the trials."""
        found: list[dict[str, Any]] = json.loads((self.folder / "trials.json").read_text())["trials"]
        return found

    @property
    def by_rate(self) -> dict[float, dict[str, Any]]:
        """The records by learning rate."""
        return {row["sample"]["student.lr"]: row for row in self.trials}

    def run(self, folder: str) -> Any:
        """The MLflow run of a run folder."""
        from mlflow import MlflowClient

        note = json.loads((self.folder / folder / "mlflow.json").read_text())
        return MlflowClient(self.uri).get_run(note["run_id"])

    @property
    def children(self) -> dict[str, str]:
        """{run id: status} of all child runs of the sweep's run."""
        from mlflow import MlflowClient

        parent = self.run(".")
        condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        runs = MlflowClient(self.uri).search_runs([parent.info.experiment_id], condition)
        return {run.info.run_id: run.info.status for run in runs}

    def artifacts(self, run: Any, folder: str) -> list[str]:
        from mlflow import MlflowClient

        return sorted(Path(each.path).name for each in MlflowClient(self.uri).list_artifacts(run.info.run_id, folder))


def give(*words: str, cwd: Path) -> Said:
    """`ddad WORDS` in a folder, in this process; for fixtures of a module."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in CPU.items():
            patch.setenv(name, value)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["ddad", *words])
        with warnings.catch_warnings():
            # Ray does not close its log files of trials that did not finish.
            warnings.filterwarnings("ignore", "unclosed file .*/driver_artifacts/", ResourceWarning)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            gc.collect()
    assert isinstance(ended.value.code, int)
    return Said(ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, taught: tuple[Path, object], server: str) -> Swept:
    """A grid of four trials with ASHA, one at a time; the best trial and the recipe repeated with two seeds."""
    cwd = tmp_path_factory.mktemp("swept")
    copy_teacher(taught[0], cwd)
    (cwd / "rates.yaml").write_text(RATES)
    said = give(
        "sweep", "digits", "--space", "rates.yaml", "--searcher", "grid", "--parallel", "1", "--output", "sweep",
        "--retrain", "0-1", *TINY, f"tracking.uri={server}", cwd=cwd,
    )  # fmt: skip
    assert said.code == 0, said.err
    return Swept(cwd, server, said)


@pytest.mark.slow
def test_each_trial_has_the_outcome_of_its_learning_rate(swept: Swept) -> None:
    trials = swept.by_rate
    assert set(trials) == {0.1, 1e-7, 1e30, 0.05}
    assert trials[0.1]["outcome"] == "finished"
    assert trials[0.1]["student_updates"] == 80
    assert trials[1e-7]["outcome"] == "pruned"
    assert 0 < trials[1e-7]["student_updates"] < 80
    assert trials[1e30]["outcome"] == "failed"
    assert "is not finite" in trials[1e30]["error"]
    for row in trials.values():
        assert (swept.folder / row["folder"] / "result.json").exists() == (row["outcome"] == "finished")


@pytest.mark.slow
def test_mlflow_has_a_run_for_each_trial_with_its_status_and_curves(swept: Swept) -> None:
    parent = swept.run(".")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["objective"] == "agreement on the probe (data-free)"
    assert parent.data.tags["probe_sha256"] == sha256(swept.folder / "probe" / "probe.safetensors")
    assert json.loads(parent.data.params["space.student.lr"]) == {"choice": [0.1, 1e-7, 1e30, 0.05]}
    expected = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    for row in swept.by_rate.values():
        run = swept.run(row["folder"])
        assert run.info.status == expected[row["outcome"]]
        assert run.data.tags["outcome"] == row["outcome"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert float(run.data.params["student.lr"]) == row["sample"]["student.lr"]
        assert ("error" in run.data.tags) == (row["outcome"] == "failed")
    from mlflow import MlflowClient

    best = swept.run(json.loads((swept.folder / "report.json").read_text())["best"]["folder"])
    points = MlflowClient(swept.uri).get_metric_history(best.info.run_id, "evaluation/probe_agreement")
    assert sorted(point.step for point in points) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert swept.run("default").data.tags["mlflow.parentRunId"] == parent.info.run_id
    ends = [expected[row["outcome"]] for row in swept.by_rate.values()]
    assert sorted(swept.children.values()) == sorted([*ends, *["FINISHED"] * 5]), (
        "those of the default run and of four repetitions too"
    )


@pytest.mark.slow
def test_the_sweeps_run_has_the_report_and_the_best_trials_run_has_pictures_and_a_registered_model(
    swept: Swept,
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(swept.uri)
    parent, found = swept.run("."), json.loads((swept.folder / "report.json").read_text())
    assert swept.artifacts(parent, "report") == ["best.yaml", "parallel.png", "report.md", "trials.csv"]
    best = swept.run(found["best"]["folder"])
    assert swept.artifacts(best, "best") == ["curves.png", "samples.png"]
    (version,) = client.search_model_versions("name='ddad-digits'")
    assert version.run_id == best.info.run_id
    assert version.tags["sweep_run"] == parent.info.run_id
    assert version.tags["probe_sha256"] == parent.data.tags["probe_sha256"]
    assert version.tags["teacher_sha256"] == sha256(swept.cwd / "teachers" / "digits-cnn32.safetensors")
    for row in swept.by_rate.values():
        logged = swept.run(row["folder"]).outputs
        assert bool(logged and logged.model_outputs) == (row["id"] == found["best"]["id"])


@pytest.mark.slow
def test_the_registered_model_is_the_best_student(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pytorch
    import torch

    from harness.run.student import load_student

    found = json.loads((swept.folder / "report.json").read_text())
    student, _ = load_student(swept.folder / found["best"]["folder"])
    x = torch.randn(5, 1, 8, 8)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", swept.uri)  # mlflow.set_tracking_uri would outlive this test
    model = mlflow.pytorch.load_model("models:/ddad-digits/1")
    torch.testing.assert_close(model(x), student(x))


@pytest.mark.slow
def test_the_command_prints_the_table_and_the_repetitions(swept: Swept) -> None:
    out = swept.said.out
    assert "probe agreement (objective)" in out and "oracle: accuracy" in out
    assert "| best | 2 |" in out and "| default | 2 |" in out
    assert out.rstrip().endswith(f"best: {swept.folder / 'best.yaml'}")
    assert "trial 1 of 4" in swept.said.err
    found = json.loads((swept.folder / "report.json").read_text())["repetitions"]
    assert {kind: scores["oracle"]["n"] for kind, scores in found.items()} == {"best": 2, "default": 2}
    for folder in (swept.folder / "repeated").glob("*-seed-?"):
        points = [row for row in rows(folder) if "evaluation/student_accuracy" in row]
        assert len(points) > 1, "a curve for `ddad compare --figure`"


@pytest.mark.slow
def test_distill_runs_the_best_configuration_with_the_same_result(
    swept: Swept, ddad: Ddad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept.cwd)
    found = json.loads((swept.folder / "report.json").read_text())
    config = resolve.resolve(None, resolve.read_file(swept.folder / "best.yaml"))
    assert config.student.lr == found["best"]["sample"]["student.lr"]
    assert config.tracking.parent is None
    said = ddad("distill", "--config", "sweep/best.yaml", "--output", "again", "tracking.uri=none")
    assert said.code == 0, said
    trial = swept.folder / found["best"]["folder"]
    assert sha256(Path("again/student.safetensors")) == sha256(trial / "student.safetensors")


@pytest.mark.slow
def test_the_same_command_is_refused_and_with_resume_runs_no_trial_again(swept: Swept) -> None:
    command = ("sweep", "digits", "--space", "rates.yaml", "--searcher", "grid", "--parallel", "1", "--output", "sweep",
               *TINY, "tracking.uri=none")  # fmt: skip
    refusal = give(*command, cwd=swept.cwd).complaint()
    assert refusal.endswith("holds this sweep already: --resume continues it, or give another --output")
    before = (swept.folder / "trials.json").read_bytes()
    again = give(*command, "--resume", cwd=swept.cwd)
    assert again.code == 0, again.err
    assert (swept.folder / "trials.json").read_bytes() == before
    assert again.err == ""
    teacher = swept.cwd / TEACHER
    whole = teacher.read_bytes()
    try:
        save_file({key: value + 1 for key, value in load_file(teacher).items()}, teacher)
        replaced = give(*command, "--resume", cwd=swept.cwd)
    finally:
        teacher.write_bytes(whole)
    assert f"{TEACHER} is not the file the run began with" in replaced.complaint()


@pytest.mark.slow
def test_a_population_ends_with_the_schedule_of_its_best_trial(tmp_path: Path, server: str) -> None:
    """Two workers at the same time, which log to one server."""
    (tmp_path / "weights.yaml").write_text("weights.adversarial: {log_uniform: [0.1, 10]}\n")
    said = give(
        "sweep", "digits", "--output", "sweep", "--scheduler", "pbt", "--space", "weights.yaml", "--trials", "2",
        "--cpus", "0.5", *[word for word in TINY if "network" not in word], *BARE, f"tracking.uri={server}",
        f"student.network={held_network.__file__}:companion", cwd=tmp_path,
    )  # fmt: skip
    assert said.code == 0, said.err
    found = Swept(tmp_path, server, said)
    assert [row["outcome"] for row in found.trials] == ["finished"] * 2
    schedules = [adversarial(path) for path in (found.folder / "trials").glob("*-*")]
    assert schedules, "a trial continued from another trial's checkpoint"
    for schedule in schedules:
        assert len(schedule) >= 2 and schedule[0][0] == 0 and schedule[-1][0] < 16, "no branch starts after the end"
        assert all(0.1 <= value <= 10 for _, value in schedule)
    text = (found.folder / "best.yaml").read_text()
    assert "schedules of the best trial of a population" in text and "is not a replay" in text
    best = json.loads((found.folder / "report.json").read_text())["best"]
    config = resolve.resolve(None, resolve.read_file(found.folder / "best.yaml"))
    assert config.weights.adversarial == adversarial(found.folder / best["folder"])
    trials = {found.run(row["folder"]).info.run_id for row in found.trials}
    assert trials | {found.run("default").info.run_id} == set(found.children), (
        "one run for each trial, with all its branches"
    )
    assert set(found.children.values()) == {"FINISHED"}


def adversarial(path: Path) -> Any:
    """The adversarial weight in a run folder's configuration."""
    return resolve.resolve(None, resolve.read_file(path / "config.yaml")).weights.adversarial


def test_mistakes_are_refused_before_anything_starts(
    workplace: Path, ddad: Ddad, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "bad.yaml").write_text("student.lrr: {uniform: [0, 1]}")
    (workplace / "steps.yaml").write_text("student_steps: {uniform: [1, 10]}")
    sweep = ("sweep", "digits", *TINY)
    before = sorted(workplace.iterdir())
    assert "unknown path 'student.lrr'" in ddad(*sweep, "--space", "bad.yaml").complaint()
    assert "expected a whole number" in ddad(*sweep, "--space", "steps.yaml").complaint()
    assert "no such space; did you mean 'turns'" in ddad(*sweep, "--space", "turn").complaint()
    assert "unknown recipe 'digit'" in ddad("sweep", "digit").complaint()
    assert "--retrain '4-0': expected seeds" in ddad(*sweep, "--retrain", "4-0").complaint()
    assert "expected one of agreement, kl, confidence, accuracy" in ddad(*sweep, "--objective", "miou").complaint()
    line = ddad(*sweep, "--objective", "confidenc").complaint()
    assert "--objective 'confidenc': expected one of" in line and "did you mean 'confidence'" in line
    line = ddad(*sweep, "--probe-images", "methods+view").complaint()
    assert "--probe-images 'methods+view'" in line and "did you mean 'methods+views'" in line
    assert sorted(workplace.iterdir()) == before


def test_an_mlflow_server_that_does_not_answer_is_refused_before_any_trial(workplace: Path, ddad: Ddad) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = sorted(workplace.iterdir())
    line = ddad("sweep", "digits", *TINY, f"tracking.uri=http://127.0.0.1:{port}").complaint()
    assert line.startswith(f"MLflow at http://127.0.0.1:{port} cannot be used (no answer)")
    assert sorted(workplace.iterdir()) == before


def test_a_missing_ray_cluster_is_a_one_line_message(workplace: Path, ddad: Ddad) -> None:
    before = sorted(workplace.iterdir())
    for address, reason in (("127.0.0.1:1", "no Ray cluster answers there"), ("ray://head", "expected HOST:PORT")):
        line = ddad("sweep", "digits", "--address", address, *TINY, "tracking.uri=none").complaint()
        assert line.startswith("--address ") and reason in line
    assert sorted(workplace.iterdir()) == before
