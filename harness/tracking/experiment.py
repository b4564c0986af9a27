"""A run's copy in MLflow, written by one background thread."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import task as tasks
from harness.config import Config
from harness.run import metrics
from harness.tracking import models
from harness.tracking.page import DataSet, dataset_input, page_tags, run_name
from harness.tracking.runs import (
    MAX_PARAM,
    MAX_TAG,
    Status,
    Store,
    create,
    find_experiment,
    log_params,
    resume,
    truncate,
)
from harness.tracking.stores import OFF, absolute, connect, reason_of, without_credentials

if TYPE_CHECKING:
    from torch import nn


FLUSH_SECONDS = 5.0
"""Seconds between two batches of metrics: a batch costs as much as a single value."""

CLOSE_SECONDS: dict[Status, float] = {"FINISHED": 120.0, "FAILED": 20.0, "KILLED": 20.0}
"""Seconds that the end of a run waits for MLflow, by the run's status: a run that is stopped has to end soon."""


class Experiment:
    """The run's copy in MLflow; create it on rank 0 only, after the Log.

    Its methods do not wait for MLflow, except `run_id` and `close`.

    `<folder>/mlflow.json` names the MLflow run, so that a resumed run continues it. On opening, the rows of
    `<folder>/metrics.jsonl` that MLflow does not have are sent, so that the two agree whatever happened before.
    """

    def __init__(
        self, config: Config, folder: Path, tags: Mapping[str, Any], warn: Callable[[str], None], again: bool = True
    ) -> None:
        """`tags` are added to recipe, method, variant, seed and folder; None is left out. Another thread calls `warn`.

        `again`: whether a run that has ended is set to running again; if false, only more is logged to it.
        """
        self._folder, self._warn, self._again = folder, warn, again
        self._uri, self._public_uri = absolute(config.tracking.uri), without_credentials(config.tracking.uri)
        self._experiment = config.tracking.experiment
        named: dict[str, Any] = {name: getattr(config, name) for name in ("recipe", "method", "variant", "seed")}
        named |= {"folder": folder.name, "mlflow.parentRunId": config.tracking.parent}
        named |= page_tags(config, folder, tags.get("commit"))
        self._run_name = run_name(config, folder, tags)
        self._primary = tasks.load(config.task).primary_metric if config.task else None
        self._generated = config.data.name == "none"
        self._tags = {key: truncate(value, MAX_TAG) for key, value in {**named, **tags}.items() if value is not None}
        self._calls: queue.SimpleQueue[Callable[[Store], object]] = queue.SimpleQueue()
        self._closing, self._off = threading.Event(), config.tracking.uri == OFF
        self._status: Status = "FINISHED"
        self._run_id: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # A daemon: a store that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        if not self._off:
            self._thread.start()

    def run_id(self) -> str | None:
        """The id of the MLflow run, or None without MLflow. Waits seconds for the store; call it once."""
        return None if self._off else self._run_id.get()

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters as dotted paths (`harness.config.flat`); a resumed run keeps those of its first start."""
        texts = {key: truncate(value, MAX_PARAM) for key, value in values.items()}
        if "tracking.uri" in texts:
            texts["tracking.uri"] = self._public_uri
        self._put(lambda store: log_params(store, texts))

    def metrics(self, round_index: int, values: Mapping[str, float]) -> None:
        """The values of a round."""
        self._put(lambda store: store.add(round_index, values))

    def tag(self, key: str, value: object) -> None:
        """A tag of the run, over any of the same key."""
        self._put(lambda store: store.client.set_tag(store.run_id, key, truncate(value, MAX_TAG)))

    def data_set(self, data: DataSet) -> None:
        """The images that the run is scored on."""
        self._put(lambda store: store.client.log_inputs(store.run_id, [dataset_input(data)]))

    def picture(self, path: Path, artifact_dir: str) -> None:
        """Copies a file to the run's artifacts, under `artifact_dir`."""
        self._put(lambda store: store.client.log_artifact(store.run_id, str(path), artifact_dir))

    def model(self, module: nn.Module, shape: tuple[int, int, int]) -> None:
        """The student as an MLflow model: a torch.export program, which loads without code of ours or pickles.

        `shape` is the (C, H, W) of an input. Takes seconds and quiets warnings meanwhile: call it before `close`.
        """
        snapshot = self._snapshot(module)
        if snapshot is None:
            return

        def log(store: Store) -> None:
            try:
                models.log_model(store, snapshot, shape)
            except Exception as error:  # torch.export cannot follow every network
                self._warn_of_student(error)

        self._put(log)

    def _snapshot(self, module: nn.Module) -> nn.Module | None:
        """A copy that later updates do not change; None without a store, or, with a warning, if copying fails."""
        if self._off:
            return None
        try:
            return copy.deepcopy(module).cpu().eval()
        except Exception as error:  # a user's module may hold a lock, or a tensor of its last pass
            self._warn_of_student(error)
            return None

    def _warn_of_student(self, error: Exception) -> None:
        self._warn(f"MLflow does not hold the student ({reason_of(error, self._uri)}); student.safetensors does")

    def register(self, module: nn.Module, shape: tuple[int, int, int], name: str, tags: Mapping[str, Any]) -> None:
        """As `model`, and that model as a version of the registered model `name`, with tags, once for each run."""
        snapshot = self._snapshot(module)
        if snapshot is None:
            return

        def register(store: Store) -> None:
            try:
                models.register(store, models.log_model(store, snapshot, shape), name, tags)
            except Exception as error:  # torch.export cannot follow every network
                self._warn(f"MLflow's registry does not hold the student ({reason_of(error, self._uri)})")

        self._put(register)

    def close(self, status: Status, patience: float | None = None) -> None:
        """Sends everything and ends the MLflow run with `status`; gives up after CLOSE_SECONDS with a warning.

        `patience`: seconds instead of those. A finished run gets its last evaluation as final metrics.
        """
        if self._off:
            return
        if status == "FINISHED":
            self._put(self._add_final)
        self._status = status
        self._closing.set()
        seconds = CLOSE_SECONDS[status] if patience is None else patience
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(f"no answer within {seconds:g} s of the end")

    def _put(self, call: Callable[[Store], object]) -> None:
        if not self._off:
            self._calls.put(call)

    def _work(self) -> None:
        """The background thread: opens the store, then makes the calls in order, every few seconds."""
        try:
            store = self._open()
            self._run_id.put(store.run_id)
            ending = False
            while not ending:
                ending = self._closing.wait(FLUSH_SECONDS)
                while not self._calls.empty():
                    self._calls.get()(store)
                store.flush()
            if store.client.get_run(store.run_id).info.status != self._status:  # keep the time at which it ended
                store.client.set_terminated(store.run_id, self._status)
        except Exception as error:  # whatever MLflow raises, the run goes on
            self._fail(reason_of(error, self._uri))
            self._run_id.put(None)

    def _open(self) -> Store:
        """The MLflow run that mlflow.json names, or a new one, with all rows of metrics.jsonl queued."""
        client = connect(self._uri)
        experiment_id = find_experiment(client, self._experiment, self._uri)
        note = self._folder / "mlflow.json"
        store = resume(client, note, self._public_uri, self._again)
        if store is None:
            store = create(client, experiment_id, note, self._public_uri, self._tags, self._run_name)
        for row in self._rows():
            store.add(row["round"], {name: value for name, value in row.items() if name not in ("round", "seconds")})
        return store

    def _rows(self) -> list[dict[str, Any]]:
        path = self._folder / "metrics.jsonl"
        return metrics.read(path) if path.exists() else []

    def _add_final(self, store: Store) -> None:
        """The scores of the last evaluation under short names, which the page's table of runs shows first."""
        agreement = "agreement_on_generated" if self._generated else "agreement"
        names = {"evaluation/agreement": agreement, f"evaluation/student_{self._primary}": str(self._primary)}
        for row in self._rows()[::-1]:
            if "evaluation/agreement" in row:
                store.add(row["round"], {name: row[key] for key, name in names.items() if key in row})
                break

    def _fail(self, reason: str) -> None:
        if not self._off:
            self._off = True
            self._warn(f"MLflow at {self._public_uri} does not record this run ({reason}); metrics.jsonl does")
