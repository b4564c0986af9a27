"""Starting the real command from a test."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forking import Command

ROOT = Path(__file__).resolve().parents[1]
"""The project's folder."""

DDAD = (sys.executable, "-m", "harness")
"""The `ddad` command of this tree."""


@contextmanager
def without_curves() -> Iterator[None]:
    """matplotlib as if it were not installed: drawing curves.png costs each finished run a second."""
    importlib.import_module("torchmetrics.utilities.plot")  # imports it too
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)  # what the import meets is then ModuleNotFoundError
        yield


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with `extra`, and with this tree importable from any working directory."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


def run_ddad(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `ddad ARGS` in `cwd` to its end, not on a terminal; `env` adds variables, `timeout` is in seconds.

    The caller asserts `returncode`. subprocess.TimeoutExpired when it takes longer.
    """
    command = Command(args, cwd, environment(env))
    code = command.wait(timeout)
    return subprocess.CompletedProcess(args, code, *command.communicate())
