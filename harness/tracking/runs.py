"""Runs in an MLflow store: one that is open, those whose process was killed, and all of an experiment as recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import UserError, nearest
from harness.tracking.stores import OFF, artifacts, connect, database_of, located, public, why

if TYPE_CHECKING:
    from mlflow import MlflowClient


Status = Literal["FINISHED", "FAILED", "KILLED"]

MAX_PARAM, MAX_TAG, MAX_METRICS, MAX_PARAMS = 6000, 5000, 1000, 100
"""MLflow's limits: characters of a parameter's and a tag's value, metrics and parameters in one batch."""


@dataclass
class Store:
    """An open MLflow run; only the background thread touches it."""

    client: MlflowClient
    experiment_id: str
    run_id: str
    last: dict[str, int] = field(default_factory=dict)
    """The last round the run holds of each metric: nothing is logged twice."""
    params: set[str] = field(default_factory=set)
    """Parameters the run holds: MLflow does not let them change."""
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
    """The experiment of that name, made where there is none, with artifacts beside an sqlite database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = database_of(uri)
        try:
            return str(client.create_experiment(name, str(artifacts(database)) if database else None))
        except MlflowException:  # another run may have made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def resume(client: MlflowClient, note: Path, uri: str, again: bool) -> Store | None:
    """The run that `note` names, where `again` running again; None where this store holds no such run."""
    run = _noted(client, note, uri)
    if run is None:
        return None
    run_id = run.info.run_id
    if again:
        client.update_run(run_id, status="RUNNING")
    last = {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in run.data.metrics}
    return Store(client, run.info.experiment_id, run_id, last, set(run.data.params))


def _noted(client: MlflowClient, note: Path, uri: str) -> Any | None:
    """The run that a run folder's mlflow.json names; None where this store holds no such run."""
    from mlflow.exceptions import MlflowException

    try:
        known = json.loads(note.read_text())
        run = client.get_run(known["run_id"]) if known["uri"] == uri else None
    except (OSError, ValueError, KeyError, MlflowException):
        return None
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def log_params(store: Store, texts: Mapping[str, str]) -> None:
    """Parameters that the run does not hold yet; a trial and its sweep may write them in the same moment."""
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
            if missing == batch:  # nobody else has written: that was not it
                raise
            store.client.log_batch(store.run_id, params=missing)
    store.params.update(texts)


@dataclass(frozen=True)
class Recorded:
    """A run as a store holds it."""

    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    """(round, value) of the evaluations and of `rounds_per_second`, in order of rounds."""


def recorded(uri: str, experiment: str) -> list[Recorded]:
    """The runs of an experiment, oldest first; makes no store. UserError where there is none, or no such experiment."""
    absolute, name = located(uri), public(uri)
    database = database_of(absolute)
    if uri == OFF or (database and not database.exists()):
        raise UserError(f"no MLflow store at {database or name}: name one with --uri, such as sqlite:///mlflow.db")
    try:
        client = connect(absolute)
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
        raise UserError(f"the MLflow store {name} cannot be read ({why(error, absolute)})") from None


def _read_run(client: MlflowClient, run: Any) -> Recorded:
    wanted = [name for name in run.data.metrics if name.startswith("evaluation/") or name == "rounds_per_second"]
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in wanted}
    metrics = {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}
    return Recorded(run.info.run_name, run.info.status, dict(run.data.params), dict(run.data.tags), metrics)


def settle(uri: str, ends: Mapping[Path, Status], warn: Callable[[str], None]) -> None:
    """Gives MLflow runs that are still running the status with which they ended, by their run folders.

    Their own processes could not: they were killed, or MLflow took too long for them.
    """
    if uri == OFF:
        return
    try:
        client = connect(located(uri))
        for folder, status in ends.items():
            run = _noted(client, folder / "mlflow.json", public(uri))
            if run is not None and run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, status)
    except Exception as error:  # whatever MLflow raises; the folders hold what happened
        warn(f"MLflow at {public(uri)} may not say how every run ended ({why(error, located(uri))})")


def fit(value: object, limit: int) -> str:
    """A value as text, shortened, and saying so, where MLflow takes no more than `limit` characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    mark = f"... (cut from {len(text)} characters; config.yaml has all)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark
