"""Functions called in Ray tasks: in one process, or in the N processes of a distributed run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from harness.config import Config
from harness.distributed.runtime import leave
from harness.errors import Diverged, Lost, UserError
from tune import trial
from tune.plan import Plan
from tune.ray_backend.cluster import resources

MAX_FAILURES = 3
"""Restarts of a run after its process has died."""


def enter_working_dir(plan: Plan) -> None:
    """Changes to the folder of the command: relative paths of the configuration start there."""
    if not plan.folder.is_dir():
        node = ray.util.get_node_ip_address()
        raise RuntimeError(f"node {node} does not have {plan.folder}: every node needs the sweep's folder")
    os.chdir(plan.working_dir)


def call_all(plan: Plan, calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """The results of (function, arguments) pairs, each called with the resources of a trial, in parallel."""

    def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        enter_working_dir(plan)
        if plan.num_processes == 1:
            return function(*arguments)
        group = placement_group(resources(plan))
        ray.get(group.ready())
        try:
            (result,) = run_distributed(plan, group, _yield_result, function, *arguments)
        finally:
            remove_placement_group(group)
        return result

    single = plan.num_processes == 1
    task = ray.remote(
        num_cpus=plan.cpus if single else 0, num_gpus=plan.gpus if single else 0, max_retries=MAX_FAILURES,
        retry_exceptions=[Lost, ray.exceptions.WorkerCrashedError],
    )(call)  # fmt: skip
    references = [task.remote(*pair) for pair in calls]
    with _original_errors():
        return list(ray.get(references))


def _yield_result(function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    yield function(*arguments)


def train_distributed(plan: Plan, config: Config, path: Path) -> trial.Results:
    """`trial.train_here` in N processes, in the placement group that Ray Tune has reserved for the trial."""
    yield from run_distributed(plan, ray.util.get_current_placement_group(), trial.train_here, plan, config, path)


def run_distributed(plan: Plan, group: Any, function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """Calls a generator function in one process for each bundle of the placement group; yields what rank 0 yields.

    The processes are the ranks of one run, with the environment variables that a launcher sets. If one of them dies,
    the others are stopped too, and the run can continue from its last checkpoint.
    """
    strategies = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(plan.num_processes)]
    find_address = ray.remote(_free_address).options(num_cpus=0, scheduling_strategy=strategies[0])
    master = ray.get(find_address.remote())
    task = ray.remote(
        num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=0, max_calls=1,  # a new process for each call
        num_returns="streaming", _generator_backpressure_num_objects=1,
    )(_run_rank)  # fmt: skip
    streams = [
        task.options(scheduling_strategy=strategy).remote(plan, rank, master, function, arguments)
        for rank, strategy in enumerate(strategies)
    ]
    try:
        with _original_errors():
            for reference in streams[0]:
                yield ray.get(reference)
    finally:
        for stream in streams:
            ray.cancel(stream, force=True)


def _free_address() -> tuple[str, int]:
    """The IP address of this node and a free port."""
    with socket.socket() as bound:
        bound.bind(("", 0))
        return ray.util.get_node_ip_address(), bound.getsockname()[1]


def _run_rank(
    plan: Plan, rank: int, master: tuple[str, int], function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> Iterator[Any]:
    """Calls the generator function as one rank. Ray shows each process only its own GPU, so LOCAL_RANK is always 0."""
    enter_working_dir(plan)
    address, port = master
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(plan.num_processes), LOCAL_RANK="0", GROUP_RANK=str(rank),
        MASTER_ADDR=address, MASTER_PORT=str(port),
    )  # fmt: skip
    for item in function(*arguments):
        if rank == 0:  # the items of the other ranks would wait for a reader
            yield item
    leave()


@contextmanager
def _original_errors() -> Iterator[None]:
    """Raises a worker's UserError or Diverged as such, without Ray's wrapper and the worker's traceback."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | Diverged):
            raise type(error.cause)(str(error.cause)) from None
        raise
