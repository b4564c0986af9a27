"""Runs to compare, read from run folders, sweeps and MLflow."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import config as config_module
from harness import methods, tracking
from harness import task as tasks
from harness.config import UNTRAINED
from harness.errors import UserError
from harness.run import folder, metrics

MLFLOW = "mlflow:"
"""The prefix of an MLflow experiment's name, where a folder can be given too."""

UNFINISHED, NO_TEACHER, TEACHING = "not finished", "of an untrained teacher", "the training of a teacher"
"""Why a run is excluded from an experiment or a sweep; the first two are errors for a run that the user names."""

REFUSALS = {
    UNFINISHED: "is not finished: the command that began it goes on from where it stopped; or leave it out",
    NO_TEACHER: "has an untrained teacher: its figures mean nothing, leave it out",
}

EVALUATION = "evaluation/"
"""What the names of evaluations in a run's metrics begin with."""

AGREEMENT, GENERATED = "agreement", "agreement on generated"
TEACHER, SECONDS = "teacher", "seconds"
"""Names of a run's scores, beside those of its task's metrics of the student."""


@dataclass(frozen=True)
class Run:
    """A run to compare."""

    name: str
    """The run folder; from MLflow, the name of that folder, or of the run where others logged it."""
    config: dict[str, Any]
    """The fields that determine the result, by dotted path; those that are null are left out."""
    scores: dict[str, float] = field(default_factory=dict)
    """Final scores by name: the task's reported metrics of the student, the names above, and a sweep's objective. Of a
    run that did not finish, those of its last evaluation."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Evaluations in order of rounds: "round", "seconds", and the scores by the names above."""
    excluded: str | None = None
    """Why it is excluded, one of the above; for a sweep's trial that did not finish, its outcome; None: it is not."""
    sweep: str | None = None
    """The sweep of which it is a trial."""

    @property
    def seed(self) -> int:
        """The run's own seed; the teacher's is in the configuration."""
        return int(self.config["seed"])

    @property
    def key(self) -> str:
        """Equal for runs that differ only in their seeds."""
        return json.dumps({path: value for path, value in self.config.items() if path != "seed"}, sort_keys=True)


@dataclass(frozen=True)
class Objective:
    """What a sweep maximised."""

    score: str
    """One of its trials' scores."""
    text: str
    """Its description for people, which says whether it needed real data."""


def read(sources: Sequence[str], uri: str, warn: Callable[[str], None]) -> tuple[list[Run], Objective | None]:
    """Every run that the sources name, and the objective of the sweep among them.

    A source is a run folder, a sweep folder, or `mlflow:EXPERIMENT` in the store at `uri`. What cannot be compared is
    refused with a UserError where it was named by itself; of sweeps and experiments it is left out, and `warn` told.
    """
    experiments = [source.removeprefix(MLFLOW) for source in sources if source.startswith(MLFLOW)]
    if 0 < len(experiments) < len(sources):
        raise UserError(f"{MLFLOW}{experiments[0]} was given with folders: compare either, for runs are in both")
    runs: list[Run] = []
    objectives: set[Objective] = set()
    for source in dict.fromkeys(sources):
        path = Path(source)
        if experiments:
            found, objective = of_experiment(source.removeprefix(MLFLOW), uri)
        elif is_sweep(path):
            found, objective = of_sweep(path)
        else:
            run = of_folder(path)
            if run.excluded:
                raise UserError(f"{path} {REFUSALS[run.excluded]}")
            runs.append(run)
            continue
        _report_excluded(source, found, warn)
        runs += found
        objectives |= {objective} if objective else set()
    return runs, _only_objective(objectives)


