"""One sweep with four interruptions: a killed worker, a killed driver, a signal, and a limit that is reached.

It is one sweep because each start of Ray takes seconds. The student waits in the middle of a trial until the test has
caused the next interruption.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import held_network
from tests.end_to_end.conftest import Said, rows, started
from tests.end_to_end.test_sweep import BARE, TIMEOUT, give

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT)]

SWEEP = ("sweep", "digits", "--output", "sweep", "--scheduler", "none", "--trials", "3", "--parallel", "1", "rounds=32",
         "batch_size=16", "generator.width=8", f"student.network={held_network.__file__}:student", "pictures=false",
         "tracking.uri=sqlite:///mlflow.db", *BARE)  # fmt: skip
"""One trial at a time, with an evaluation and a checkpoint every fourth round."""


def hold(cwd: Path, trial: int) -> None:
    """Makes the trial of that number wait, and all others continue."""
    (cwd / "held").unlink(missing_ok=True)
    (cwd / "hold.new").write_text(str(trial))
    (cwd / "hold.new").replace(cwd / "hold")


def held(cwd: Path) -> int:
    """The id of the process that waits; 0 if none does."""
    text = (cwd / "held").read_text() if (cwd / "held").exists() else ""
    return int(text or 0)


def kill_process(process: int) -> None:
    """Kills a process; it may have ended already, if its sweep was killed."""
    assert process > 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def wait_until(happened: Callable[[], object], alive: Callable[[], bool] = lambda: True) -> None:
    """Waits until `happened` is true; fails if `alive` becomes false before."""
    end = time.monotonic() + TIMEOUT
    while not happened():
        assert alive() and time.monotonic() < end
        time.sleep(0.05)


def trial_records(cwd: Path) -> list[dict[str, Any]]:
    file = cwd / "sweep" / "trials.json"
    found: list[dict[str, Any]] = json.loads(file.read_text())["trials"] if file.exists() else []
    return found


def is_saved(cwd: Path) -> bool:
    """Whether Ray's saved state contains the second trial; if not, a restart would run another trial instead."""
    (first,) = trial_records(cwd)
    names = {path.name for path in (cwd / "sweep" / "trials").iterdir()} - {first["id"]}
    states = [file.read_text() for file in (cwd / "sweep" / "ray").glob("experiment_state-*.json")]
    return any(name in text for name in names for text in states)


