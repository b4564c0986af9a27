"""A connection to a Ray cluster, and the resources that a trial needs from it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from harness.errors import UserError
from tune.plan import Plan

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
}
"""Environment variables of Ray, here and in its workers. They turn off usage statistics, Ray's own output, a working
directory for each trial, and Ray's signal handler; they set the seconds between two saved states of the search, and the
seconds that a stopped trial has for closing its files before its process runs the next trial."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Memory for objects that Ray passes between processes: plans and scores. Images and weights are passed as files."""

CONNECT_SECONDS = 5.0
"""The longest wait for an answer from the head of a cluster."""


@contextmanager
def connected(plan: Plan) -> Iterator[None]:
    """Connects to the cluster at `plan.address`, or starts Ray on this machine, until the end of the block.

    An existing connection is used and kept. Raises UserError if there is no cluster at the address, or if the nodes
    cannot hold a trial.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    owned = not ray.is_initialized()
    if owned:
        _connect(plan.address)
    try:
        check_resources(plan, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield
    finally:
        if owned:
            ray.shutdown()


def _connect(address: str | None) -> None:
    if address not in (None, "auto"):
        _check_address(str(address))
    options: dict[str, Any] = {"runtime_env": {"env_vars": ENVIRONMENT}}
    if address is None:
        options = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except Exception as error:  # Ray raises Exception itself if a node is too busy to start
        problem = f"--address {address}: no Ray cluster answers there" if address else "Ray cannot be started here"
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{problem} ({line[:200]})") from None
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the report says what became of the trials


def _check_address(address: str) -> None:
    """Raises UserError if nothing listens at HOST:PORT. Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"--address {address!r}: expected HOST:PORT of the cluster's head, such as 10.0.0.1:6379, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there ({error}): start one with `ray start --head`, "
            "or leave --address out"
        ) from None


def resources(plan: Plan) -> list[dict[str, float]]:
    """The resources of each process of a trial, as bundles of a Ray placement group."""
    bundle = {"CPU": plan.cpus, "GPU": plan.gpus}
    return [{name: amount for name, amount in bundle.items() if amount}] * plan.num_processes


def check_resources(plan: Plan, nodes: list[dict[str, float]]) -> None:
    """Raises UserError if the nodes, given by their resources, cannot hold a trial: Ray would wait without end."""
    (bundle, *_) = resources(plan)
    num_bundles = sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in bundle.items()) for node in nodes)
    if num_bundles < plan.num_processes:
        available = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        one = f"{plan.cpus:g} CPUs and {plan.gpus:g} GPUs on one node"
        several = f"{plan.num_processes} processes with {plan.cpus:g} CPUs and {plan.gpus:g} GPUs each"
        raise UserError(
            f"a trial needs {one if plan.num_processes == 1 else several}; the nodes have {available}: lower --cpus or "
            "--gpus" + (", or distributed.world_size" if plan.num_processes > 1 else "")
        )
