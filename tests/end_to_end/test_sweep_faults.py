"""A sweep whose worker is killed, whose driver is killed, which is asked to stop, and which ends at its limit.

One sweep, ended again and again, for each start of Ray takes seconds. The student waits in mid-trial until the test has
done what it wants to do.
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
"""Trials one after the other, judged and saved every fourth round."""


def hold(place: Path, trial: int) -> None:
    """The trial of that number is to wait; all others go on."""
    (place / "held").unlink(missing_ok=True)
    (place / "hold.new").write_text(str(trial))
    (place / "hold.new").replace(place / "hold")


def held(place: Path) -> int:
    """The process that waits; 0 while none does."""
    text = (place / "held").read_text() if (place / "held").exists() else ""
    return int(text or 0)


def end(process: int) -> None:
    """Kills a process, and never a group; one whose sweep was killed may have ended by itself."""
    assert process > 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def until(happened: Callable[[], object], alive: Callable[[], bool] = lambda: True) -> None:
    """Waits for something, looking often enough and without taking the processor from what is waited for."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert alive() and time.monotonic() < end
        time.sleep(0.05)


def entries(place: Path) -> list[dict[str, Any]]:
    file = place / "sweep" / "trials.json"
    found: list[dict[str, Any]] = json.loads(file.read_text())["trials"] if file.exists() else []
    return found


def is_noted(place: Path) -> bool:
    """Whether Ray's state on disk holds the second trial: else a new one would take its place."""
    (first,) = entries(place)
    names = {path.name for path in (place / "sweep" / "trials").iterdir()} - {first["id"]}
    states = [file.read_text() for file in (place / "sweep" / "ray").glob("experiment_state-*.json")]
    return any(name in text for name in names for text in states)


def statuses(place: Path) -> dict[str, list[str]]:
    """{name: [outcome, status]} of the sweep's MLflow run and of those below it; there are no others."""
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
    """What was seen on the way; the folder is as the last command left it."""

    place: Path
    first: dict[str, Any]
    """What the first trial came to, before the driver was killed."""
    kept: tuple[int, int]
    """When the first trial's result and the probe were written."""
    stopped: Said
    after_stop: tuple[list[dict[str, Any]], dict[str, list[str]]]
    """Entries and statuses after the signal."""
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
    end(held(place))  # a minute earlier than it would have noticed by itself
    (first,) = entries(place)
    files = (place / "sweep" / first["folder"] / "result.json", place / "sweep" / "probe" / "probe.safetensors")
    kept = (files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns)

    hold(place, 2)
    asking = threading.Thread(target=ask_to_stop, args=[place])
    asking.start()
    stopped = give(*SWEEP, "--resume", place=place)
    asking.join()
    after_stop = entries(place), statuses(place)

    (place / "hold").unlink()
    leave_running(place, first["folder"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # of something else, and nobody answers there
        ended = give(*SWEEP, "--resume", "--total-rounds", "70", place=place)
    assert (files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns) == kept
    return Story(place, first, kept, stopped, after_stop, ended)


def ask_to_stop(place: Path) -> None:
    """As soon as a worker waits."""
    until(lambda: held(place))
    os.kill(os.getpid(), signal.SIGTERM)


def leave_running(place: Path, folder: str) -> None:
    """What a process leaves that is killed between the end of its run and MLflow's word of it."""
    from mlflow import MlflowClient

    run_id = json.loads((place / "sweep" / folder / "mlflow.json").read_text())["run_id"]
    MlflowClient(f"sqlite:///{place}/mlflow.db").update_run(run_id, status="RUNNING")


def test_a_killed_workers_trial_goes_on_from_its_checkpoint(story: Story) -> None:
    assert (story.first["outcome"], story.first["round"]) == ("finished", 32)
    log = rows(story.place / "sweep" / story.first["folder"])
    judged = [row["round"] for row in log if "evaluation/probe_agreement" in row]
    assert judged == list(range(4, 33, 4)), "rounds that came again replaced those of before"


def test_a_signal_saves_the_state_and_settles_no_trial(story: Story) -> None:
    assert (story.stopped.code, story.stopped.out) == (130, "")
    last = f"stopped: the same command with --resume goes on in {story.place / 'sweep'}"
    assert story.stopped.err.splitlines() == [last]
    found, ends = story.after_stop
    assert found == [story.first]
    assert ends.pop("sweep") == ["", "KILLED"]
    assert ends.pop("default") == ["", "FINISHED"]
    assert sorted(ends.values()) == [["", "KILLED"], ["finished", "FINISHED"]]


def test_resume_keeps_what_was_finished_and_a_limit_ends_the_rest_with_a_report(story: Story) -> None:
    assert story.ended.code == 0, story.ended.err
    found = entries(story.place)
    assert found[0] == story.first
    assert [entry["outcome"] for entry in found] == ["finished", "finished", "stopped"]
    assert 70 - 2 * 32 <= found[2]["round"] < 32 and found[2]["objective"] is not None
    log = rows(story.place / "sweep" / found[1]["folder"])
    assert [row["round"] for row in log if "evaluation/probe_agreement" in row] == list(range(4, 33, 4))
    assert "of 70 rounds were played" in story.ended.out


def test_mlflow_says_of_every_run_how_it_ended_and_holds_the_best(story: Story) -> None:
    """One run each, however often begun; whatever server the environment names."""
    from mlflow import MlflowClient

    assert "MLflow" not in story.ended.err
    best = json.loads((story.place / "sweep" / "report.json").read_text())["best"]
    (version,) = MlflowClient(f"sqlite:///{story.place}/mlflow.db").search_model_versions("name='ddad-digits'")
    assert version.tags["trial"] == best["id"]
    ends = statuses(story.place)
    assert ends.pop("sweep") == ["", "FINISHED"]
    assert ends.pop("default") == ["", "FINISHED"]
    assert {name: end[0] for name, end in ends.items()} == {e["id"]: e["outcome"] for e in entries(story.place)}
    assert sorted(ends.values()) == [*[["finished", "FINISHED"]] * 2, ["stopped", "KILLED"]]