def statuses(cwd: Path) -> dict[str, list[str]]:
    """{name: [outcome, status]} of the sweep's MLflow run and its children; there are no other runs."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    parent = json.loads((cwd / "sweep" / "mlflow.json").read_text())["run_id"]
    (experiment,) = client.search_experiments(filter_string="name = 'ddad'")
    runs = client.search_runs([experiment.experiment_id])
    for run in runs:
        assert (run.info.run_id == parent) != (run.data.tags.get("mlflow.parentRunId") == parent)
    return {run.data.tags["folder"]: [run.data.tags.get("outcome", ""), run.info.status] for run in runs}


@dataclass(frozen=True)
class Interrupted:
    """What was observed at each interruption; the folder is as the last command left it."""

    cwd: Path
    first: dict[str, Any]
    """The record of the first trial, from before the driver was killed."""
    kept: tuple[int, int]
    """The modification times of the first trial's result and of the probe."""
    stopped: Said
    after_stop: tuple[list[dict[str, Any]], dict[str, list[str]]]
    """Records and statuses after the signal."""
    ended: Said


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    cwd = tmp_path_factory.mktemp("interrupted")
    hold(cwd, 1)
    with started(*SWEEP, cwd=cwd) as process:
        wait_until(lambda: held(cwd), lambda: process.poll() is None)
        kill_process(held(cwd))
        hold(cwd, 2)
        wait_until(lambda: held(cwd) and is_saved(cwd), lambda: process.poll() is None)
        process.kill()
    kill_process(held(cwd))  # without the driver it would end after a minute
    (first,) = trial_records(cwd)
    files = (cwd / "sweep" / first["folder"] / "result.json", cwd / "sweep" / "probe" / "probe.safetensors")
    kept = (files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns)

    hold(cwd, 2)
    signalling = threading.Thread(target=send_sigterm, args=[cwd])
    signalling.start()
    stopped = give(*SWEEP, "--resume", cwd=cwd)
    signalling.join()
    after_stop = trial_records(cwd), statuses(cwd)

    (cwd / "hold").unlink()
    leave_running(cwd, first["folder"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # not the store of the sweep; nothing listens there
        ended = give(*SWEEP, "--resume", "--total-rounds", "70", cwd=cwd)
    assert (files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns) == kept
    return Interrupted(cwd, first, kept, stopped, after_stop, ended)


def send_sigterm(cwd: Path) -> None:
    """Sends SIGTERM to this process when a worker waits."""
    wait_until(lambda: held(cwd))
    os.kill(os.getpid(), signal.SIGTERM)


def leave_running(cwd: Path, folder: str) -> None:
    """Sets the MLflow run to RUNNING, as after a kill between the end of the run and its record in MLflow."""
    from mlflow import MlflowClient

    run_id = json.loads((cwd / "sweep" / folder / "mlflow.json").read_text())["run_id"]
    MlflowClient(f"sqlite:///{cwd}/mlflow.db").update_run(run_id, status="RUNNING")


def test_the_trial_of_a_killed_worker_continues_from_its_checkpoint(interrupted: Interrupted) -> None:
    assert (interrupted.first["outcome"], interrupted.first["round"]) == ("finished", 32)
    log = rows(interrupted.cwd / "sweep" / interrupted.first["folder"])
    evaluated = [row["round"] for row in log if "evaluation/probe_agreement" in row]
    assert evaluated == list(range(4, 33, 4)), "rows of rounds that were trained again replace the earlier ones"


def test_a_signal_saves_the_state_and_records_no_trial(interrupted: Interrupted) -> None:
    assert (interrupted.stopped.code, interrupted.stopped.out) == (130, "")
    last = f"stopped: the same command with --resume goes on in {interrupted.cwd / 'sweep'}"
    assert interrupted.stopped.err.splitlines() == [last]
    found, ends = interrupted.after_stop
    assert found == [interrupted.first]
    assert ends.pop("sweep") == ["", "KILLED"]
    assert ends.pop("default") == ["", "FINISHED"]
    assert sorted(ends.values()) == [["", "KILLED"], ["finished", "FINISHED"]]


def test_resume_keeps_finished_trials_and_a_limit_ends_the_sweep_with_a_report(interrupted: Interrupted) -> None:
    assert interrupted.ended.code == 0, interrupted.ended.err
    found = trial_records(interrupted.cwd)
    assert found[0] == interrupted.first
    assert [entry["outcome"] for entry in found] == ["finished", "finished", "stopped"]
    assert 70 - 2 * 32 <= found[2]["round"] < 32 and found[2]["objective"] is not None
    log = rows(interrupted.cwd / "sweep" / found[1]["folder"])
    assert [row["round"] for row in log if "evaluation/probe_agreement" in row] == list(range(4, 33, 4))
    assert "of 70 rounds were trained" in interrupted.ended.out


def test_mlflow_has_the_status_of_every_run_and_the_best_model(interrupted: Interrupted) -> None:
    """One MLflow run for each run folder after all restarts, in the store of the configuration."""
    from mlflow import MlflowClient

    assert "MLflow" not in interrupted.ended.err
    best = json.loads((interrupted.cwd / "sweep" / "report.json").read_text())["best"]
    (version,) = MlflowClient(f"sqlite:///{interrupted.cwd}/mlflow.db").search_model_versions("name='ddad-digits'")
    assert version.tags["trial"] == best["id"]
    ends = statuses(interrupted.cwd)
    assert ends.pop("sweep") == ["", "FINISHED"]
    assert ends.pop("default") == ["", "FINISHED"]
    assert {name: end[0] for name, end in ends.items()} == {
        e["id"]: e["outcome"] for e in trial_records(interrupted.cwd)
    }
    assert sorted(ends.values()) == [*[["finished", "FINISHED"]] * 2, ["stopped", "KILLED"]]
