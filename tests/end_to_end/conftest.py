"""A taught digits teacher for all, and two ways to give the command: as a process of its own, and in this one."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import cli
from tests.helpers import DDAD, environment, run_ddad

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

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ddad", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which `ddad teach digits` was given, and what it said."""
    place = tmp_path_factory.mktemp("taught")
    done = run_ddad("teach", "digits", "teach.epochs=2", "tracking.uri=none", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: tuple[Path, subprocess.CompletedProcess[str]]
) -> Path:
    """A fresh current folder that holds the digits teacher and nothing else."""
    copy_teacher(taught[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy_teacher(source: Path, place: Path) -> None:
    """The teacher of one folder into another."""
    (place / TEACHER).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / TEACHER, place / TEACHER)


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
def started(*words: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`ddad WORDS` running by itself, killed when the block ends if it still is."""
    process = subprocess.Popen(
        [*DDAD, *words], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def wait(process: subprocess.Popen[str], happened: Callable[[], bool], seconds: float = 120) -> None:
    """Until something happens, while the process runs."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"ended with {process.returncode}: {process.communicate()}"
        assert time.monotonic() < end, f"did not happen in {seconds} s"
        time.sleep(0.001)
