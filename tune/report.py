"""What a sweep found, from its folder alone: report.md, trials.csv, parallel.png, best.yaml, report.json."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness import files
from harness.compare import plots
from harness.config import BOOKKEEPING, Config, build, to_dict
from harness.config.parse import merge
from harness.run import folder, metrics
from tune import journal, probe, trial
from tune.journal import Entry
from tune.plan import PROBE, Plan, budget, identity, oracle

MIN_CORRELATED = 4
"""Fewest trials a rank correlation is given for."""

QUESTION = (
    "Does the data-free objective rank as real data does? Spearman's rank correlation of the two over trials after "
    "equally many student updates:"
)

REPLAY = {
    "pbt": "# The weights are the schedule of the lineage of a population's best trial. This run is a re-run with it,\n"
    "# not a replay: the trial took over other trials' states on its way.\n"
}


def write(plan: Plan, base: Config) -> dict[str, Any]:
    """Writes the files and returns what report.json holds; `best` is None where no trial was ever judged."""
    entries = sorted(journal.entries(plan), key=_rank, reverse=True)
    best = _best(entries)
    found = {
        "schema": 1,
        "folder": str(plan.folder),
        "identity": identity(plan),
        "objective": plan.words,
        "trials": len(entries),
        "outcomes": {name: sum(e.outcome == name for e in entries) for name in journal.STATUS},
        "limit": journal.limit(plan),
        "best": dataclasses.asdict(best) if best else None,
        "default": _default(plan, base),
        "correlation": correlation(plan, base, entries),
        "probe_sha256": probe.load(plan.probe_file).sha256,
        "teacher": (folder.result(plan.default_folder) or {}).get("teacher"),
        "repetitions": repetitions(plan),
    }
    files.write(plan.folder / "report.md", "\n".join(_page(plan, base, entries, found)) + "\n")
    files.write(plan.folder / "trials.csv", _csv(plan, entries))
    files.write(plan.folder / "report.json", json.dumps(found, indent=1) + "\n")
    _draw(plan, entries, plan.folder / "parallel.png")
    if best:
        _write_best(plan, base, best)
    return found


def _rank(entry: Entry) -> tuple[bool, float]:
    """Finished trials first: one that was stopped early might have fallen behind yet."""
    return entry.outcome == "finished", -math.inf if entry.objective is None else entry.objective


def _best(entries: Sequence[Entry]) -> Entry | None:
    """The best of those that were played to the end; where none was, of those that were not."""
    judged = [entry for entry in entries if entry.outcome != "failed" and entry.objective is not None]
    return max(judged, key=_rank, default=None)


def _default(plan: Plan, base: Config) -> dict[str, float | None]:
    """The default run's figures: its student judged on the probe like a trial's."""
    values = trial.final_values(plan.default_folder)
    agreement = probe.judge(probe.load(plan.probe_file), base.batch_size)(trial.student(base, plan.default_folder))
    real = oracle(base)
    return {"agreement": agreement, "oracle": values.get(real) if real else None}


def correlation(plan: Plan, base: Config, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Spearman's rank correlation of probe agreement and real data, at each eighth of a run; nothing without data.

    Over trials that learned equally long: whoever learns longer is better in both, which would correlate by itself.
    """
    real = oracle(base)
    if real is None:
        return []
    points: dict[float, list[tuple[float, float]]] = {}
    for entry in entries:
        own: dict[float, tuple[float, float]] = {}  # a trial that went back has been there twice: the last counts
        for path in trial.run_folders(plan.trials_folder, entry.id):
            own |= dict(_judgements(path, real))
        for share, scores in own.items():
            points.setdefault(share, []).append(scores)
    return [
        {"share": share, "student_updates": round(share * budget(base)), "trials": len(pairs),
         "spearman": spearman([a for a, _ in pairs], [b for _, b in pairs])}
        for share, pairs in sorted(points.items())
        if len(pairs) >= MIN_CORRELATED
    ]  # fmt: skip


def _judgements(path: Path, real: str) -> Iterator[tuple[float, tuple[float, float]]]:
    """(share of the whole run in eighths, (probe agreement, real metric)) of every judgement in a run folder.

    Rows that a branch copied are judgements of another trial, in whose folder they count.
    """
    if not (path / "metrics.jsonl").exists():
        return
    config, _ = folder.read_config(path)
    copied = trial.first_round(path)
    for row in metrics.read(path / "metrics.jsonl"):
        if row["round"] > copied and row.get(PROBE) is not None and row.get(real) is not None:
            yield round(8 * row["round"] / config.rounds) / 8, (row[PROBE], row[real])


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; ties share their mean rank. None where one side does not vary."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def repetitions(plan: Plan) -> dict[str, dict[str, Any]]:
    """For `best` and `default`: mean, standard deviation and values over seeds, of both metrics."""
    found: dict[str, dict[str, list[float]]] = {}
    real = oracle(plan.base)
    for name, values in journal.repetitions(plan).items():
        kind = found.setdefault(name.partition("-")[0], {"agreement": [], "oracle": [], "failed": []})
        if "error" in values:
            kind["failed"].append(1.0)
            continue
        kind["agreement"].append(values[PROBE])
        if real:
            kind["oracle"].append(values[real])
    return {kind: {name: _spread(values) for name, values in scores.items()} for kind, scores in found.items()}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "n": len(values),
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def _columns(plan: Plan) -> tuple[str, str]:
    """Headings of the two scores: which one was maximised, and that real data is an oracle."""
    marks = (" (objective)", "") if plan.objective == "agreement" else ("", " (objective)")
    real = (oracle(plan.base) or "").removeprefix("evaluation/student_")
    return f"probe agreement{marks[0]}", f"oracle: {real}{marks[1]}" if real else ""


