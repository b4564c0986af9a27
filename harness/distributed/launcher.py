"""N processes of one run on this machine: torchrun's agent, with ddad's messages and exit codes instead of its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import psutil

from harness.errors import Diverged, Lost, UserError

FAULT = 1
"""Exit code of a process that ended in a traceback."""

STOPS = {128 + signal.SIGINT, 128 + signal.SIGTERM}
"""Exit codes of a process that was asked to stop."""


def prepare(num_processes: int, restarts: int) -> None:
    """Checks what was asked for, and sets variables that hold for all processes where the user has not set them.

    Has to come before torch is imported. UserError for fewer processes than one.
    """
    if num_processes < 1:
        raise UserError(f"--nproc {num_processes}: expected the number of processes to start, at least 1")
    if restarts < 0:
        raise UserError(f"--restarts {restarts}: expected how often to start again after a lost process, at least 0")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def launch(num_processes: int, restarts: int, arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Runs `ddad ARGUMENTS` in `num_processes` processes to its end; returns the exit code for all of them.

    After a process was lost it starts all of them again, up to `restarts` times, and they go on from the last
    checkpoint. A mistake, a divergence or a request to stop is final.
    """
    _check_devices(num_processes)
    logging.disable()  # the agent's own messages; those of the processes say more
    with _Relay() as relay, tempfile.TemporaryDirectory(prefix="ddad-launch-") as scratch:
        for left in reversed(range(restarts + 1)):
            codes = _run(num_processes, ("-m", "harness", *arguments), scratch)
            code = outcome(codes, relay.received)
            if code == Lost.exit_code and Lost.exit_code not in (codes.get(0), codes.get(1)):  # these print the cause
                say(f"ddad: {_killed_ranks(codes)}; the last checkpoint is kept: the same command goes on from there")
            if code not in (FAULT, Lost.exit_code) or not left:
                break
            say(f"ddad: starting all {num_processes} processes again; restarts left after this one: {left - 1}")
    return code


def outcome(codes: Mapping[int, int], received: int | None) -> int:
    """One exit code out of those of the ranks that failed (-N: ended by signal N); `received` went to all of them."""
    ends = {_normal(code) for code in codes.values()}
    if not ends:
        return 0
    for code in (Diverged.exit_code, UserError.exit_code):
        if code in ends:
            return code
    if received:
        return 128 + received
    if ends <= STOPS:
        return min(ends)  # SIGTERM comes also from the agent, to those that are left when one has ended
    return FAULT if FAULT in ends else Lost.exit_code


def _run(num_processes: int, program: Sequence[str], scratch: str) -> dict[int, int]:
    """Starts the processes and waits; the exit codes of the ranks that failed, none where all went well."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="ddad",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # the agent knows no failure that is final
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
        signals_to_handle="SIGHUP,SIGQUIT",  # the others are _Relay's
    )
    try:
        elastic_launch(settings, sys.executable)(*program)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException as error:
        return dict.fromkeys(range(num_processes), -error.sigval)
    return {}


def _check_devices(num_processes: int) -> None:
    """UserError where there are GPUs, but not one for each process."""
    import torch

    found = 0 if os.environ.get("ACCELERATE_USE_CPU") else torch.cuda.device_count()
    if 0 < found < num_processes:
        raise UserError(
            f"--nproc {num_processes}: a process takes a GPU of its own, and {found} can be seen here: start at most "
            f"{found}, or set ACCELERATE_USE_CPU=true to compute on the CPU"
        )


def _killed_ranks(codes: Mapping[int, int]) -> str:
    """The ranks that a signal ended which no one had sent to stop the run."""
    killed = {rank: -code for rank, code in sorted(codes.items()) if code < 0 and _normal(code) not in STOPS}
    return ", ".join(f"rank {rank} was ended by {signal.Signals(number).name}" for rank, number in killed.items())


def _normal(code: int) -> int:
    """An exit code as a shell gives it: 128 + N for a process ended by signal N."""
    return code if code >= 0 else 128 - code


class _Relay:
    """Hands SIGINT and SIGTERM on to the processes: they finish their round, and a second signal ends them at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> _Relay:
        self._before = {number: signal.signal(number, self._hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        processes = psutil.Process().children()
        for process in processes:
            process.send_signal(number)
        if not processes:
            sys.exit(128 + number)
