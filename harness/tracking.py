"""The record of a run: metrics.jsonl always, and its copy in MLflow. The only file that imports mlflow.

MLflow is slow (seconds to open a store, 10-20 ms a call) and may be missing or out of reach, so one background
thread does everything that touches it. Where it fails the run goes on: metrics.jsonl holds the same figures.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import importlib.util
import json
import logging
import os
import queue
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from harness import files, log
from harness.config import Config
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import nn

OFF = "none"
"""The tracking URI that records in the run folder alone."""

SQLITE = "sqlite:///"
"""What a tracking URI that names a file begins with."""

FLUSH_SECONDS = 5.0
"""Metrics reach MLflow this often at most; a batch costs as much as a single value."""

MAX_PARAM, MAX_TAG, MAX_METRICS, MAX_PARAMS = 6000, 5000, 1000, 100
"""MLflow's limits: characters of a parameter's and a tag's value, metrics and parameters in one batch."""

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
"""Environment in which mlflow reports nothing to its makers; it must be set before the import."""

NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Environment that keeps a server to its pages: its job runners are further processes, which nothing here uses."""

IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""Environment for the first word with a server: one more try, 5 seconds each; mlflow's own takes minutes."""

Status = Literal["FINISHED", "FAILED", "KILLED"]

PATIENCE: dict[Status, float] = {"FINISHED": 120.0, "FAILED": 20.0, "KILLED": 20.0}
"""Seconds the end of a run waits for MLflow: who stops a run wants it to stop."""


@dataclass
class _Store:
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


