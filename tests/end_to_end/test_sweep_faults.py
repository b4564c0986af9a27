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
from tests.end_to_end.test_sweep import BARE, PATIENCE, give

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]

SWEEP = ("sweep", "digits", "--output", "sweep", "--scheduler", "none", "--trials", "3", "--parallel", "1", "rounds=32",
         "batch_size=16", "generator.width=8", f"student.network={held_network.__file__}:student", "pictures=false",
         "tracking.uri=sqlite:///mlflow.db", *BARE)  # fmt: skip
"""One trial at a time, with an evaluation and a checkpoint every fourth round."""


def hold(place: Path, trial: int) -> None:
    """Makes the trial of that number wait, and all others continue."""
    (place / "held").unlink(missing_ok=True)
    (place / "hold.new").write_text(str(trial))
    (place / "hold.new").replace(place / "hold")


def held(place: Path) -> int:
    """The id of the process that waits; 0 if none does."""
    text = (place / "held").read_text() if (place / "held").exists() else ""
    return int(text or 0)


def end(process: int) -> None:
    """Kills a process; it may have ended already, if its sweep was killed."""
    assert process > 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def until(happened: Callable[[], object], alive: Callable[[], bool] = lambda: True) -> None:
    """Waits until `happened` is true; fails if `alive` becomes false before."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert alive() and time.monotonic() < end
        time.sleep(0.05)


def trial_records(place: Path) -> list[dict[str, Any]]:
    file = place / "sweep" / "trials.json"
    found: list[dict[str, Any]] = json.loads(file.read_text())["trials"] if file.exists() else []
    return found


def is_noted(place: Path) -> bool:
    """Whether Ray's saved state contains the second trial; if not, a restart would run another trial instead."""
    (first,) = trial_records(place)
    names = {path.name for path in (place / "sweep" / "trials").iterdir()} - {first["id"]}
    states = [file.read_text() for file in (place / "sweep" / "ray").glob("experiment_state-*.json")]
    return any(name in text for name in names for text in states)


def statuses(place: Path) -> dict[str, list[str]]:
    """{name: [outcome, status]} of the sweep's MLflow run and its children; there are no other runs."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    parent = json.loads((place / "sweep" / "mlflow.json").read_text())["run_id"]
    (experiment,) = client.search_experiments(filter_string="name = 'ddad'")
    runs = client.search_runs([experiment.experiment_id])
    for run in runs:
        assert (run.info.run_id == parent) != (run.data.tags.get("mlflow.parentRunId") == parent)
    return {run.info.run_name: [run.data.tags.get("outcome", ""), run.info.status] for run in runs}


@dataclass(frozen=True)
class Story:
    """What was observed at each interruption; the folder is as the last command left it."""

    place: Path
    first: dict[str, Any]
    """The record of the first trial, from before the driver was killed."""
    kept: tuple[int, int]
    """The modification times of the first trial's result and of the probe."""
    stopped: Said
    after_stop: tuple[list[dict[str, Any]], dict[str, list[str]]]
    """Records and statuses after the signal."""
    ended: Said


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    place = tmp_path_factory.mktemp("story")
    hold(place, 1)
    with started(*SWEEP, cwd=place) as process:
        until(lambda: held(place), lambda: process.poll() is None)
        end(held(place))
        hold(place, 2)
        until(lambda: held(place) and is_noted(place), lambda: process.poll() is None)
        process.kill()
    end(held(place))  # without the driver it would end after a minute
    (first,) = trial_records(place)
    files = (place / "sweep" / first["folder"] / "result.json", place / "sweep" / "probe" / "probe.safetensors")
    kept = (files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns)

    hold(place, 2)
    asking = threading.Thread(target=ask_to_stop, args=[place])
    asking.start()
    stopped = give(*SWEEP, "--resume", place=place)
    asking.join()
    after_stop = trial_records(place), statuses(place)

    (place / "hold").unlink()
    leave_running(place, first["folder"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # not the store of the sweep; nothing listens there
        ended = give(*SWEEP, "--resume", "--total-rounds", "70", place=place)
    assert (files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns) == kept
    return Story(place, first, kept, stopped, after_stop, ended)


def ask_to_stop(place: Path) -> None:
    """Sends SIGTERM to this process when a worker waits."""
    until(lambda: held(place))
    os.kill(os.getpid(), signal.SIGTERM)


def leave_running(place: Path, folder: str) -> None:
    """Sets the MLflow run to RUNNING, as after a kill between the end of the run and its record in MLflow."""
    from mlflow import MlflowClient

    run_id = json.loads((place / "sweep" / folder / "mlflow.json").read_text())["run_id"]
    MlflowClient(f"sqlite:///{place}/mlflow.db").update_run(run_id, status="RUNNING")


def test_the_trial_of_a_killed_worker_continues_from_its_checkpoint(story: Story) -> None:
    assert (story.first["outcome"], story.first["round"]) == ("finished", 32)
    log = rows(story.place / "sweep" / story.first["folder"])
    judged = [row["round"] for row in log if "evaluation/probe_agreement" in row]
    assert judged == list(range(4, 33, 4)), "rows of rounds that were trained again replace the earlier ones"


def test_a_signal_saves_the_state_and_records_no_trial(story: Story) -> None:
    assert (story.stopped.code, story.stopped.out) == (130, "")
    last = f"stopped: the same command with --resume goes on in {story.place / 'sweep'}"
    assert story.stopped.err.splitlines() == [last]
    found, ends = story.after_stop
    assert found == [story.first]
    assert ends.pop("sweep") == ["", "KILLED"]
    assert ends.pop("default") == ["", "FINISHED"]
    assert sorted(ends.values()) == [["", "KILLED"], ["finished", "FINISHED"]]


def test_resume_keeps_finished_trials_and_a_limit_ends_the_sweep_with_a_report(story: Story) -> None:
    assert story.ended.code == 0, story.ended.err
    found = trial_records(story.place)
    assert found[0] == story.first
    assert [entry["outcome"] for entry in found] == ["finished", "finished", "stopped"]
    assert 70 - 2 * 32 <= found[2]["round"] < 32 and found[2]["objective"] is not None
    log = rows(story.place / "sweep" / found[1]["folder"])
    assert [row["round"] for row in log if "evaluation/probe_agreement" in row] == list(range(4, 33, 4))
    assert "of 70 rounds were trained" in story.ended.out


def test_mlflow_has_the_status_of_every_run_and_the_best_model(story: Story) -> None:
    """One MLflow run for each run folder after all restarts, in the store of the configuration."""
    from mlflow import MlflowClient

    assert "MLflow" not in story.ended.err
    best = json.loads((story.place / "sweep" / "report.json").read_text())["best"]
    (version,) = MlflowClient(f"sqlite:///{story.place}/mlflow.db").search_model_versions("name='ddad-digits'")
    assert version.tags["trial"] == best["id"]
    ends = statuses(story.place)
    assert ends.pop("sweep") == ["", "FINISHED"]
    assert ends.pop("default") == ["", "FINISHED"]
    assert {name: end[0] for name, end in ends.items()} == {e["id"]: e["outcome"] for e in trial_records(story.place)}
    assert sorted(ends.values()) == [*[["finished", "FINISHED"]] * 2, ["stopped", "KILLED"]]
