"""What became of the trials: trials.json in the sweep's folder, and their runs in MLflow under the sweep's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import files, tracking
from harness.config import Config, build, flat, to_dict
from harness.config.parse import merge
from harness.run import folder
from harness.tracking import Experiment, Status
from tune import limits, probe, spaces, trial
from tune.plan import Plan

Say = Callable[[str], None]

STATUS: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "pruned": "KILLED", "stopped": "KILLED"}
"""MLflow's word for what became of a trial; it has none for one that a scheduler ended: the tag `outcome` has."""

LOST = "the sweep was killed before Ray had noted this trial: another took its place"
"""The error of one that was not played to the end."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What became of a trial."""

    id: str
    folder: str
    """Its run folder, from the sweep's."""
    sample: dict[str, Any]
    outcome: str
    """`finished`; `pruned` by the scheduler; `stopped` where the sweep's time was over; `failed`, with its error."""
    error: str | None
    objective: float | None
    """At its last judgement; None where there was none."""
    agreement: float | None
    oracle: float | None
    student_updates: int
    round: int


def entries(plan: Plan) -> list[Entry]:
    """The trials that have ended, in the order in which they did."""
    return [Entry(**row) for row in _read(plan)["trials"]]


def ended(plan: Plan) -> bool:
    """Whether the search is over."""
    return bool(_read(plan)["ended"])


def limit(plan: Plan) -> str | None:
    """Which limit ended the search, in words; None where all trials were made."""
    words: str | None = _read(plan)["limit"]
    return words


def note_end(plan: Plan, words: str | None) -> None:
    """The search is over; `words` name the limit that was reached, and are kept where it left something undone."""
    made = _planned(entries(plan))
    early = len(made) < plan.trials or any(one.outcome == "stopped" for one in made)
    _write(plan, {**_read(plan), "ended": True, "limit": words if early else None})


def _planned(found: list[Entry]) -> list[Entry]:
    """The trials among the `--trials` that were asked for: a lost one was replaced by another."""
    return [one for one in found if one.error != LOST]


def repetitions(plan: Plan) -> dict[str, dict[str, Any]]:
    """{name of a run folder: its final values} of what was repeated over seeds."""
    return dict(_read(plan)["repetitions"])


def note_repetitions(plan: Plan, paths: list[Path], values: list[dict[str, Any]]) -> None:
    """Adds what repetitions found, by their folders."""
    found = repetitions(plan) | {path.name: value for path, value in zip(paths, values, strict=True)}
    _write(plan, {**_read(plan), "repetitions": found})


def _read(plan: Plan) -> dict[str, Any]:
    file = plan.folder / "trials.json"
    empty: dict[str, Any] = {"ended": False, "limit": None, "trials": [], "repetitions": {}}
    return empty | (json.loads(file.read_text()) if file.exists() else {})


def _write(plan: Plan, content: dict[str, Any]) -> None:
    files.write(plan.folder / "trials.json", json.dumps(content, indent=1) + "\n")


def settle(plan: Plan, entry: Entry, say: Say) -> None:
    """Writes down what became of a trial, here and in MLflow, where its run may still be open."""
    config, path = configuration(plan, entry), plan.folder / entry.folder
    tags = {"outcome": entry.outcome, "objective": plan.words, "error": entry.error}
    experiment = Experiment(config, path, tags, say, again=False)
    experiment.params(flat(config))
    for key, value in tags.items():
        if value is not None:
            experiment.tag(key, value)
    if entry.outcome == "finished" and plan.scheduler == "pbt":
        experiment.tag("weights", dataclasses.asdict(config.weights))
    experiment.close(STATUS[entry.outcome])
    content = _read(plan)
    _write(plan, {**content, "trials": [*content["trials"], dataclasses.asdict(entry)]})
    score = f"{entry.objective:.4f}" if entry.objective is not None else "no objective"
    number = f"trial {len(_planned(entries(plan)))} of {plan.trials}" if _planned([entry]) else "a trial more"
    say(f"{number}, {entry.id}: {entry.outcome} after "
        f"{entry.student_updates} student updates, {score}" + (f" ({entry.error})" if entry.error else ""))  # fmt: skip


