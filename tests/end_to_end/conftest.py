"""A taught digits teacher for all, and two ways to give the command: as a process of its own, and in this one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from harness import cli, resolve
from harness.config import Config
from tests import helpers
from tests.forking import Command
from tests.helpers import DDAD, environment

CPU = {"ACCELERATE_USE_CPU": "true"}
"""Environment in which a machine with a GPU gives the same bytes too."""

TEACHER = Path("teachers/digits-cnn32.safetensors")
"""Where the digits recipe has its teacher, from the folder in which the command is given."""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def complaint(self, code: int = 2) -> str:
        """The one line of a refusal, without its `ddad: `."""
        assert self.code == code, self
        assert self.out == "", self
        (line,) = self.err.splitlines()
        assert line.startswith("ddad: ") and "Traceback" not in line, self
        return line.removeprefix("ddad: ")


Ddad = Callable[..., Said]


@pytest.fixture
def ddad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ddad:
    """`ddad WORDS` in this process and its current folder: all of the command but the start of the interpreter."""
    monkeypatch.setenv(*next(iter(CPU.items())))

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ddad", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return run


def run_ddad(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`ddad WORDS` as a process, to its end."""
    return helpers.run_ddad(*words, cwd=cwd, env=CPU)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which `ddad teach digits` was given, and what it said."""
    place = tmp_path_factory.mktemp("taught")
    done = run_ddad("teach", "digits", "teach.epochs=2", "tracking.uri=none", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


@pytest.fixture
def workplace(own_folder: Path, taught: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The test's current folder, which holds the digits teacher and nothing else."""
    copy_teacher(taught[0], own_folder)
    return own_folder


def copy_teacher(source: Path, place: Path) -> None:
    """The teacher of one folder into another."""
    (place / TEACHER).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / TEACHER, place / TEACHER)


SHORT = ("rounds=6", "batch_size=32", "log_every=2", "checkpoint.every=2", "checkpoint.keep=2")
"""The run that most tests look at."""

SMALL = ("rounds=2", "batch_size=16", "tracking.uri=none", "pictures=false")

DIGITS = ("distill", "digits", *SMALL)

OWN = ("distill", "classification", *SMALL, "classes=10", "input.size=8", "student.network=cnn4")
"""Still without a teacher."""

UNTAUGHT = ("teacher.network=cnn8", "teacher.checkpoint=untrained")
"""One of random weights."""

QUIET = ("tracking.uri=none", "pictures=false")


@dataclass(frozen=True)
class Run:
    place: Path
    """The folder in which the command was given."""
    folder: Path
    """The run folder."""
    done: subprocess.CompletedProcess[str]
    imported: set[str] = field(repr=False)
    """The packages that the command imported."""

    @property
    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return content

    @property
    def config(self) -> Config:
        return resolve.resolve(None, resolve.read_file(self.folder / "config.yaml"))


def importing_ddad(*words: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The command as a shell would start it, and the packages it imported: what makes it slow, whatever the machine."""
    done = subprocess.run(
        [DDAD[0], "-X", "importtime", *DDAD[1:], *words], cwd=cwd, env=environment(CPU), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = done.stderr.splitlines(keepends=True)
    imports = [line for line in said if line.startswith("import time:")]
    done.stderr = "".join(line for line in said if line not in imports)
    return done, {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, taught: tuple[Path, object]) -> Run:
    """One run with everything on, its MLflow store included."""
    place = tmp_path_factory.mktemp("distilled")
    copy_teacher(taught[0], place)
    done, imported = importing_ddad("distill", "digits", *SHORT, cwd=place)
    assert done.returncode == 0, done.stderr
    return Run(place, only(place, "runs/*"), done, imported)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The whole rows of a run's metrics, without the load of hosts; a last one may be half written."""
    file = folder / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    found = [json.loads(line) for line in whole.splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("system/")} for row in found]


def teacher_weights() -> dict[str, Tensor]:
    """The taught teacher's, from the current folder."""
    return load_file(TEACHER)


def contents(place: Path) -> dict[str, str]:
    """{path: sha256, or "folder"} of everything below a folder, hidden files too."""
    found = {}
    for path in sorted(place.rglob("*")):
        found[str(path.relative_to(place))] = sha256(path) if path.is_file() else "folder"
    return found


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def only(place: Path, pattern: str) -> Path:
    """The one path that matches."""
    (path,) = place.glob(pattern)
    return path


@contextmanager
def started(*words: str, cwd: Path) -> Iterator[Command]:
    """`ddad WORDS` running by itself, killed when the block ends if it still is."""
    process = Command(words, cwd, environment(CPU))
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def wait(process: Command, happened: Callable[[], bool], seconds: float = 300) -> None:
    """Until something happens, while the process runs."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"ended with {process.returncode}: {process.communicate()}"
        assert time.monotonic() < end, f"did not happen in {seconds} s"
        time.sleep(0.001)
