"""What a sweep found, computed from its records and run folders: the best trial, scores, correlations, spreads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.config import Config
from harness.run import folder as run_folder
from tune import probe, records, run_folders, trial
from tune.configs import student_updates
from tune.plan import NUM_EVALUATIONS, PROBE_METRIC, Plan, oracle_metric
from tune.records import TrialRecord

MIN_CORRELATED = 4
"""The smallest number of trials for a rank correlation."""


def rank_key(record: TrialRecord) -> tuple[bool, float]:
    """A sort key: finished trials come after the others, because the others might have become worse."""
    return record.outcome == "finished", -math.inf if record.objective is None else record.objective


def best(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the largest objective; if none has finished, the best of the others; None if none."""
    scored = [record for record in trials if record.outcome != "failed" and record.objective is not None]
    return max(scored, key=rank_key, default=None)


def default_scores(plan: Plan, base: Config) -> dict[str, float | None]:
    """The scores of the default run, whose student is evaluated on the probe like the student of a trial."""
    student = trial.student(base, plan.default_folder)
    scores = probe.scores(probe.load(plan.probe_file), student, base.batch_size)
    metric = oracle_metric(base)
    oracle = run_folders.final_values(plan.default_folder).get(metric) if metric else None
    objective = scores[plan.objective] if plan.data_free else oracle
    return {"objective": objective, "agreement": scores["agreement"], "oracle": oracle}


def correlations(plan: Plan, base: Config, trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the data-free objective and the metric on real data, one for each evaluation.

    None without data. With an oracle as the objective, that of the agreement on the probe. Only trials with as many
    student updates are compared: both scores grow during a run, so that trials of different length would correlate for
    that reason alone.
    """
    metric = oracle_metric(base)
    if metric is None:
        return []
    points: dict[float, list[tuple[float, float]]] = {}
    for record in trials:
        own: dict[float, tuple[float, float]] = {}  # one point for each trial: of a trial that went back, the last one
        for path in run_folders.find(plan.trials_folder, record.id):
            own |= dict(_evaluations(path, plan.metric if plan.data_free else PROBE_METRIC, metric))
        for share, scores in own.items():
            points.setdefault(share, []).append(scores)
    return [
        {"share": share, "student_updates": round(share * student_updates(base)), "trials": len(pairs),
         "spearman": spearman([a for a, _ in pairs], [b for _, b in pairs])}
        for share, pairs in sorted(points.items())
        if len(pairs) >= MIN_CORRELATED
    ]  # fmt: skip


def _evaluations(path: Path, objective: str, metric: str) -> Iterator[tuple[float, tuple[float, float]]]:
    """(share of the whole run, (objective on the probe, metric on real data)) of each evaluation in a run folder.

    The share is rounded to an eighth. Rows that a branch copied are left out: they belong to another trial.
    """
    rows = run_folders.rows(path)
    if not rows:
        return
    config, _ = run_folder.read_config(path)
    copied = run_folders.first_round(path)
    for row in rows:
        if row["round"] > copied and row.get(objective) is not None and row.get(metric) is not None:
            share = round(NUM_EVALUATIONS * row["round"] / config.rounds) / NUM_EVALUATIONS
            yield share, (row[objective], row[metric])


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The rank correlation, ties with their mean rank; None if all values of one side are equal."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def repetitions(plan: Plan) -> dict[str, dict[str, Any]]:
    """For `best` and `default`: mean, standard deviation and values of each score over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    metric = oracle_metric(plan.base)
    for name, values in records.repetitions(plan).items():
        lists: dict[str, list[float]] = {"objective": [], "agreement": [], "oracle": [], "failed": []}
        scores = found.setdefault(name.partition("-")[0], lists)
        if "error" in values:
            scores["failed"].append(1.0)
            continue
        scores["objective"].append(values[plan.metric])
        scores["agreement"].append(values[PROBE_METRIC])
        if metric:
            scores["oracle"].append(values[metric])
    return {kind: {name: _spread(values) for name, values in scores.items()} for kind, scores in found.items()}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "n": len(values),
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }
