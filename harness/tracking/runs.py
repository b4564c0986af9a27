"""Runs in an MLflow store: the open one, those whose process was killed, and all of an experiment."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import files
from harness.errors import UserError, nearest
from harness.tracking.page import EXPERIMENT_KIND
from harness.tracking.stores import OFF, absolute, artifacts, connect, database_of, reason_of, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient


Status = Literal["FINISHED", "FAILED", "KILLED"]

KEY = "mlflow.ddad.key"
"""The tag of a run that its mlflow.json holds before it names the run. MLflow's page hides tags that begin so."""

MAX_PARAM, MAX_TAG, MAX_METRICS, MAX_PARAMS = 6000, 5000, 1000, 100
"""MLflow's limits: characters of a parameter's and a tag's value, metrics and parameters in one batch."""


@dataclass
class Store:
    """An open MLflow run; only the background thread touches it."""

    client: MlflowClient
    experiment_id: str
    run_id: str
    last: dict[str, int] = field(default_factory=dict)
    """The last round that was logged of each metric: nothing is logged twice."""
    params: set[str] = field(default_factory=set)
    """Parameters that were logged: MLflow does not let them change."""
    pending: list[Any] = field(default_factory=list)

    def add(self, round_index: int, values: Mapping[str, float | None]) -> None:
        """Queues the metrics that are new."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in values.items():
            if value is not None and round_index > self.last.get(name, -1):
                self.pending.append(Metric(name, value, now, round_index))
                self.last[name] = round_index

    def flush(self) -> None:
        """Sends what is queued."""
        for start in range(0, len(self.pending), MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=self.pending[start : start + MAX_METRICS])
        self.pending.clear()


def find_experiment(client: MlflowClient, name: str, uri: str) -> str:
    """The id of the experiment of that name; made if missing, with artifacts beside an sqlite database.

    The experiment is marked as model training, unless somebody has given it a kind: its page opens accordingly.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = database_of(uri)
        try:
            location = str(artifacts(database)) if database else None
            return str(client.create_experiment(name, location, tags=dict([EXPERIMENT_KIND])))
        except MlflowException:  # another run may have made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if EXPERIMENT_KIND[0] not in found.tags:  # made by MLflow's own page, or by an earlier version
        client.set_experiment_tag(found.experiment_id, *EXPERIMENT_KIND)
    return str(found.experiment_id)


def create(
    client: MlflowClient, experiment_id: str, note: Path, uri: str, tags: Mapping[str, str], run_name: str
) -> Store:
    """A new run, named in the file `note`.

    The process may be killed between the two, so the file first holds a key, by which the run can be found.
    """
    key = uuid.uuid4().hex
    files.write(note, json.dumps({"key": key, "experiment_id": experiment_id, "uri": uri}) + "\n")
    run = client.create_run(experiment_id, tags={**tags, KEY: key}, run_name=run_name)
    _write(note, run.info.run_id, uri)
    return Store(client, experiment_id, run.info.run_id)


def _write(note: Path, run_id: str, uri: str) -> None:
    files.write(note, json.dumps({"run_id": run_id, "uri": uri}) + "\n")


def resume(client: MlflowClient, note: Path, uri: str, again: bool) -> Store | None:
    """The run that the file `note` names, set to running if `again`; None if this store has no such run."""
    run = _known_run(client, note, uri)
    if run is None:
        return None
    run_id = run.info.run_id
    _write(note, run_id, uri)
    if again:
        client.update_run(run_id, status="RUNNING")
    last = {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in run.data.metrics}
    return Store(client, run.info.experiment_id, run_id, last, set(run.data.params))


def _known_run(client: MlflowClient, note: Path, uri: str) -> Any | None:
    """The run that a run folder's mlflow.json names; None if this store has no such run."""
    from mlflow.exceptions import MlflowException

    try:
        known = json.loads(note.read_text())
        if known["uri"] != uri:
            return None
        if "key" in known:
            run = next(iter(client.search_runs([known["experiment_id"]], f"tags.`{KEY}` = '{known['key']}'")), None)
        else:
            run = client.get_run(known["run_id"])
    except (OSError, ValueError, KeyError, MlflowException):
        return None
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def log_params(store: Store, texts: Mapping[str, str]) -> None:
    """Logs the parameters that the run does not have yet; a trial and its sweep may do so at the same time."""
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    new = [Param(key, text) for key, text in texts.items() if key not in store.params]
    for start in range(0, len(new), MAX_PARAMS):
        batch = new[start : start + MAX_PARAMS]
        try:
            store.client.log_batch(store.run_id, params=batch)
        except MlflowException:
            held = store.client.get_run(store.run_id).data.params
            missing = [param for param in batch if param.key not in held]
            if missing == batch:  # no other process has written them: the error is another one
                raise
            store.client.log_batch(store.run_id, params=missing)
    store.params.update(texts)


@dataclass(frozen=True)
class RunRecord:
    """A run as it is in a store."""

    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    """(round, value) of the evaluations and of `rounds_per_second`, in order of rounds."""


def read_runs(uri: str, experiment: str) -> list[RunRecord]:
    """The runs of an experiment, oldest first; makes no store. UserError where there is none, or no such experiment."""
    path_uri, name = absolute(uri), without_credentials(uri)
    database = database_of(path_uri)
    if uri == OFF or (database and not database.exists()):
        raise UserError(f"no MLflow store at {database or name}: name one with --uri, such as sqlite:///mlflow.db")
    try:
        client = connect(path_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = sorted(each.name for each in client.search_experiments())
            raise UserError(f"the MLflow store {name} has no experiment {experiment!r}{nearest(experiment, known)}")
        runs: list[Any] = []
        token = None
        while token != "":
            page = client.search_runs([found.experiment_id], order_by=["attributes.start_time"], page_token=token)
            runs, token = [*runs, *page], page.token or ""
        return [_read_run(client, run) for run in runs]
    except UserError:
        raise
    except Exception as error:  # whatever MLflow raises
        raise UserError(f"the MLflow store {name} cannot be read ({reason_of(error, path_uri)})") from None


def _read_run(client: MlflowClient, run: Any) -> RunRecord:
    wanted = [name for name in run.data.metrics if name.startswith("evaluation/") or name == "rounds_per_second"]
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in wanted}
    metrics = {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}
    return RunRecord(run.info.run_name, run.info.status, dict(run.data.params), dict(run.data.tags), metrics)


def set_final_status(uri: str, ends: Mapping[Path, Status], warn: Callable[[str], None]) -> None:
    """Sets the status of MLflow runs that still count as running; `ends` gives it by run folder.

    Their own processes did not: they were killed, or MLflow took too long.
    """
    if uri == OFF:
        return
    try:
        client = connect(absolute(uri))
        for folder, status in ends.items():
            run = _known_run(client, folder / "mlflow.json", without_credentials(uri))
            if run is not None and run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, status)
    except Exception as error:  # whatever MLflow raises; the folders hold what happened
        warn(
            f"MLflow at {without_credentials(uri)} may not say how every run ended ({reason_of(error, absolute(uri))})"
        )


def truncate(value: object, limit: int) -> str:
    """A value as text of at most `limit` characters, which is what MLflow takes; the text says that it was cut."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    mark = f"... (cut from {len(text)} characters; config.yaml has all)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark
