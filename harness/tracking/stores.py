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
"""The tracking URI that turns MLflow off: a run is then recorded in its folder only."""

SQLITE = "sqlite:///"
"""What a tracking URI that names a file begins with."""

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
"""Environment in which mlflow reports nothing to its makers; it must be set before the import."""

NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Environment that keeps a server to its pages: its job runners are further processes, which nothing here uses."""

SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""Environment for the first request to a server: two attempts of 5 seconds; MLflow's own limits are minutes."""


def describe(uri: str) -> str:
    """One sentence: whether the store at `uri` works here. Makes no store."""
    if uri == OFF:
        return "MLflow is off (tracking.uri=none): runs are recorded in their own folders only"
    path_uri, name = absolute(uri), f"the MLflow store {without_credentials(uri)}"
    database = database_of(path_uri)
    try:
        if database and not database.exists():
            if importlib.util.find_spec("mlflow") is None:
                raise ModuleNotFoundError(name="mlflow")
            with tempfile.TemporaryFile(dir=next(folder for folder in database.parents if folder.exists())):
                return f"{name} will be made by the first run, as {database}"
        num_experiments = len(connect(path_uri).search_experiments())
        return f"{name} works ({num_experiments} experiment{'s' * (num_experiments != 1)})"
    except Exception as error:  # whatever MLflow raises is what the user asks about
        return f"{name} does not work here ({reason_of(error, path_uri)}): runs are recorded in their own folders only"


def require(uri: str) -> None:
    """Raises UserError within seconds if the store at `uri` does not answer; makes an sqlite store that is missing."""
    if uri == OFF:
        return
    path_uri = absolute(uri)
    try:
        connect(path_uri)
    except Exception as error:  # whatever MLflow raises
        raise UserError(
            f"MLflow at {without_credentials(uri)} cannot be used ({reason_of(error, path_uri)}): start it, name "
            f"another tracking.uri, or record in the run folders only with tracking.uri={OFF}"
        ) from None


def ui(uri: str, host: str = "127.0.0.1", port: int = 5000) -> NoReturn:
    """Replaces this process by the server of MLflow's page for the store at `uri`; a signal ends it.

    Raises UserError where there is no store to show or the port is taken.
    """
    database = database_of(absolute(uri))
    if uri == OFF or uri.startswith("http"):
        raise UserError(
            f"tracking.uri={without_credentials(uri)}: expected a store to show, such as sqlite:///mlflow.db"
        )
    if database and not database.exists():
        raise UserError(f"no MLflow store at {database}: run `ddad distill` first, or name another store")
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"{host}:{port} cannot be served ({error.strerror}): choose another port") from None
    options = ["--backend-store-uri", absolute(uri), "--host", host, "--port", str(port), "--workers", "1"]
    if database:
        options += ["--artifacts-destination", str(artifacts(database))]
    print(f"the MLflow page of {without_credentials(uri)} is at {address(host, port)} (Ctrl-C ends it)", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server", *options], os.environ | QUIET | NO_JOBS)


def address(host: str, port: int) -> str:
    """The page's address; its words make MLflow show model training, else it shows traces of language models."""
    return f"http://{host}:{port}/#/experiments?workflowType=machine_learning"


def without_credentials(uri: str) -> str:
    """A tracking URI with user name and password removed."""
    parts = urlsplit(uri)
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1) if "@" in parts.netloc else uri


def connect(uri: str) -> MlflowClient:
    """A client whose store has answered. Raises the reason within seconds if the store cannot be used."""
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
    with _short_timeouts(), _exclusive(database):
        if database and database.stat().st_size == 0:  # made in whole or not at all: MLflow cannot mend a half-made one
            with files.atomic(database) as temporary:
                MlflowClient(f"{SQLITE}{temporary}").search_experiments(max_results=1)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _exclusive(database: Path | None) -> Iterator[None]:
    """Keeps other runs from opening this sqlite store: MLflow fails if two processes make one at the same time."""
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
def _short_timeouts() -> Iterator[None]:
    """Limits the wait for a server to seconds, unless the user's environment sets other limits."""
    added = {name: value for name, value in SHORT_TIMEOUTS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)  # another thread may have removed it already


def database_of(uri: str) -> Path | None:
    """The file of an sqlite URI."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def absolute(uri: str) -> str:
    """An sqlite URI with an absolute path; a relative one is relative to the current folder."""
    database = database_of(uri)
    return f"{SQLITE}{database.absolute()}{''.join(uri.partition('?')[1:])}" if database else uri


def artifacts(database: Path) -> Path:
    """Where the files of an sqlite store are."""
    return database.parent / "mlartifacts"


def reason_of(error: Exception, uri: str) -> str:
    """The reason for MLflow's error in a few words on one line, without credentials."""
    if isinstance(error, ModuleNotFoundError):
        return f"{(error.name or 'mlflow').partition('.')[0]} is not installed"
    if uri.startswith("http") and "Max retries exceeded" in str(error):
        return "no answer"
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.replace(uri, without_credentials(uri))[:200].strip()