def of_folder(path: Path, sweep: str | None = None) -> Run:
    """A run from its folder; UserError where it is none."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; expected a run, a sweep or {MLFLOW}EXPERIMENT")
    config, records = folder.read_config(path)
    flat = _result_fields(config_module.flat(config))
    for name, record in records.items():
        flat[name] = _by_content(flat[name], record["sha256"])
    if config.teacher.checkpoint == UNTRAINED and methods.find(config.method, config.variant)[0].has_teacher:
        return Run(str(path), flat, excluded=NO_TEACHER, sweep=sweep)
    result = folder.result(path)
    if result is None and sweep is None:
        return Run(str(path), flat, excluded=UNFINISHED)
    curve = _evaluations(metrics.read(path / "metrics.jsonl"), config.data.name)
    last = {name: value for name, value in curve[-1].items() if name not in ("round", "seconds")} if curve else {}
    if result is None:
        return Run(str(path), flat, last, curve, UNFINISHED, sweep)
    task = tasks.load(config.task)
    try:
        scores = {name: result["student"][name] for name in task.reported_metrics}
        scores[AGREEMENT if result["agreement_on"] == "test" else GENERATED] = result["agreement"]
        scores |= {TEACHER: (result["teacher"] or {}).get(task.primary_metric), SECONDS: result["wall_seconds"]}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path / 'result.json'} is not the result of a run of {config.task}: leave it out") from None
    final = {name: value for name, value in scores.items() if value is not None}
    return Run(str(path), flat, last | final, curve, sweep=sweep)


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (path / "sweep.json").exists()


def of_sweep(path: Path) -> tuple[list[Run], Objective]:
    """The trials of a sweep folder that have ended, and what the sweep maximised."""
    try:
        content = json.loads((path / "sweep.json").read_text())
        objective = Objective(_score_name(content["metric"]), content["objective_in_words"])
        file = path / "trials.json"
        trials = json.loads(file.read_text())["trials"] if file.exists() else []
        outcomes = {path / trial["folder"]: trial["outcome"] for trial in trials}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is no readable sweep (sweep.json, trials.json): name its run folders") from None
    runs = [of_folder(trial, str(path)) for trial in outcomes if (trial / "config.yaml").exists()]
    unfinished = {run.name: outcomes[Path(run.name)] for run in runs if run.excluded == UNFINISHED}
    return [dataclasses.replace(run, excluded=unfinished.get(run.name, run.excluded)) for run in runs], objective


def of_experiment(name: str, uri: str) -> tuple[list[Run], Objective | None]:
    """The runs of an MLflow experiment, oldest first, and what a sweep in it maximised.

    What others logged there is passed over. UserError where there are sweeps of different objectives.
    """
    records = tracking.read_runs(uri, name)
    sweeps = [record for record in records if record.tags.get("kind") == "sweep"]
    objectives = {
        Objective(
            f"{'probe_' * (record.tags['data_free_objective'] == 'true')}{record.params['objective']}",
            record.tags["objective"],
        )
        for record in sweeps
        if "objective" in record.params  # a sweep that has just begun has none yet
    }
    ours = [record for record in records if record.params.get("method") in methods.METHODS and record not in sweeps]
    return [_of_record(record) for record in ours], _only_objective(objectives)


def _only_objective(objectives: set[Objective]) -> Objective | None:
    if len(objectives) > 1:
        texts = ", ".join(sorted(objective.text for objective in objectives))
        raise UserError(f"sweeps of different objectives ({texts}): compare those of one")
    return next(iter(objectives), None)


def _by_content(file: str, sha256: str) -> str:
    """A file's name and the start of its SHA-256: the same file is the same wherever it lies."""
    return f"{Path(file).name} ({sha256[:8]})"


def _of_record(record: tracking.RunRecord) -> Run:
    """A run from MLflow, which holds no seconds: they are rounds over rounds per second, as of each evaluation."""
    defaults = config_module.flat(config_module.Config())
    found = {path: _value(text) for path, text in record.params.items()}
    copied = _value(record.tags.get("weights", "{}"))  # of a trial that went on with another's weights
    found |= {f"weights.{name}": weight for name, weight in copied.items()} if isinstance(copied, dict) else {}
    flat = _result_fields(defaults | found)
    for name in list(flat):
        if digest := record.tags.get(f"{name}.sha256"):
            flat[name] = _by_content(flat[name], digest)
    excluded = None
    if not methods.METHODS[flat["method"]].has_teacher:
        excluded = TEACHING
    elif flat["teacher.checkpoint"] == UNTRAINED:
        excluded = NO_TEACHER
    elif record.status != "FINISHED":
        excluded = record.tags.get("outcome", UNFINISHED)
    speeds = dict(record.metrics.get("rounds_per_second", []))
    rows: dict[int, dict[str, Any]] = {step: {"round": step, "seconds": step / speed} for step, speed in speeds.items()}
    for metric, points in record.metrics.items():
        for step, value in points:
            if step in rows:
                rows[step][metric] = value
    curve = _evaluations(rows.values(), flat["data.name"])
    last = {name: value for name, value in curve[-1].items() if name != "round"} if curve else {}
    is_trial = "outcome" in record.tags  # a sweep's repetitions over seeds are children too, without an outcome
    parent = record.tags.get("mlflow.parentRunId") if is_trial else None
    return Run(record.tags.get("folder", record.name), flat, last, curve, excluded, parent)


def _evaluations(rows: Iterable[Mapping[str, Any]], data: str) -> list[dict[str, float]]:
    """The rows of metrics that hold an evaluation, under the names of a run's scores."""
    found = []
    for row in rows:
        scores = {}
        for name, value in row.items():
            if name.startswith(EVALUATION) and value is not None:
                what = _score_name(name)
                scores[GENERATED if what == AGREEMENT and data == "none" else what] = value
        if scores:
            found.append({"round": row["round"], "seconds": row["seconds"], **scores})
    return found


def _score_name(metric: str) -> str:
    """A metric of metrics.jsonl under the name that a run's scores have it by."""
    return metric.removeprefix(EVALUATION).removeprefix("student_")


def _result_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    given = {path: value for path, value in flat.items() if value is not None or ".arguments." in path}
    # The number of processes counts where each normalises by its own part of a batch.
    kept = () if flat["sync_batch_norm"] else ("distributed.world_size",)
    return {path: value for path, value in given.items() if path in kept or not config_module.is_bookkeeping(path)}


def _value(text: str) -> Any:
    """What MLflow holds as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _report_excluded(source: str, runs: Sequence[Run], warn: Callable[[str], None]) -> None:
    """Says how many runs are left out and why; UserError where none is left."""
    counts = Counter(run.excluded for run in runs if run.excluded)
    reasons = ", ".join(f"{count} {excluded}" for excluded, count in counts.items())
    if not runs or counts.total() == len(runs):
        raise UserError(f"{source} has no run to compare ({reasons or 'it is empty'}): finish one, or name another")
    if counts:
        warn(f"{source}: {counts.total()} of {len(runs)} runs are left out ({reasons})")
