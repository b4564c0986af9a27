"""`ddad sweep`: the default run and the probe, the search, the report, the repetitions over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import files, tracking
from harness.config import Config
from harness.errors import UserError
from harness.run import folder as run_folder
from tune import configs, limits, mlflow_runs, probe, publish, records, report, trial
from tune.checks import check
from tune.interrupts import Signals
from tune.plan import Plan, record
from tune.ray_backend import cluster, processes, search
from tune.records import Echo


def sweep(plan: Plan, resume: bool, seeds: list[int], echo: Echo) -> dict[str, Any]:
    """Runs the sweep in `plan.folder` and returns the content of report.json.

    The best trial and the recipe are then repeated over `seeds`. `echo` prints a line; it has to be a function of a
    module. Raises UserError for a mistake before any trial starts. Raises KeyboardInterrupt after a signal: the same
    call with `resume` continues the sweep.
    """
    base = check(plan)
    tracking.require(base.tracking.uri)
    with (
        cluster.connected(plan),
        Signals() as signals,
        _locked(plan.folder),
    ):  # Ray sets its own handlers when it starts
        record(plan, resume)
        parent = mlflow_runs.open_parent(plan, base, echo)
        status: tracking.Status = "KILLED"
        try:
            plan = dataclasses.replace(plan, parent=parent.run_id())
            if plan.parent is None:
                tracking.require(base.tracking.uri)  # MLflow is off, or the store has gone since the first check
            content = _run(plan, base, parent, signals, seeds, echo)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            outcomes = {plan.folder / one.folder: one.outcome for one in records.trials(plan)}
            mlflow_runs.close_running(plan, outcomes, echo)
            parent.close(status)
    return content


def _run(
    plan: Plan, base: Config, parent: tracking.Experiment, signals: Signals, seeds: list[int], echo: Echo
) -> dict[str, Any]:
    if plan.probe:
        probe.copy(plan.probe, plan.probe_file)
    if not plan.probe_file.exists() or run_folder.result(plan.default_folder) is None:
        echo("default run: the recipe without a sample" + ("" if plan.probe else "; its generator makes the probe"))
        processes.call_all(plan, [(trial.default_run, (plan,))])
        for index, source in enumerate(configs.sources(plan)[1:], 1):
            echo(f"run of {source.method}: its generator makes a part of the probe too")
            processes.call_all(plan, [(trial.default_run, (plan, index))])
    else:
        for source in configs.sources(plan):
            run_folder.finished(source.run, source.config)  # UserError where its files were replaced since
    mlflow_runs.log_probe(plan, parent)
    if not records.search_ended(plan):
        _search(plan, signals, echo)
    content = report.write(plan, base)
    if content["best"] is None:
        raise UserError(f"{plan.folder}: no trial reached its first evaluation: see the errors in report.md")
    if seeds:
        echo(f"repeating the best configuration and the recipe with seeds {', '.join(map(str, seeds))}")
        runs = publish.repetitions(plan, base, content["best"], seeds)
        values = processes.call_all(plan, [(trial.repeat, (plan, config, path)) for config, path in runs])
        records.record_repetitions(plan, [path for _, path in runs], values)
        content = report.write(plan, base)
    publish.publish(plan, base, content, parent, echo)
    return content


def _search(plan: Plan, signals: Signals, echo: Echo) -> None:
    """Runs the trials that are left; KeyboardInterrupt, after Ray Tune has saved its state, if there was a signal."""
    limits.start(plan)
    tuner = search.tuner(plan, echo)
    with signals.searching():
        tuner.fit()
    records.add_lost_trials(plan, echo)
    records.record_end(plan, limits.reached(plan.folder))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Prevents another sweep in the same folder; UserError if there is one."""
    try:
        with files.lock(folder / ".lock"):
            yield
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another sweep: wait for its end, or give another --output") from None