def _page(plan: Plan, base: Config, entries: Sequence[Entry], found: dict[str, Any]) -> Iterator[str]:
    yield f"# Sweep of {base.recipe}: {len(entries)} trials, {plan.searcher}, {plan.scheduler}"
    yield ""
    yield (
        f"Maximised: {plan.words}. A whole run has {budget(base)} student updates. "
        + (f"Ended early: {found['limit']}. " if found["limit"] else "")
        + "Trials: "
        + ", ".join(f"{count} {name}" for name, count in found["outcomes"].items() if count)
        + "."
    )
    yield ""
    yield from table(plan, entries, found)
    errors = [f"- `{entry.id}`: {entry.error}" for entry in entries if entry.error]
    yield from (["", "Failed:", "", *errors] if errors else [])
    if oracle(base):
        yield from ["", QUESTION, ""]
        yield from _correlations(found["correlation"])
    if found["repetitions"]:
        yield from ["", "Repeated over seeds (mean ± standard deviation):", ""]
        yield from _repeated(plan, found["repetitions"])


def table(plan: Plan, entries: Sequence[Entry], found: dict[str, Any]) -> list[str]:
    """The trials in markdown, the best first, the recipe's defaults above them."""
    agreement, real = _columns(plan)
    head = ["trial", "outcome", "updates", agreement, *([real] if real else []), *plan.space]
    default = found["default"]
    rows = [["defaults", "finished", str(budget(plan.base)), _percent(default["agreement"]),
             *([_percent(default["oracle"])] if real else []), *("" for _ in plan.space)]]  # fmt: skip
    for entry in entries:
        mark = " **best**" if found["best"] and entry.id == found["best"]["id"] else ""
        values = [_short(entry.sample.get(path)) for path in plan.space]
        rows.append([f"{entry.id}{mark}", entry.outcome, str(entry.student_updates), _percent(entry.agreement),
                     *([_percent(entry.oracle)] if real else []), *values])  # fmt: skip
    return _markdown(head, rows)


def _correlations(found: Sequence[dict[str, Any]]) -> list[str]:
    if not found:
        return [f"fewer than {MIN_CORRELATED} trials were judged at the same time."]
    words = ["one side does not vary" if row["spearman"] is None else f"{row['spearman']:+.2f}" for row in found]
    rows = [[str(row["student_updates"]), str(row["trials"]), word] for row, word in zip(found, words, strict=True)]
    return _markdown(["student updates", "trials", "Spearman"], rows)


def _repeated(plan: Plan, found: dict[str, dict[str, Any]]) -> list[str]:
    agreement, real = _columns(plan)
    rows = []
    for kind, scores in found.items():
        names = ["agreement", *(["oracle"] if real else [])]
        rows.append([kind, str(scores["agreement"]["n"]), *(_mean(scores[name]) for name in names),
                     str(scores["failed"]["n"])])  # fmt: skip
    return _markdown(["configuration", "seeds", agreement, *([real] if real else []), "failed"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _mean(spread: dict[str, Any]) -> str:
    return _percent(spread["mean"]) + (f" ± {100 * spread['std']:.2f}" if spread["std"] is not None else "")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def _draw(plan: Plan, entries: Sequence[Entry], path: Path) -> None:
    """Parallel coordinates of the trials that were judged, if any were."""
    judged = [entry for entry in entries if entry.objective is not None and entry.outcome != "failed"]
    headings = _columns(plan)
    values = [[entry.agreement for entry in judged], [entry.oracle for entry in judged]]
    scores = {
        f"{name}, %": [math.nan if value is None else 100 * value for value in column]
        for name, column in zip(headings, values, strict=True)
        if any(value is not None for value in column)
    }
    if plan.objective != "agreement":  # what was maximised comes first
        scores = dict(reversed(scores.items()))
    if judged:
        columns = {path: [entry.sample.get(path) for entry in judged] for path in plan.space}
        plots.draw_trials(columns, scores, [entry.outcome != "finished" for entry in judged], path)


def _csv(plan: Plan, entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Entry) if field.name != "sample"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *plan.space])
    for entry in entries:
        values = [getattr(entry, name) for name in names]
        writer.writerow([*values, *(entry.sample.get(path) for path in plan.space)])
    return text.getvalue()


def best_config(plan: Plan, base: Config, best: Entry) -> Config:
    """The best trial's configuration as a run by itself: what is not its result's business is the base's."""
    recorded, _ = folder.read_config(plan.folder / best.folder)
    kept = {name: value for name, value in to_dict(base).items() if name in BOOKKEEPING}
    return build(merge(to_dict(recorded), kept))


def _write_best(plan: Plan, base: Config, best: Entry) -> None:
    content = yaml.safe_dump(to_dict(best_config(plan, base, best)), sort_keys=False)
    score = f"{best.objective:.4f}" if best.objective is not None else "none"
    command = "ddad distill" if plan.workers == 1 else f"ddad launch --nproc {plan.workers}"
    head = (
        f"# The best of a sweep: trial {best.id} ({best.outcome}), {plan.words} {score}.\n"
        f"# {command} --config best.yaml\n{REPLAY.get(plan.scheduler, '')}"
    )
    files.write(plan.folder / "best.yaml", head + content)
