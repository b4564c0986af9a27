"""The report of a sweep, from its folder: report.md, report.json, trials.csv, parallel.png, best.yaml."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness import files
from harness.compare import plots
from harness.compare.markdown import pipe_table
from harness.config import Config, to_dict
from harness.run import folder as run_folder
from tune import analysis, configs, probe, records
from tune.analysis import MIN_CORRELATED
from tune.configs import student_updates
from tune.plan import Plan, identity, oracle_metric
from tune.records import TrialRecord

CORRELATION = (
    "Spearman's rank correlation of the data-free objective and the metric on real data, over the trials after the "
    "same number of student updates. It says how far the objective orders trials as real data would:"
)

SCHEDULES = {
    "pbt": "# The weights are the schedules of the best trial of a population. A run of this file is not a replay of\n"
    "# that trial, which continued from checkpoints of other trials.\n"
}
"""The comment in best.yaml, by scheduler."""


def write(plan: Plan, base: Config) -> dict[str, Any]:
    """Writes the files and returns the content of report.json; `best` is None if no trial was evaluated."""
    trials = sorted(records.trials(plan), key=analysis.rank_key, reverse=True)
    best = analysis.best(trials)
    content = {
        "schema": 1,
        "folder": str(plan.folder),
        "identity": identity(plan),
        "objective": plan.objective_text,
        "probe_images": plan.probe_images,
        "trials": len(trials),
        "outcomes": {name: sum(record.outcome == name for record in trials) for name in records.OUTCOMES},
        "limit": records.limit(plan),
        "best": dataclasses.asdict(best) if best else None,
        "default": analysis.default_scores(plan, base),
        "correlation": analysis.correlations(plan, base, trials),
        "probe_sha256": probe.load(plan.probe_file).sha256,
        "teacher": (run_folder.result(plan.default_folder) or {}).get("teacher"),
        "repetitions": analysis.repetitions(plan),
    }
    files.write(plan.folder / "report.md", "\n".join(_page(plan, base, trials, content)) + "\n")
    files.write(plan.folder / "trials.csv", _csv(plan, trials))
    files.write(plan.folder / "report.json", json.dumps(content, indent=1) + "\n")
    _draw(plan, trials, plan.folder / "parallel.png")
    if best:
        _write_best(plan, base, best)
    return content


def _headings(plan: Plan) -> dict[str, str]:
    """{field of a record: heading} of the scores, with a mark at the objective; `oracle` only with data."""
    metric = (oracle_metric(plan.base) or "").removeprefix("evaluation/student_")
    found = {"agreement": "probe agreement"} | ({"oracle": f"oracle: {metric}"} if metric else {})
    own = "oracle" if not plan.data_free else "agreement" if plan.objective == "agreement" else "objective"
    found = ({"objective": f"probe {plan.objective}"} if own == "objective" else {}) | found
    return found | {own: f"{found[own]} (objective)"}


def _page(plan: Plan, base: Config, trials: Sequence[TrialRecord], content: dict[str, Any]) -> Iterator[str]:
    yield f"# Sweep of {base.recipe}: {len(trials)} trials, {plan.searcher}, {plan.scheduler}"
    yield ""
    yield (
        f"Maximised: {plan.objective_text}. A whole run has {student_updates(base)} student updates. "
        + (f"Ended early: {content['limit']}. " if content["limit"] else "")
        + "Trials: "
        + ", ".join(f"{count} {name}" for name, count in content["outcomes"].items() if count)
        + "."
    )
    yield ""
    yield from _trials_table(plan, trials, content)
    errors = [f"- `{record.id}`: {record.error}" for record in trials if record.error]
    yield from (["", "Errors:", "", *errors] if errors else [])
    if oracle_metric(base):
        yield from ["", CORRELATION, ""]
        yield from _correlations_table(content["correlation"])
    if content["repetitions"]:
        yield from ["", "Repeated over seeds (mean ± standard deviation):", ""]
        yield from _repetitions_table(plan, content["repetitions"])


def _trials_table(plan: Plan, trials: Sequence[TrialRecord], content: dict[str, Any]) -> list[str]:
    """The default run and below it the trials, the best first."""
    headings, default = _headings(plan), content["default"]
    head = ["trial", "outcome", "updates", *headings.values(), *plan.space]
    rows = [["defaults", "finished", str(student_updates(plan.base)), *(_percent(default[name]) for name in headings),
             *("" for _ in plan.space)]]  # fmt: skip
    for record in trials:
        mark = " **best**" if content["best"] and record.id == content["best"]["id"] else ""
        values = [_short(record.sample.get(path)) for path in plan.space]
        scores = [_percent(getattr(record, name)) for name in headings]
        rows.append([f"{record.id}{mark}", record.outcome, str(record.student_updates), *scores, *values])
    return pipe_table(head, rows, num_text=2)


def _correlations_table(found: Sequence[dict[str, Any]]) -> list[str]:
    if not found:
        return [f"fewer than {MIN_CORRELATED} trials were evaluated after the same number of updates."]
    texts = ["all values are equal" if row["spearman"] is None else f"{row['spearman']:+.2f}" for row in found]
    rows = [[str(row["student_updates"]), str(row["trials"]), text] for row, text in zip(found, texts, strict=True)]
    return pipe_table(["student updates", "trials", "Spearman"], rows, num_text=0)


def _repetitions_table(plan: Plan, found: dict[str, dict[str, Any]]) -> list[str]:
    headings = _headings(plan)
    rows = [
        [kind, str(scores["agreement"]["n"]), *(_mean(scores[name]) for name in headings), str(scores["failed"]["n"])]
        for kind, scores in found.items()
    ]
    return pipe_table(["configuration", "seeds", *headings.values(), "failed"], rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _mean(spread: dict[str, Any]) -> str:
    return _percent(spread["mean"]) + (f" ± {100 * spread['std']:.2f}" if spread["std"] is not None else "")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def _draw(plan: Plan, trials: Sequence[TrialRecord], path: Path) -> None:
    """Draws the evaluated trials as parallel coordinates; nothing if there are none."""
    scored = [record for record in trials if record.objective is not None and record.outcome != "failed"]
    columns = {heading: [getattr(record, name) for record in scored] for name, heading in _headings(plan).items()}
    scores = {
        f"{heading}, %": [math.nan if value is None else 100 * value for value in column]
        for heading, column in columns.items()
        if any(value is not None for value in column)
    }
    if not plan.data_free:  # the first score gives the colours: the objective
        scores = dict(reversed(scores.items()))
    if scored:
        samples = {path: [record.sample.get(path) for record in scored] for path in plan.space}
        plots.draw_trials(samples, scores, [record.outcome != "finished" for record in scored], path)


def _csv(plan: Plan, trials: Sequence[TrialRecord]) -> str:
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(TrialRecord) if field.name != "sample"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *plan.space])
    for record in trials:
        values = [getattr(record, name) for name in names]
        writer.writerow([*values, *(record.sample.get(path) for path in plan.space)])
    return text.getvalue()


def _write_best(plan: Plan, base: Config, best: TrialRecord) -> None:
    config = configs.of_best(plan, base, plan.folder / best.folder)
    score = f"{best.objective:.4f}" if best.objective is not None else "none"
    command = "ddad distill" if plan.num_processes == 1 else f"ddad launch --nproc {plan.num_processes}"
    head = (
        f"# The best of a sweep: trial {best.id} ({best.outcome}), {plan.objective_text} {score}.\n"
        f"# {command} --config best.yaml\n{SCHEDULES.get(plan.scheduler, '')}"
    )
    files.write(plan.folder / "best.yaml", head + yaml.safe_dump(to_dict(config), sort_keys=False))
