"""Sweeps that are interrupted: a killed driver, a killed worker, a signal, a limit; and a population of trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness import resolve
from tests import helpers
from tests.end_to_end.conftest import CPU, copy_teacher, rows, started, wait

PATIENCE = 1500.0
"""Seconds a sweep may take before it counts as hung: Ray starts several processes, and others may use the machine."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]

TINY = ("rounds=16", "batch_size=32", "student.network=cnn4", "generator.width=8", "pictures=false",
        "tracking.uri=sqlite:///mlflow.db")  # fmt: skip

SWEEP = ("sweep", "digits", "--output", "sweep", "--scheduler", "none")


def run_ddad(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`ddad WORDS` as a process, to its end."""
    return helpers.run_ddad(*words, cwd=cwd, env=CPU, timeout=PATIENCE)


@pytest.fixture
def place(tmp_path: Path, taught: tuple[Path, object]) -> Path:
    """A folder with the digits teacher."""
    copy_teacher(taught[0], tmp_path)
    return tmp_path


def entries(place: Path) -> list[dict[str, Any]]:
    file = place / "sweep" / "trials.json"
    found: list[dict[str, Any]] = json.loads(file.read_text())["trials"] if file.exists() else []
    return found


def children(place: Path) -> dict[str, list[str]]:
    """{folder: [outcome, status]} of the trials' runs in MLflow; every one hangs below the sweep's own."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    parent = json.loads((place / "sweep" / "mlflow.json").read_text())["run_id"]
    (experiment,) = client.search_experiments(filter_string="name = 'ddad'")
    runs = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(client.search_runs([experiment.experiment_id])) == len(runs) + 1, "one parent, however often begun"
    return {run.info.run_name: [run.data.tags.get("outcome", ""), run.info.status] for run in runs}


def holder(lock: Path) -> int:
    """The process that holds a lock file; 0 where none does."""
    inode = f":{lock.stat().st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "->" not in fields and fields[5].endswith(inode):
            return int(fields[4])
    return 0


def test_a_killed_driver_resumes_and_keeps_what_was_finished(place: Path) -> None:
    command = (*SWEEP, "--trials", "3", "--parallel", "1", *TINY)
    with started(*command, cwd=place) as process:
        wait(process, lambda: len(entries(place)) == 1, PATIENCE)
        os.kill(process.pid, signal.SIGKILL)
    (first,) = entries(place)
    assert first["outcome"] == "finished"
    kept = place / "sweep" / first["folder"] / "result.json"
    before, probe = kept.stat().st_mtime_ns, (place / "sweep/probe/probe.safetensors").stat().st_mtime_ns
    done = run_ddad(*command, "--resume", cwd=place)
    assert done.returncode == 0, done.stderr
    outcomes = [entry["outcome"] for entry in entries(place)]
    assert outcomes[:3] == ["finished"] * 3
    assert outcomes[3:] in ([], ["stopped"]), "at most the one that Ray had not noted yet"
    assert entries(place)[0] == first
    assert kept.stat().st_mtime_ns == before
    assert (place / "sweep/probe/probe.safetensors").stat().st_mtime_ns == probe
    found = children(place)
    assert found.pop("default")[1] == "FINISHED"
    assert sorted(found.values()) == [["finished", "FINISHED"]] * 3 + [["stopped", "KILLED"]] * (len(outcomes) - 3)


def test_a_killed_workers_trial_goes_on_from_its_checkpoint(place: Path) -> None:
    command = (*SWEEP, "--trials", "1", *TINY, "rounds=64")
    killed: list[int] = []

    def is_under_way() -> bool:
        locks = list((place / "sweep" / "trials").glob("*/.lock"))
        if locks and any(row["round"] >= 16 for row in rows(locks[0].parent)) and (pid := holder(locks[0])):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return bool(killed)

    with started(*command, cwd=place) as process:
        wait(process, is_under_way, PATIENCE)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    (entry,) = entries(place)
    assert (entry["outcome"], entry["round"]) == ("finished", 64)
    log = rows(place / "sweep" / entry["folder"])
    speeds = [row["round"] for row in log if "rounds_per_second" in row]
    assert speeds == sorted(set(speeds)), "rounds that came again replaced those of before"
    assert children(place)[Path(entry["folder"]).name] == ["finished", "FINISHED"]


def test_a_signal_saves_the_state_and_resume_goes_on(place: Path) -> None:
    command = (*SWEEP, "--trials", "2", "--parallel", "1", *TINY)
    with started(*command, cwd=place) as process:
        wait(process, lambda: len(entries(place)) == 1, PATIENCE)
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out == ""
    assert errors.splitlines()[-1] == f"stopped: the same command with --resume goes on in {place / 'sweep'}"
    assert "Traceback" not in errors
    assert len(entries(place)) == 1
    done = run_ddad(*command, "--resume", cwd=place)
    assert done.returncode == 0, done.stderr
    assert [entry["outcome"] for entry in entries(place)] == ["finished"] * 2


def test_a_limit_of_rounds_ends_the_sweep_with_a_report(place: Path) -> None:
    done = run_ddad(*SWEEP, "--trials", "9", "--parallel", "1", "--total-rounds", "20", *TINY, cwd=place)
    assert done.returncode == 0, done.stderr
    outcomes = [entry["outcome"] for entry in entries(place)]
    assert outcomes[:2] == ["finished", "stopped"] and "finished" not in outcomes[1:]
    assert "of 20 rounds were played" in done.stdout
    assert ["stopped", "KILLED"] in children(place).values()


def test_a_population_ends_with_the_schedule_of_its_best(place: Path) -> None:
    (place / "weights.yaml").write_text("weights.adversarial: {log_uniform: [0.1, 10]}\n")
    done = run_ddad(
        "sweep", "digits", "--output", "sweep", "--scheduler", "pbt", "--space", "weights.yaml", "--trials", "4",
        *TINY, cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [entry["outcome"] for entry in entries(place)] == ["finished"] * 4
    branches = sorted((place / "sweep" / "trials").glob("*-*"))
    assert branches, "somebody took over another's state"
    taken, _ = resolve_folder(branches[-1])
    assert len(taken) >= 2 and taken[0][0] == 0
    assert all(0.1 <= value <= 10 for _, value in taken)
    text = (place / "sweep" / "best.yaml").read_text()
    assert "a re-run with it" in text and "not a replay" in text
    best = json.loads((place / "sweep" / "report.json").read_text())["best"]
    config = resolve.resolve(None, resolve.read_file(place / "sweep" / "best.yaml"))
    recorded, _ = resolve_folder(place / "sweep" / best["folder"])
    assert config.weights.adversarial == recorded
    assert len(children(place)) == 5, "one run a trial, whatever it took over, and the defaults'"


def resolve_folder(path: Path) -> tuple[Any, Any]:
    """The adversarial weight in a run folder's configuration, and the configuration."""
    config = resolve.resolve(None, resolve.read_file(path / "config.yaml"))
    return config.weights.adversarial, config
