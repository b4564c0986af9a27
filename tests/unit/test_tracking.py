"""metrics.jsonl and its copy in a real MLflow store; one store serves the module, since making one takes seconds."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import config as config_module
from harness import tracking
from harness.config import Config
from harness.errors import UserError
from harness.run import folder as run_folder
from harness.run import metrics as row_log
from harness.tracking import page, runs, stores
from tests.helpers import environment

SHAPE = (1, 8, 8)


def a_config(uri: str, **fields: Any) -> Config:
    task = {"task": "classification", "recipe": "digits", "classes": 10}
    return config_module.build({**task, "seed": 3, "tracking": {"uri": uri}, **fields})


def open_experiment(uri: str, folder: Path, **fields: Any) -> tuple[tracking.Experiment, list[str]]:
    folder.mkdir(exist_ok=True)
    warnings: list[str] = []
    return tracking.Experiment(
        a_config(uri, **fields), folder, {"data_free": True, "commit": None}, warnings.append
    ), warnings


def a_network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Dropout(), nn.Linear(4, 10))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite store with one finished run in it, and that run's folder beside it."""
    place = tmp_path_factory.mktemp("tracked")
    database = place / "deep" / "mlflow.db"
    database.parent.mkdir()
    (place / "elsewhere").mkdir()
    uri = f"sqlite:///{database}"
    root = logging.getLogger()
    found, root.handlers[:] = list(root.handlers), []  # pytest's: libraries leave a root logger alone that has some
    with pytest.MonkeyPatch.context() as patch, closing(sqlite3.connect(database)) as holder:
        patch.chdir(place / "elsewhere")
        holder.execute("BEGIN EXCLUSIVE")  # who waits for the store now gives up, with a warning, in 20 s
        experiment, warnings = open_experiment(uri, place / "run", student={"arguments": {"text": "x" * 9000}})
        log = row_log.Log(place / "run" / "metrics.jsonl")
        experiment.params(config_module.flat(a_config(uri, student={"arguments": {"text": "x" * 9000}})))
        for row in (10, 20):
            log.write(row, row / 10, {"student/discrepancy": 1 / row, "generator/total": float("nan")})
            experiment.metrics(row, {"student/discrepancy": 1 / row, "generator/total": float("nan")})
        log.close()
        experiment.tag("collapsed", 20)
        (place / "grid.png").write_bytes(b"picture")
        experiment.picture(place / "grid.png", "samples")
        experiment.model(a_network(), SHAPE)
        holder.rollback()
        experiment.close("FINISHED")
    assert warnings == [], "the run waited for the store"
    assert root.handlers == [], "a library took over the root logger"
    root.handlers[:] = found
    return database


def the_run(database: Path, folder: Path | None = None) -> Any:
    """The MLflow run of a run folder; the module's own where none is given."""
    from mlflow import MlflowClient

    note = json.loads(((folder or database.parents[1] / "run") / "mlflow.json").read_text())
    return MlflowClient(note["uri"]).get_run(note["run_id"])


