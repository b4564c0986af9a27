"""One run on a Ray cluster, a torchrun on each of its nodes.

    RAY_ADDRESS=auto python launch/ray/distill.py --nodes 2 --nproc 8 digits --output /shared/runs/digits

Give it on a node of the cluster, or as a job: `ray job submit -- python launch/ray/distill.py ...`. Without RAY_ADDRESS
it starts Ray on this machine alone. To edit: nodes, processes on each (one for each GPU), and what follows, which is
what `ddad distill` takes. The current folder, the run folder and the teacher's file have to be on a file system that
all nodes share, and ddad has to be installed on each.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@ray.remote
def meeting_point() -> str:
    """ADDRESS:PORT of the node this runs on, the port a free one."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{taken.getsockname()[1]}"


@ray.remote
def torchrun(words: list[str], folder: Path, threads: str, node: int) -> int:
    """Runs torchrun with the arguments and returns its exit code."""
    # Ray sets the threads of each process to the CPUs of all of them together.
    # And a store for each start: see launch/torchrun.sh.
    own = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    variables = {**os.environ, **own}
    program = [sys.executable, "-m", "torch.distributed.run", "--local-addr", ray.util.get_node_ip_address(),
               "--rdzv-conf", f"is_host={int(node == 0)}", *words]  # fmt: skip
    return subprocess.run(program, cwd=folder, env=variables, check=False).returncode


def main() -> int:
    """Reserves the nodes, starts a torchrun on each, and waits."""
    parser = argparse.ArgumentParser(description="ddad distill on the nodes of a Ray cluster")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what `ddad distill` takes")
    given = parser.parse_args()
    ray.init()
    share = {"GPU" if ray.cluster_resources().get("GPU") else "CPU": float(given.nproc)}
    group = placement_group([share] * given.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=k) for k in range(given.nodes)]
    head = ray.get(meeting_point.options(num_cpus=0, scheduling_strategy=places[0]).remote())
    words = [
        *("--nnodes", str(given.nodes), "--nproc-per-node", str(given.nproc), "--max-restarts", str(given.restarts)),
        *("--rdzv-backend", "c10d", "--rdzv-id", "ddad", "--rdzv-endpoint", head),
        *("-m", "harness", "distill", *given.words, f"distributed.world_size={given.nodes * given.nproc}"),
    ]
    here, threads = Path.cwd(), os.environ.get("OMP_NUM_THREADS", "1")
    resources = {"num_gpus": share.get("GPU", 0), "num_cpus": share.get("CPU", 0)}
    parts = [
        torchrun.options(scheduling_strategy=place, max_retries=0, **resources).remote(words, here, threads, node)
        for node, place in enumerate(places)
    ]
    return max(ray.get(parts))


if __name__ == "__main__":
    sys.exit(main())
