"""Where an MLflow store is and how it is opened; whether it works here, and its page."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from harness import files
from harness.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient


OFF = "none"
"""The tracking URI that records in the run folder alone."""

SQLITE = "sqlite:///"
"""What a tracking URI that names a file begins with."""

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
"""Environment in which mlflow reports nothing to its makers; it must be set before the import."""

NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Environment that keeps a server to its pages: its job runners are further processes, which nothing here uses."""

IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""Environment for the first word with a server: one more try, 5 seconds each; mlflow's own takes minutes."""


def check(uri: str) -> str:
    """A sentence on whether the store at `uri` works here; makes no store."""
    if uri == OFF:
        return "MLflow is off (tracking.uri=none): runs record in their own folder alone"
    absolute, name = located(uri), f"the MLflow store {public(uri)}"
    database = database_of(absolute)
    try:
        if database and not database.exists():
            if importlib.util.find_spec("mlflow") is None:
                raise ModuleNotFoundError(name="mlflow")
            with tempfile.TemporaryFile(dir=next(folder for folder in database.parents if folder.exists())):
                return f"{name} will be made by the first run, as {database}"
        num_experiments = len(connect(absolute).search_experiments())
        return f"{name} works ({num_experiments} experiment{'s' * (num_experiments != 1)})"
    except Exception as error:  # whatever MLflow raises is what the user asks about
        return f"{name} does not work here ({why(error, absolute)}): runs record in their own folder alone"


def require(uri: str) -> None:
    """UserError, within seconds, where the store at `uri` does not answer; an sqlite one that is missing is made."""
    if uri == OFF:
        return
    absolute = located(uri)
    try:
        connect(absolute)
    except Exception as error:  # whatever MLflow raises
        raise UserError(
            f"MLflow at {public(uri)} cannot be used ({why(error, absolute)}): start it, name another "
            f"tracking.uri, or record in the folders alone with tracking.uri={OFF}"
        ) from None


def ui(uri: str, host: str = "127.0.0.1", port: int = 5000) -> NoReturn:
    """Becomes the MLflow page over the store at `uri`, until a signal ends it; this process does not come back.

    Raises UserError where there is no store to show or the port is taken.
    """
    database = database_of(located(uri))
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
    options = ["--backend-store-uri", located(uri), "--host", host, "--port", str(port), "--workers", "1"]
    if database:
        options += ["--artifacts-destination", str(artifacts(database))]
    print(f"the MLflow page of {public(uri)} is at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server", *options], os.environ | QUIET | NO_JOBS)


def public(uri: str) -> str:
    """A tracking URI without the name and password it may hold."""
    parts = urlsplit(uri)
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1) if "@" in parts.netloc else uri


def connect(uri: str) -> MlflowClient:
    """A client whose store has answered; raises, soon, whatever says why there is none."""
    if not uri:  # MLflow itself would take a default
        raise ValueError("it has no name")
    os.environ.update(QUIET)
    database = database_of(uri)
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


def database_of(uri: str) -> Path | None:
    """The file of an sqlite URI."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def located(uri: str) -> str:
    """An sqlite URI with the file's absolute path: a relative one is meant from where the command was given."""
    database = database_of(uri)
    return f"{SQLITE}{database.absolute()}{''.join(uri.partition('?')[1:])}" if database else uri


def artifacts(database: Path) -> Path:
    """Where the files of an sqlite store are."""
    return database.parent / "mlartifacts"


def why(error: Exception, uri: str) -> str:
    """Why MLflow failed, in a few words on one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{(error.name or 'mlflow').partition('.')[0]} is not installed"
    if uri.startswith("http") and "Max retries exceeded" in str(error):
        return "no answer"
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.replace(uri, public(uri))[:200].strip()