def steps(database: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    points = MlflowClient(f"sqlite:///{database}").get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_a_row_is_on_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        sync(descriptor)

    log = row_log.Log(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(os, "fsync", note)
    log.write(10, 1.0, {"student/total": 2.0})
    log.close()
    written = (tmp_path / "metrics.jsonl").stat()
    assert (written.st_ino, written.st_size) in synced


def test_log_is_on_disk_line_by_line_and_resumes_without_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = row_log.Log(path)
    log.write(10, 1.23456, {"student/total": 2.0, "generator/total": float("inf")})
    log.write(20, 2.0, {"student/total": 1.0})
    assert path.read_text().splitlines()[0] == (
        '{"round": 10, "seconds": 1.235, "student/total": 2.0, "generator/total": null}'
    )
    log.write(20, 2.5, {"evaluation/agreement": 0.5})
    log.write(30, 3.0, {"student/total": 0.5})
    log.close()
    with path.open("a") as file:
        file.write('{"round": 40, "sec')  # as a kill leaves it
    assert [row["round"] for row in row_log.read(path)] == [10, 20, 20, 30]
    resumed = row_log.Log(path, keep_through=20)
    resumed.write(30, 3.5, {"student/total": 0.25})
    resumed.close()
    rows = row_log.read(path)
    assert [(row["round"], row["seconds"]) for row in rows] == [(10, 1.235), (20, 2.0), (20, 2.5), (30, 3.5)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    row_log.Log(path).close()
    assert row_log.read(path) == []


def test_read_names_a_damaged_line_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1, "seconds": 1}\n[]\n{"round": 2, "seconds": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a row"):
        row_log.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        row_log.read(tmp_path / "absent.jsonl")


def test_run_is_recorded_whole(database: Path) -> None:
    run = the_run(database)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits ddad paper seed 3 (run)"
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "recipe": "digits", "method": "ddad", "variant": "paper", "seed": "3", "data_free": "true", "collapsed": "20",
        "folder": "run",
    }  # fmt: skip
    params = run.data.params
    assert set(params) == set(config_module.flat(a_config("none", student={"arguments": {"text": ""}})))
    assert (params["student.lr"], params["teacher.mean"], params["pictures"]) == ("0.1", "null", "true")
    long = params["student.arguments.text"]
    assert len(long) == 6000
    assert long.endswith("xx... (cut from 9000 characters; config.yaml has all)")
    assert steps(database, run.info.run_id, "student/discrepancy") == [(10, 0.1), (20, 0.05)]


def test_artifacts_lie_beside_the_database(database: Path) -> None:
    assert (database.parent / "mlartifacts" / the_run(database).info.run_id / "artifacts/samples/grid.png").exists()
    assert not list((database.parents[1] / "elsewhere").iterdir()), "MLflow wrote to the run's current folder"


def test_model_loads_back_and_answers_as_the_student_for_any_batch(database: Path) -> None:
    import mlflow.pytorch

    run = the_run(database)
    (output,) = run.outputs.model_outputs
    folder = database.parent / "mlartifacts" / "models" / output.model_id / "artifacts"
    x = torch.randn(5, *SHAPE)
    module = a_network().eval()
    loaded = mlflow.pytorch.load_model(str(folder))
    assert torch.equal(loaded(x), module(x))
    model = mlflow.models.Model.load(str(folder))
    assert model.signature.inputs.inputs[0].shape == (-1, *SHAPE)
    assert model.signature.outputs.inputs[0].shape == (-1, 10)
    assert model.load_input_example(str(folder)).shape == (2, *SHAPE)
    assert not list(folder.rglob("*.pth")), "a pickle"


class Unfollowable(nn.Linear):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


def test_a_student_that_cannot_be_exported_costs_the_run_no_more_than_its_model(database: Path, tmp_path: Path) -> None:
    experiment, warnings = open_experiment(f"sqlite:///{database}", tmp_path)
    experiment.model(Unfollowable(64, 10), SHAPE)
    experiment.metrics(10, {"a": 1.0})
    experiment.close("FAILED")
    (warning,) = warnings
    assert warning.startswith("MLflow does not hold the student (") and "\n" not in warning
    run = the_run(database, tmp_path)
    assert run.info.status == "FAILED"
    assert run.outputs is None or not run.outputs.model_outputs
    assert steps(database, run.info.run_id, "a") == [(10, 1.0)]


class Locked(nn.Linear):
    """No copy of it can be made."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lock = threading.Lock()


def test_a_student_that_cannot_be_copied_costs_the_run_no_more_than_its_model(database: Path, tmp_path: Path) -> None:
    experiment, warnings = open_experiment(f"sqlite:///{database}", tmp_path)
    experiment.model(Locked(64, 10), SHAPE)
    experiment.close("FINISHED")
    (warning,) = warnings
    assert warning.startswith("MLflow does not hold the student (") and "\n" not in warning
    assert the_run(database, tmp_path).info.status == "FINISHED"


def test_a_relative_store_is_meant_from_the_current_folder(tmp_path: Path) -> None:
    for uri, path in {
        "sqlite:///./a/mlflow.db": "a/mlflow.db",
        "sqlite:///sqlite?timeout=9": "sqlite?timeout=9",
    }.items():
        assert stores.absolute(uri) == f"sqlite:///{tmp_path}/{path}"
    assert stores.absolute("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_resumed_run_continues_and_repeats_nothing(database: Path, tmp_path: Path) -> None:
    uri, folder = f"sqlite:///{database}", tmp_path / "run"
    experiment, warnings = open_experiment(uri, folder)
    log = row_log.Log(folder / "metrics.jsonl")
    log.write(10, 1.0, {"a": 1.0, "rounds_per_second": 7.0})  # MLflow was never told: killed before the batch went out
    experiment.params({"rounds": 10, "method": "ddad"})
    for row in (20, 30):
        log.write(row, 2.0, {"a": row / 10})
        experiment.metrics(row, {"a": row / 10})
    log.close()
    experiment.close("KILLED")
    first = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert [step for step, _ in steps(database, first, "a")] == [10, 20, 30]

    row_log.Log(folder / "metrics.jsonl", keep_through=20).close()
    experiment, more = open_experiment(uri, folder)
    experiment.params({"rounds": 20, "method": "ddad", "seed": 0})
    for row in (30, 40):
        experiment.metrics(row, {"a": row / 10})
    experiment.metrics(40, {"final/agreement": 0.9})
    experiment.close("FINISHED")
    assert warnings == more == []
    assert json.loads((folder / "mlflow.json").read_text())["run_id"] == first
    assert steps(database, first, "a") == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]
    assert steps(database, first, "final/agreement") == [(40, 0.9)]
    assert steps(database, first, "seconds") == []


@pytest.mark.parametrize("created", [True, False])
def test_a_run_whose_process_was_killed_while_it_was_created_is_found_again(
    database: Path, tmp_path: Path, created: bool
) -> None:
    """The two states that such a process leaves: a file with the key of a run, which the store has or has not."""
    uri = f"sqlite:///{database}"
    experiment, _ = open_experiment(uri, tmp_path)
    experiment.close("KILLED")
    first = the_run(database, tmp_path)
    key = first.data.tags[runs.KEY] if created else "0" * 32
    note = {"key": key, "experiment_id": first.info.experiment_id, "uri": uri}
    (tmp_path / "mlflow.json").write_text(json.dumps(note))

    experiment, warnings = open_experiment(uri, tmp_path)
    experiment.metrics(10, {"a": 1.0})
    experiment.close("FINISHED")
    assert warnings == []
    again = the_run(database, tmp_path)
    assert (again.info.run_id == first.info.run_id) == created
    assert again.info.status == "FINISHED"
    assert steps(database, again.info.run_id, "a") == [(10, 1.0)]


def test_a_run_the_store_has_lost_starts_anew_with_all_its_rows(database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{database}"
    (tmp_path / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32, "uri": uri}))
    log = row_log.Log(tmp_path / "metrics.jsonl")
    log.write(10, 1.0, {"a": 1.0})
    log.close()
    experiment, warnings = open_experiment(uri, tmp_path)
    experiment.close("FINISHED")
    assert warnings == []
    run_id = json.loads((tmp_path / "mlflow.json").read_text())["run_id"]
    assert steps(database, run_id, "a") == [(10, 1.0)]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///{tmp}/file/mlflow.db", "file is not a folder"),
        ("http://user:secret@127.0.0.1:1", "(no answer)"),  # else the run gives it up: "no answer within 120 s"
        ("nonsense://nowhere", "nonsense"),
        ("", "it has no name"),
        ("sqlite:///{tmp}/file", "file is not a database"),
    ],
)
def test_run_goes_on_without_a_store_and_says_so_once(tmp_path: Path, uri: str, reason: str) -> None:
    (tmp_path / "file").write_text("not a database, whatever its name may say " * 10)
    experiment, warnings = open_experiment(uri.format(tmp=tmp_path), tmp_path)
    experiment.params({"rounds": 1})
    experiment.metrics(1, {"a": 1.0})
    experiment.close("FINISHED")
    experiment.metrics(2, {"a": 1.0})
    experiment.close("FINISHED")
    (warning,) = warnings
    assert reason in warning and "\n" not in warning and "secret" not in warning
    assert warning.endswith("metrics.jsonl does")


@pytest.mark.slow
def test_runs_that_start_together_make_one_store_even_where_one_is_killed(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from harness import config, tracking
Path(sys.argv[1]).mkdir()
experiment = tracking.Experiment(config.build({"classes": 10}), Path(sys.argv[1]), {}, print)
experiment.metrics(10, {"a": 1.0})
print("begun", flush=True)
experiment.close("FINISHED")
"""
    command = [sys.executable, "-c", program]
    doomed = subprocess.Popen([*command, "0"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    assert doomed.stdout is not None
    while not list(tmp_path.glob(".mlflow.db.*")):  # until it makes the store
        assert doomed.poll() is None
        time.sleep(0.05)
    doomed.kill()
    doomed.communicate()
    runs = [
        subprocess.Popen([*command, name], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        for name in ("1", "2")
    ]
    assert [run.communicate(timeout=300)[0] for run in runs] == ["begun\n", "begun\n"]
    for name in ("1", "2"):
        run_id = json.loads((tmp_path / name / "mlflow.json").read_text())["run_id"]
        assert steps(tmp_path / "mlflow.db", run_id, "a") == [(10, 1.0)]


def test_run_goes_on_where_mlflow_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # what `import mlflow` meets is then ModuleNotFoundError
    experiment, warnings = open_experiment(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    experiment.close("FINISHED")
    (warning,) = warnings
    assert "(mlflow is not installed)" in warning
    assert "mlflow is not installed" in tracking.describe(f"sqlite:///{tmp_path}/other.db")


def test_none_is_silent_and_leaves_nothing(tmp_path: Path) -> None:
    experiment, warnings = open_experiment("none", tmp_path)
    experiment.metrics(1, {"a": 1.0})
    experiment.model(a_network(), SHAPE)
    experiment.close("FINISHED")
    assert warnings == []
    assert list(tmp_path.iterdir()) == []


def test_check_says_what_will_happen(database: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    assert tracking.describe("none").startswith("MLflow is off")
    count = len(MlflowClient(f"sqlite:///{database}").search_experiments())
    assert tracking.describe(f"sqlite:///{database}").endswith(f"works ({count} experiments)")
    assert count >= 2, "ours, and MLflow's Default"
    assert "will be made by the first run" in tracking.describe(f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()
    (tmp_path / "file").touch()
    assert "does not work here" in tracking.describe(f"sqlite:///{tmp_path}/file/mlflow.db")
    assert "(no answer)" in tracking.describe("http://127.0.0.1:1")


class Guarded(BaseHTTPRequestHandler):
    """A server without a single experiment, which tells so to who brings name and password."""

    def answer(self) -> None:
        welcome = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:secret").decode()
        content = b"{}" if welcome else b"who are you?"
        self.send_response(200 if welcome else 401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *words: object) -> None:
        """Nothing."""


def test_a_remote_servers_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=r"cannot be used \(.*401"):
            tracking.require(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        tracking.require(uri)
        assert tracking.describe(uri).endswith("works (0 experiments)")
        server.shutdown()


def test_ui_refuses_what_it_cannot_show(database: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no MLflow store at"):
        tracking.ui(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="expected a store to show"):
        tracking.ui("none")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another port"):
        tracking.ui(f"sqlite:///{database}", port=taken.getsockname()[1])


@pytest.fixture
def server(database: Path, tmp_path: Path) -> Iterator[str]:
    """The address of the page over the module's store, which Ctrl-C must end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = f"from harness import tracking; tracking.ui('sqlite:///{database}', port={port})"
    with (tmp_path / "ui.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment(), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "ui.log").read_text()
                time.sleep(0.5)
        yield address
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        process.wait(120)
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"{address}/health", timeout=5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


@pytest.mark.slow
def test_page_shows_runs_and_pictures_and_takes_new_ones(database: Path, tmp_path: Path, server: str) -> None:
    run_id = the_run(database).info.run_id
    assert stores.address("127.0.0.1", int(server.rpartition(":")[2])) in (tmp_path / "ui.log").read_text()
    found = f"{server}/get-artifact?path=samples%2Fgrid.png&run_uuid={run_id}"
    assert urllib.request.urlopen(found, timeout=20).read() == b"picture"
    assert b"<html" in urllib.request.urlopen(server, timeout=20).read()

    experiment, warnings = open_experiment(
        server, tmp_path / "run", tracking={"uri": server, "experiment": "by server"}
    )
    experiment.metrics(10, {"a": 1.0})
    (tmp_path / "grid.png").write_bytes(b"another")
    experiment.picture(tmp_path / "grid.png", "samples")
    experiment.model(a_network(), SHAPE)
    experiment.close("FINISHED")
    assert warnings == []
    run_id = json.loads((tmp_path / "run" / "mlflow.json").read_text())["run_id"]
    assert steps(database, run_id, "a") == [(10, 1.0)]
    (stored,) = database.parent.rglob(f"{run_id}/artifacts/samples/grid.png")
    assert stored.read_bytes() == b"another"
    assert "works" in tracking.describe(server)


def test_the_page_says_what_a_run_is(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, source, commit, user, description; the password of a tracking URI is shown nowhere."""
    from mlflow import MlflowClient

    uri, folder = f"sqlite:///{database}", tmp_path / "digits-experiment"
    folder.mkdir()
    config = a_config(
        uri, variant="swift", teacher={"network": "cnn32", "checkpoint": "t.safetensors"}, student={"network": "cnn8"}
    )
    argv = ["/tree/harness/__main__.py", "distill", "digits", "variant=swift", f"tracking.uri={uri}", "a b=1"]
    monkeypatch.setattr(sys, "argv", argv)
    warnings: list[str] = []
    experiment = tracking.Experiment(config, folder, {"commit": "0123456789+"}, warnings.append)
    experiment.close("FINISHED")
    assert warnings == []
    run = the_run(database, folder)
    assert run.info.run_name == "digits ddad swift seed 3 (digits-experiment)"
    tags = run.data.tags
    assert tags["mlflow.source.name"] == "ddad distill digits"
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == ("0123456789", "true")
    assert tags["mlflow.user"]
    assert "`cnn32`, weights `t.safetensors`" in tags["mlflow.note.content"]
    assert f"`ddad distill digits variant=swift tracking.uri={uri} 'a b=1'`" in tags["mlflow.note.content"]
    (found,) = MlflowClient(uri).search_experiments(filter_string="name = 'ddad'")
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"

    secret = a_config("http://me:hidden@host:1")
    monkeypatch.setattr(sys, "argv", ["ddad", "distill", "tracking.uri=http://me:hidden@host:1"])
    shown = page.page_tags(secret, folder, None)
    assert "hidden" not in json.dumps(shown) and "tracking.uri=http://host:1" in str(shown["mlflow.note.content"])


def test_a_default_folder_and_a_sweep_have_plain_names(tmp_path: Path) -> None:
    config = a_config("none")
    default = run_folder.default(config)
    assert page.run_name(config, default, {}) == "digits ddad paper seed 3"
    assert page.run_name(config, default, {"kind": "sweep"}) == "sweep of digits ddad paper seed 3"
    child = a_config("none", tracking={"uri": "none", "parent": "0" * 32})
    assert page.page_tags(child, tmp_path, None)["mlflow.source.name"] == "ddad sweep digits"


def test_an_experiment_made_by_others_keeps_its_kind_and_gets_one_where_it_has_none(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = stores.connect(uri)
    for name, tags in {"plain": {}, "traces": {"mlflow.experimentKind": "genai_development"}}.items():
        client.create_experiment(name, tags=tags)
        runs.find_experiment(client, name, uri)
    kinds = [client.get_experiment_by_name(name).tags["mlflow.experimentKind"] for name in ("plain", "traces")]
    assert kinds == ["custom_model_development", "genai_development"]


@pytest.mark.parametrize(("data", "agreement"), [("digits", "agreement"), ("none", "agreement_on_generated")])
def test_a_finished_run_has_its_scores_as_final_metrics(
    database: Path, tmp_path: Path, data: str, agreement: str
) -> None:
    """Under short names, from the last evaluation; also where MLflow was away until the end."""
    log = row_log.Log(tmp_path / "metrics.jsonl")
    log.write(10, 1.0, {"evaluation/agreement": 0.5, "evaluation/student_accuracy": 0.25})
    log.write(20, 2.0, {"evaluation/agreement": 0.75, "evaluation/student_accuracy": 0.5})
    log.write(20, 2.0, {"student/total": 1.0})
    log.close()
    experiment, warnings = open_experiment(f"sqlite:///{database}", tmp_path, data={"name": data})
    experiment.close("FINISHED")
    assert warnings == []
    metrics = the_run(database, tmp_path).data.metrics
    assert (metrics["accuracy"], metrics[agreement]) == (0.5, 0.75)
    assert steps(database, the_run(database, tmp_path).info.run_id, "accuracy") == [(20, 0.5)]


def test_a_test_set_is_logged_with_its_digest_once(database: Path, tmp_path: Path) -> None:
    data = tracking.DataSet("digits", "0123456789abcdef", "/data", {"split": "test", "images": 360})
    for _ in range(2):  # the second time as a resumed run
        experiment, warnings = open_experiment(f"sqlite:///{database}", tmp_path)
        experiment.data_set(data)
        experiment.close("FINISHED")
        assert warnings == []
    (found,) = the_run(database, tmp_path).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("digits", "0123456789abcdef")
    assert json.loads(found.dataset.source) == {"uri": "/data"}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "test")]


def test_two_processes_may_write_the_same_parameters_at_once(database: Path) -> None:
    """A trial and its sweep both close the trial's MLflow run; MLflow itself refuses the later one."""
    uri = f"sqlite:///{database}"
    client = stores.connect(uri)
    experiment = runs.find_experiment(client, "ddad", uri)
    run_id = client.create_run(experiment).info.run_id
    texts = {f"name{index}": str(index) for index in range(90)}
    together, failed = threading.Barrier(2), []

    def write() -> None:
        store = runs.Store(stores.connect(uri), experiment, run_id)
        together.wait()
        try:
            runs.log_params(store, texts)
        except Exception as error:
            failed.append(error)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed and client.get_run(run_id).data.params == texts