def entry(plan: Plan, trial_id: str, sample: dict[str, Any], last: dict[str, Any], error: str | None) -> Entry:
    """What became of a trial, from Ray's last result of it and the error that ended it."""
    outcome = "failed" if error else last.get("outcome")
    if outcome is None:
        outcome = "stopped" if limits.reached(plan.folder) else "pruned"
    place = Path(last.get("folder", plan.trials_folder / trial_id))
    return Entry(
        trial_id, str(place.relative_to(plan.folder)), sample, outcome, error or last.get("error"),
        last.get("objective"), last.get("agreement"), last.get("oracle"),
        last.get("student_updates", 0), last.get("round", 0),
    )  # fmt: skip


def settle_lost(plan: Plan, say: Say) -> None:
    """Writes down, from their folders, trials that Ray knows nothing of.

    They began in the seconds between Ray's last note of its state and the death of the sweep. Some were played to the
    end all the same.
    """
    known = {one.id for one in entries(plan)}
    folders: dict[str, list[Path]] = {}
    for path in trial.run_folders(plan.trials_folder):
        if (path / "config.yaml").exists():
            folders.setdefault(trial.id_of(path), []).append(path)
    for name, places in sorted(folders.items()):
        if name not in known:
            place = max(places, key=trial.last_round)
            settle(plan, _lost(plan, name, place), say)


def _lost(plan: Plan, name: str, place: Path) -> Entry:
    """A trial as its run folder has it."""
    config, _ = folder.read_config(place)
    values = flat(config)
    sample = {path: weight[-1][1] if isinstance(weight := values[path], list) else weight for path in plan.space}
    last = trial.standing(plan, config, place)
    finished = folder.result(place) is not None
    return Entry(
        name, str(place.relative_to(plan.folder)), sample, "finished" if finished else "stopped",
        None if finished else LOST, last.objective if last else None, last.agreement if last else None,
        last.oracle if last else None, last.student_updates if last else 0, last.round if last else 0,
    )  # fmt: skip


def settle_runs(plan: Plan, say: Say) -> None:
    """Sees to it that no MLflow run below the sweep's is left running: its process may have been killed.

    Those that nothing is known of may yet go on, and are running again then.
    """
    ends: dict[Path, Status] = {plan.folder / one.folder: STATUS[one.outcome] for one in entries(plan)}
    others = [plan.default_folder, *trial.run_folders(plan.trials_folder), *plan.folder.glob("repeated/*")]
    for place in others:
        ends.setdefault(place, "KILLED" if folder.result(place) is None else "FINISHED")
    tracking.settle(plan.base.tracking.uri, ends, say)


def configuration(plan: Plan, entry: Entry) -> Config:
    """The trial's configuration as it ran; the base's where its own cannot be built."""
    path = plan.folder / entry.folder
    if (path / "config.yaml").exists():
        config, _ = folder.read_config(path)
    else:
        config = plan.base
    over = {**dataclasses.asdict(plan.base.tracking), "parent": plan.parent, "model": False}  # as `bookkeeping` has it
    return build(merge(to_dict(config), {"tracking": over}))


def open_parent(plan: Plan, base: Config, say: Say) -> Experiment:
    """The sweep's own MLflow run; its trials' are its children."""
    tags = {"kind": "sweep", "objective": plan.words, "data_free_objective": plan.objective == "agreement",
            "commit": folder.commit()}  # fmt: skip
    parent = Experiment(base, plan.folder, tags, say)
    parent.params({
        **{name: getattr(plan, name) for name in ("objective", "searcher", "scheduler", "trials", "total_rounds",
                                                  "minutes", "cpus", "gpus", "parallel")},
        **{f"space.{path}": text for path, text in spaces.to_plain(plan.space).items()},
        **flat(base),
    })  # fmt: skip
    return parent


def note_probe(plan: Plan, parent: Experiment) -> None:
    """The probe's account and hash on the sweep's run; UserError where the file is not the one that was hashed."""
    parent.tag("probe_sha256", probe.load(plan.probe_file).sha256)
    parent.picture(plan.probe_file.with_name("probe.json"), "probe")
