"""A sweep on an existing Ray cluster, started with `ray start` on this machine; trials of two processes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import resolve
from harness.run import folder as run_folder
from tests.distributed.starting import distance
from tests.end_to_end import held_network
from tests.end_to_end.conftest import CPU, rows
from tests.end_to_end.test_sweep import BARE, TIMEOUT, TINY, give
from tests.end_to_end.test_sweep_faults import held, hold, kill_process, trial_records, wait_until
from tests.helpers import environment
from tune import plan as plans
from tune import trial

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(2 * TIMEOUT)]

OPTIONS = ("digits", *TINY, *BARE, f"student.network={held_network.__file__}:student", "precision=fp64",
           "tracking.uri=none")  # fmt: skip


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a cluster of one node with three CPUs."""
    log = tmp_path_factory.mktemp("head") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=3",
             "--include-dashboard=false", "--disable-usage-stats",
             "--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={2**27}"]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words], env=environment(CPU), stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: "ray start --address" in log.read_text(), lambda: process.poll() is None)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)  # it ends the processes that it has started
        process.wait()


def test_a_trial_that_no_node_can_hold_is_refused(head: str, workplace: Path) -> None:
    for words, line in {
        ("--cpus", "4000"): "a trial needs 4000 CPUs and 0 GPUs on one node; the nodes have 3 CPUs and 0 GPUs: lower",
        ("--gpus", "0.5"): "a trial needs 1 CPUs and 0.5 GPUs on one node; the nodes have 3 CPUs",
        ("distributed.world_size=4",): "a trial needs 4 processes with 1 CPUs and 0 GPUs each; the nodes have 3 CPUs",
    }.items():
        assert give("sweep", *OPTIONS, "--address", head, *words, cwd=workplace).complaint().startswith(line)
    assert not (workplace / "sweeps").exists()


def test_a_trial_of_two_processes_has_the_result_of_one_process(head: str, tmp_path: Path) -> None:
    """In double precision, and although one of the two processes is killed during the trial."""
    hold(tmp_path, 1)

    def kill() -> None:
        wait_until(lambda: held(tmp_path))
        kill_process(held(tmp_path))
        hold(tmp_path, 0)

    killing = threading.Thread(target=kill)
    killing.start()
    said = give("sweep", *OPTIONS, "--output", "sweep", "--trials", "1", "--address", head, "distributed.world_size=2",
                cwd=tmp_path)  # fmt: skip
    killing.join()
    assert said.code == 0, said.err
    (entry,) = trial_records(tmp_path)
    assert (entry["outcome"], entry["round"]) == ("finished", 16)
    log = rows(tmp_path / "sweep" / entry["folder"])
    evaluated = [row["round"] for row in log if "evaluation/probe_agreement" in row]
    assert evaluated == list(range(2, 17, 2)), "it continued from its checkpoint"

    given = ("digits", None, resolve.read_overrides(OPTIONS[1:]))
    plan = plans.make(given, tmp_path / "sweep", "loss_weights", 1, None, scheduler="asha")
    *_, last = trial.run(plan, "single", entry["sample"])
    assert last.objective == entry["objective"]
    assert distance(plan.trials_folder / "single", plan.folder / entry["folder"]) < 1e-8
    assert distance(plan.trials_folder / "single", plan.default_folder) > 1e-3, (
        "another configuration has another result"
    )
    assert run_folder.result(plan.default_folder)["world_size"] == 2  # type: ignore[index] # None would fail too
