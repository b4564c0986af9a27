"""What became of the trials, and the state of the sweep: trials.json in the sweep's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import files
from harness.config import flat
from harness.run import folder as run_folder
from tune import limits, mlflow_runs, run_folders, trial
from tune.plan import Plan

Echo = Callable[[str], None]
"""Prints a line for the user."""

OUTCOMES = ("finished", "failed", "pruned", "stopped")
"""`pruned`: ended by the scheduler. `stopped`: ended by a limit of the sweep."""

LOST = "the sweep was killed before Ray Tune saved this trial; after --resume another trial ran instead of it"
"""The error of a trial that Ray Tune does not know, if it did not finish."""


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """A trial that has ended."""

    id: str
    folder: str
    """Its run folder, relative to the sweep's folder."""
    sample: dict[str, Any]
    """{dotted path: value}."""
    outcome: str
    """One of OUTCOMES."""
    error: str | None
    """Why it failed."""
    objective: float | None
    """At its last evaluation; None if there was none."""
    agreement: float | None
    """As `objective`: the agreement on the probe."""
    oracle: float | None
    """As `objective`: the metric on real data."""
    student_updates: int
    """Updates of the student, up to the end of the trial."""
    round: int


def trials(plan: Plan) -> list[TrialRecord]:
    """The trials that have ended, in order of their end."""
    return [TrialRecord(**row) for row in _read(plan)["trials"]]


def search_ended(plan: Plan) -> bool:
    """Whether the search is over: all trials have ended, or a limit was reached."""
    return bool(_read(plan)["ended"])


def limit(plan: Plan) -> str | None:
    """Which limit ended the search early, in words; None if all trials were run."""
    text: str | None = _read(plan)["limit"]
    return text


def record_end(plan: Plan, limit_text: str | None) -> None:
    """Records that the search is over. `limit_text` says which limit was reached.

    It is kept only if the limit prevented something: the last trial may reach the limit with its last round.
    """
    asked_for = _asked_for(trials(plan))
    early = len(asked_for) < plan.trials or any(one.outcome == "stopped" for one in asked_for)
    _write(plan, {**_read(plan), "ended": True, "limit": limit_text if early else None})


def _asked_for(found: list[TrialRecord]) -> list[TrialRecord]:
    """The trials that count among `--trials`: another trial ran instead of a lost one."""
    return [one for one in found if one.error != LOST]


def repetitions(plan: Plan) -> dict[str, dict[str, Any]]:
    """{name of a run folder: its final values} of the repetitions over seeds."""
    return dict(_read(plan)["repetitions"])


def record_repetitions(plan: Plan, paths: list[Path], values: list[dict[str, Any]]) -> None:
    """Adds the final values of repetitions, by the names of their run folders."""
    found = repetitions(plan) | {path.name: value for path, value in zip(paths, values, strict=True)}
    _write(plan, {**_read(plan), "repetitions": found})


def _read(plan: Plan) -> dict[str, Any]:
    file = plan.folder / "trials.json"
    empty: dict[str, Any] = {"ended": False, "limit": None, "trials": [], "repetitions": {}}
    return empty | (json.loads(file.read_text()) if file.exists() else {})


def _write(plan: Plan, content: dict[str, Any]) -> None:
    files.write(plan.folder / "trials.json", json.dumps(content, indent=1) + "\n")


def add(plan: Plan, record: TrialRecord, echo: Echo) -> None:
    """Records a trial that has ended, in trials.json and in MLflow, and prints a line about it."""
    mlflow_runs.end_trial(plan, plan.folder / record.folder, record.outcome, record.error, echo)
    content = _read(plan)
    _write(plan, {**content, "trials": [*content["trials"], dataclasses.asdict(record)]})
    score = f"{record.objective:.4f}" if record.objective is not None else "no objective"
    number = f"trial {len(_asked_for(trials(plan)))} of {plan.trials}" if _asked_for([record]) else "lost trial"
    echo(f"{number}, {record.id}: {record.outcome} after {record.student_updates} student updates, {score}"
         + (f" ({record.error})" if record.error else ""))  # fmt: skip


def from_result(
    plan: Plan, trial_id: str, sample: dict[str, Any], result: dict[str, Any], error: str | None
) -> TrialRecord:
    """The record of a trial that Ray Tune has ended, from its last result and the error of its worker."""
    outcome = "failed" if error else result.get("outcome")
    if outcome is None:
        outcome = "stopped" if limits.reached(plan.folder) else "pruned"
    path = Path(result.get("folder", plan.trials_folder / trial_id))
    return TrialRecord(
        trial_id, str(path.relative_to(plan.folder)), sample, outcome, error or result.get("error"),
        result.get("objective"), result.get("agreement"), result.get("oracle"),
        result.get("student_updates", 0), result.get("round", 0),
    )  # fmt: skip


def add_lost_trials(plan: Plan, echo: Echo) -> None:
    """Records, from their run folders, the trials that Ray Tune does not know.

    They started after Ray Tune had saved its state for the last time, before the sweep was killed. Some may have
    finished.
    """
    known = {one.id for one in trials(plan)}
    paths: dict[str, list[Path]] = {}
    for path in run_folders.find(plan.trials_folder):
        if (path / "config.yaml").exists():
            paths.setdefault(run_folders.id_of(path), []).append(path)
    for trial_id, found in sorted(paths.items()):
        if trial_id not in known:
            add(plan, _from_folder(plan, trial_id, max(found, key=run_folders.last_round)), echo)


def _from_folder(plan: Plan, trial_id: str, path: Path) -> TrialRecord:
    config, _ = run_folder.read_config(path)
    values = flat(config)
    sample = {name: value[-1][1] if isinstance(value := values[name], list) else value for name in plan.space}
    last = trial.last_result(plan, config, path)
    finished = run_folder.result(path) is not None
    return TrialRecord(
        trial_id, str(path.relative_to(plan.folder)), sample, "finished" if finished else "stopped",
        None if finished else LOST, last.objective if last else None, last.agreement if last else None,
        last.oracle if last else None, last.student_updates if last else 0, last.round if last else 0,
    )  # fmt: skip