class Experiment:
    """The run's copy in MLflow; create it on rank 0 alone, after the Log. Every method returns at once but `close`.

    `<folder>/mlflow.json` names the MLflow run, so that a resumed run goes on in it. On opening, the rows of
    `<folder>/metrics.jsonl` that MLflow does not hold are sent, so that the two agree whatever happened before.
    """

    def __init__(
        self, config: Config, folder: Path, tags: Mapping[str, Any], warn: Callable[[str], None], again: bool = True
    ) -> None:
        """`tags` add to recipe, method, variant and seed; None is left out. Another thread calls `warn`.

        `again`: whether a run that has ended is running again; else it only gets more to hold.
        """
        self._folder, self._warn, self._again = folder, warn, again
        self._uri, self._public_uri = _absolute(config.tracking.uri), public(config.tracking.uri)
        self._experiment = config.tracking.experiment
        named = {name: getattr(config, name) for name in ("recipe", "method", "variant", "seed")}
        named["mlflow.parentRunId"] = config.tracking.parent
        self._tags = {key: _fit(value, MAX_TAG) for key, value in {**named, **tags}.items() if value is not None}
        self._calls: queue.SimpleQueue[Callable[[_Store], object]] = queue.SimpleQueue()
        self._closing, self._off = threading.Event(), config.tracking.uri == OFF
        self._status: Status = "FINISHED"
        self._run_id: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # A daemon: a store that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        if not self._off:
            self._thread.start()

    def run_id(self) -> str | None:
        """The MLflow run, once the store has answered; None where there is none. To be asked once; takes seconds."""
        return None if self._off else self._run_id.get()

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters as dotted paths (`harness.config.flat`); those of a resumed run stay as they first were."""
        texts = {key: _fit(value, MAX_PARAM) for key, value in values.items()}
        if "tracking.uri" in texts:
            texts["tracking.uri"] = self._public_uri
        self._put(lambda store: _log_params(store, texts))

    def metrics(self, round_index: int, values: Mapping[str, float]) -> None:
        """The values of a round."""
        self._put(lambda store: store.add(round_index, values))

    def tag(self, key: str, value: object) -> None:
        """A tag of the run, over any of the same key."""
        self._put(lambda store: store.client.set_tag(store.run_id, key, _fit(value, MAX_TAG)))

    def picture(self, path: Path, artifact_dir: str) -> None:
        """A file that stays where it is, copied under `artifact_dir`."""
        self._put(lambda store: store.client.log_artifact(store.run_id, str(path), artifact_dir))

    def model(self, module: nn.Module, shape: tuple[int, int, int]) -> None:
        """The student as an MLflow model: a torch.export program, which loads without code of ours or pickles.

        `shape` is the (C, H, W) of an input. Takes seconds and quiets warnings meanwhile: call it before `close`.
        """
        if self._off:
            return
        snapshot = copy.deepcopy(module).cpu().eval()

        def log(store: _Store) -> None:
            try:
                _log_model(store, snapshot, shape)
            except Exception as error:  # torch.export cannot follow every network
                self._warn(f"MLflow does not hold the student ({_reason(error, self._uri)}); student.safetensors does")

        self._put(log)

    def register(self, module: nn.Module, shape: tuple[int, int, int], name: str, tags: Mapping[str, Any]) -> None:
        """As `model`, and that model as a version of the registered model `name`, with tags, once for each run."""
        if self._off:
            return
        snapshot = copy.deepcopy(module).cpu().eval()

        def register(store: _Store) -> None:
            try:
                _register(store, _log_model(store, snapshot, shape), name, tags)
            except Exception as error:  # torch.export cannot follow every network
                self._warn(f"MLflow's registry does not hold the student ({_reason(error, self._uri)})")

        self._put(register)

    def close(self, status: Status, patience: float | None = None) -> None:
        """Sends everything and ends the MLflow run with `status`; gives up after PATIENCE, with a warning.

        `patience`: seconds in place of those.
        """
        if self._off:
            return
        self._status = status
        self._closing.set()
        seconds = PATIENCE[status] if patience is None else patience
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(f"no answer within {seconds:g} s of the end")

    def _put(self, call: Callable[[_Store], object]) -> None:
        if not self._off:
            self._calls.put(call)

    def _work(self) -> None:
        """The background thread: opens the store, then every few seconds does what was asked, in order."""
        try:
            store = self._open()
            self._run_id.put(store.run_id)
            ending = False
            while not ending:
                ending = self._closing.wait(FLUSH_SECONDS)
                while not self._calls.empty():
                    self._calls.get()(store)
                store.flush()
            if store.client.get_run(store.run_id).info.status != self._status:  # one that has it ended when it did
                store.client.set_terminated(store.run_id, self._status)
        except Exception as error:  # whatever MLflow raises, the run goes on
            self._fail(_reason(error, self._uri))
            self._run_id.put(None)

    def _open(self) -> _Store:
        """The MLflow run that mlflow.json names, or a new one, brought up to metrics.jsonl."""
        client = _connect(self._uri)
        experiment_id = _experiment_id(client, self._experiment, self._uri)
        note = self._folder / "mlflow.json"
        store = _resume(client, note, self._public_uri, self._again)
        if store is None:
            run = client.create_run(experiment_id, tags=self._tags, run_name=self._folder.name)
            store = _Store(client, experiment_id, run.info.run_id)
            files.write(note, json.dumps({"run_id": store.run_id, "uri": self._public_uri}) + "\n")
        rows = self._folder / "metrics.jsonl"
        for row in log.read(rows) if rows.exists() else []:
            store.add(row["round"], {name: value for name, value in row.items() if name not in ("round", "seconds")})
        return store

    def _fail(self, reason: str) -> None:
        if not self._off:
            self._off = True
            self._warn(f"MLflow at {self._public_uri} does not record this run ({reason}); metrics.jsonl does")


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
    absolute, name = _absolute(uri), public(uri)
    database = _database(absolute)
    if uri == OFF or (database and not database.exists()):
        raise UserError(f"no MLflow store at {database or name}: name one with --uri, such as sqlite:///mlflow.db")
    try:
        client = _connect(absolute)
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
        raise UserError(f"the MLflow store {name} cannot be read ({_reason(error, absolute)})") from None


def _read_run(client: MlflowClient, run: Any) -> Recorded:
    wanted = [name for name in run.data.metrics if name.startswith("evaluation/") or name == "rounds_per_second"]
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in wanted}
    metrics = {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}
    return Recorded(run.info.run_name, run.info.status, dict(run.data.params), dict(run.data.tags), metrics)


def ui(uri: str, host: str = "127.0.0.1", port: int = 5000) -> NoReturn:
    """Becomes the MLflow page over the store at `uri`, until a signal ends it; this process does not come back.

    Raises UserError where there is no store to show or the port is taken.
    """
    database = _database(_absolute(uri))
    if uri == OFF or uri.startswith("http"):
        raise UserError(f"tracking.uri={public(uri)}: expected a store to show, such as sqlite:///mlflow.db")
    if database and not database.exists():
        raise UserError(f"no MLflow store at {database}: run `ddad distill` first, or name another store")
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"{host}:{port} cannot be served ({error.strerror}): choose another port") from None
    options = ["--backend-store-uri", _absolute(uri), "--host", host, "--port", str(port), "--workers", "1"]
    if database:
        options += ["--artifacts-destination", str(_artifacts(database))]
    print(f"the MLflow page of {public(uri)} is at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server", *options], os.environ | QUIET | NO_JOBS)


def check(uri: str) -> str:
    """A sentence on whether the store at `uri` works here; makes no store."""
    if uri == OFF:
        return "MLflow is off (tracking.uri=none): runs record in their own folder alone"
    absolute, name = _absolute(uri), f"the MLflow store {public(uri)}"
    database = _database(absolute)
    try:
        if database and not database.exists():
            if importlib.util.find_spec("mlflow") is None:
                raise ModuleNotFoundError(name="mlflow")
            with tempfile.TemporaryFile(dir=next(folder for folder in database.parents if folder.exists())):
                return f"{name} will be made by the first run, as {database}"
        num_experiments = len(_connect(absolute).search_experiments())
        return f"{name} works ({num_experiments} experiment{'s' * (num_experiments != 1)})"
    except Exception as error:  # whatever MLflow raises is what the user asks about
        return f"{name} does not work here ({_reason(error, absolute)}): runs record in their own folder alone"


def require(uri: str) -> None:
    """UserError, within seconds, where the store at `uri` does not answer; an sqlite one that is missing is made."""
    if uri == OFF:
        return
    absolute = _absolute(uri)
    try:
        _connect(absolute)
    except Exception as error:  # whatever MLflow raises
        raise UserError(
            f"MLflow at {public(uri)} cannot be used ({_reason(error, absolute)}): start it, name another "
            f"tracking.uri, or record in the folders alone with tracking.uri={OFF}"
        ) from None


def settle(uri: str, ends: Mapping[Path, Status], warn: Callable[[str], None]) -> None:
    """Gives MLflow runs that are still running the status with which they ended, by their run folders.

    Their own processes could not: they were killed, or MLflow took too long for them.
    """
    if uri == OFF:
        return
    try:
        client = _connect(_absolute(uri))
        for folder, status in ends.items():
            run = _noted(client, folder / "mlflow.json", public(uri))
            if run is not None and run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, status)
    except Exception as error:  # whatever MLflow raises; the folders hold what happened
        warn(f"MLflow at {public(uri)} may not say how every run ended ({_reason(error, _absolute(uri))})")


def public(uri: str) -> str:
    """A tracking URI without the name and password it may hold."""
    parts = urlsplit(uri)
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1) if "@" in parts.netloc else uri


def _connect(uri: str) -> MlflowClient:
    """A client whose store has answered; raises, soon, whatever says why there is none."""
    if not uri:  # MLflow itself would take a default
        raise ValueError("it has no name")
    os.environ.update(QUIET)
    database = _database(uri)
    if database:  # MLflow itself would try for minutes
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"{database.parent} is not a folder") from None
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _impatient(), _alone(database):
        if database and database.stat().st_size == 0:  # made in whole or not at all: MLflow cannot mend a half-made one
            with files.atomic(database) as temporary:
                MlflowClient(f"{SQLITE}{temporary}").search_experiments(max_results=1)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """Inside, no other run opens this sqlite store: MLflow fails where two make the same one at once."""
    if database is None:
        yield
        return
    folder = os.open(database.parent, os.O_RDONLY)  # locked itself, so that no lock file is left
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def _impatient() -> Iterator[None]:
    """Inside, a server that does not answer is given up in seconds, unless the user's environment says otherwise."""
    added = {name: value for name, value in IMPATIENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)  # another thread, in here too, may have been first


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """The experiment of that name, made where there is none, with artifacts beside an sqlite database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = _database(uri)
        try:
            return str(client.create_experiment(name, str(_artifacts(database)) if database else None))
        except MlflowException:  # another run may have made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _resume(client: MlflowClient, note: Path, uri: str, again: bool) -> _Store | None:
    """The run that `note` names, where `again` running again; None where this store holds no such run."""
    run = _noted(client, note, uri)
    if run is None:
        return None
    run_id = run.info.run_id
    if again:
        client.update_run(run_id, status="RUNNING")
    last = {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in run.data.metrics}
    return _Store(client, run.info.experiment_id, run_id, last, set(run.data.params))


def _noted(client: MlflowClient, note: Path, uri: str) -> Any | None:
    """The run that a run folder's mlflow.json names; None where this store holds no such run."""
    from mlflow.exceptions import MlflowException

    try:
        known = json.loads(note.read_text())
        run = client.get_run(known["run_id"]) if known["uri"] == uri else None
    except (OSError, ValueError, KeyError, MlflowException):
        return None
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def _log_params(store: _Store, texts: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    new = [Param(key, text) for key, text in texts.items() if key not in store.params]
    for start in range(0, len(new), MAX_PARAMS):
        store.client.log_batch(store.run_id, params=new[start : start + MAX_PARAMS])
    store.params.update(texts)


def _register(store: _Store, model_id: str, name: str, tags: Mapping[str, Any]) -> None:
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        client.create_registered_model(name)
    except MlflowException:  # unless it is there already, the next call says what is wrong
        client.get_registered_model(name)
    if any(version.run_id == store.run_id for version in client.search_model_versions(f"name='{name}'")):
        return
    texts = {key: _fit(value, MAX_TAG) for key, value in tags.items()}
    # A server looks the model up in its own store; without one MLflow would do so where its environment says.
    served = client.tracking_uri.startswith("http")
    source = f"models:/{model_id}" if served else client.get_logged_model(model_id).artifact_location
    client.create_model_version(name, source, store.run_id, texts, model_id=model_id)


def _log_model(store: _Store, module: nn.Module, shape: tuple[int, int, int]) -> str:
    """Logs `module` for float images [-1, C, H, W], unless an earlier end of this run did; returns the model's id."""
    import torch

    earlier = store.client.get_run(store.run_id).outputs
    if earlier and earlier.model_outputs:
        return str(earlier.model_outputs[0].model_id)
    with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        import mlflow.pytorch
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        dtype = next(module.parameters()).dtype
        example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)  # 2: 1 would fix B
        x, y = example.numpy(), module(example).numpy()
        takes, gives = (Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]))]) for array in (x, y))
        logged = store.client.create_logged_model(store.experiment_id, name="student", source_run_id=store.run_id)
        model = Model(logged.artifact_location, store.run_id, model_uuid=logged.model_id, model_id=logged.model_id)
        status = LoggedModelStatus.FAILED
        try:
            mlflow.pytorch.save_model(
                module, f"{folder}/model", mlflow_model=model, signature=ModelSignature(takes, gives), input_example=x,
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"], serialization_format="pt2",
            )  # fmt: skip
            store.client.log_model_artifacts(logged.model_id, f"{folder}/model")
            status = LoggedModelStatus.READY
        finally:
            store.client.finalize_logged_model(logged.model_id, status)
        step = max(store.last.values(), default=0)
        store.client.log_outputs(store.run_id, [LoggedModelOutput(logged.model_id, step)])
        return str(logged.model_id)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, no warnings; afterwards the root logger is as it was: importing mlflow.pytorch reconfigures it."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _database(uri: str) -> Path | None:
    """The file of an sqlite URI."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def _absolute(uri: str) -> str:
    """An sqlite URI with the file's absolute path: a relative one is meant from where the command was given."""
    database = _database(uri)
    return f"{SQLITE}{database.absolute()}{''.join(uri.partition('?')[1:])}" if database else uri


def _artifacts(database: Path) -> Path:
    return database.parent / "mlartifacts"


def _fit(value: object, limit: int) -> str:
    """A value as text, shortened, and saying so, where MLflow takes no more than `limit` characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    mark = f"... (cut from {len(text)} characters; config.yaml has all)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def _reason(error: Exception, uri: str) -> str:
    """Why MLflow failed, in a few words on one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{(error.name or 'mlflow').partition('.')[0]} is not installed"
    if uri.startswith("http") and "Max retries exceeded" in str(error):
        return "no answer"
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.replace(uri, public(uri))[:200].strip()
