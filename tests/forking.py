"""Processes that skip the seconds it takes to import torch: forked from one that has done so."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "harness.cli",
        "harness.training.distill",
        "harness.commands.progress",
        "tasks.classification.data",
        "tasks.classification.task",
        "torch._dynamo",
        "torchmetrics.classification",
    ]
)


class Command:
    """`ddad WORDS` in a process of its own, not on a terminal; the part of subprocess.Popen that tests use."""

    def __init__(self, words: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> None:
        self.args = words
        self.said = Path(tempfile.mkdtemp(prefix="ddad-said-"))
        for name in ("out", "err"):
            (self.said / name).touch()
        self.process: BaseProcess = CONTEXT.Process(target=_ddad, args=(words, str(cwd), dict(env), str(self.said)))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; its exit code, minus the signal where one ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; what it said on standard output and standard error."""
        self.wait(timeout)
        out, err = ((self.said / name).read_text() for name in ("out", "err"))
        return out, err


def _ddad(words: tuple[str, ...], cwd: str, env: dict[str, str], said: str) -> None:
    """The whole of the command, as `python -m harness WORDS` has it."""
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, f"{said}/out", os.O_WRONLY),
        (2, f"{said}/err", os.O_WRONLY),
    ):
        os.dup2(os.open(path, flags), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    import torch

    from harness import cli

    torch.set_num_threads(1)
    sys.argv = ["ddad", *words]
    cli.main()
