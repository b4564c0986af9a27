"""Processes of one run, as a launcher would start them, without the seconds each would take to import torch."""

from __future__ import annotations

import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.forking import CONTEXT


def free_port() -> int:
    """A port of this machine that nobody listens on, below those that connections get by themselves meanwhile."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(world_size: int, work: Callable[..., object], *args: object) -> list[BaseProcess]:
    """One process a rank that calls `work(*args)`, a function of a module, in a launcher's environment."""
    shared = {
        "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    found: list[BaseProcess] = []
    for rank in range(world_size):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        found.append(CONTEXT.Process(target=_begin, args=(own, work, args)))
        found[-1].start()
    return found


def finish(processes: list[BaseProcess], seconds: float = 240) -> list[int]:
    """Waits for all; their exit codes, minus the signal where one ended a process."""
    codes: list[int] = []
    for process in processes:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        codes.append(process.exitcode or 0)
    return codes


def run(world_size: int, work: Callable[..., object], *args: object) -> None:
    """Calls `work(*args)` on every rank and asserts that all went well."""
    assert finish(start(world_size, work, *args)) == [0] * world_size


def ddad(log: Path, cwd: Path, *words: str) -> None:
    """For `start`: the `ddad` command in `cwd`, what it says to LOG.RANK."""
    from harness import cli

    os.chdir(cwd)
    descriptor = os.open(log.with_name(f"{log.name}.{os.environ['RANK']}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["ddad", *words]
    cli.main()


def _begin(environment: dict[str, str], work: Callable[..., Any], args: tuple[object, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    tempfile.tempdir = None
    work(*args)
