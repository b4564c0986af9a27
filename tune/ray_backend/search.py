"""The search with Ray Tune: searcher, scheduler, the function that runs a trial, the stopper, the records of trials."""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ray import tune

from tune import records, trial
from tune.configs import student_updates
from tune.interrupts import Signals
from tune.limits import RoundCounter
from tune.plan import NUM_EVALUATIONS, Plan
from tune.population import Origin
from tune.ray_backend.cluster import resources
from tune.ray_backend.processes import MAX_FAILURES, enter_working_dir, train_distributed
from tune.spaces import Distribution

REDUCTION_FACTOR = 2
"""ASHA continues the best 1 of so many trials at each rung; the next rung is so many times as far."""

PERTURBATION_EVALUATIONS = 2
"""Evaluations between two changes of a population: a change starts new processes, and new weights need some time."""


def tuner(plan: Plan, echo: Callable[[str], None]) -> Any:
    """The Ray Tune tuner of the sweep: a new one, or the saved one with the trials that are left."""
    bundles = resources(plan)
    if plan.num_processes > 1:
        bundles = [{}, *bundles]  # the trial's own process only forwards the results of its ranks
    trainable = tune.with_resources(tune.with_parameters(_run_trial, plan=plan), tune.PlacementGroupFactory(bundles))
    state = plan.folder / "ray"
    if tune.Tuner.can_restore(str(state)):
        return tune.Tuner.restore(str(state), trainable)
    random.seed(plan.base.seed)  # PopulationBasedTraining draws from Python's generator
    config = tune.TuneConfig(
        metric="objective",
        mode="max",
        search_alg=_searcher(plan),
        scheduler=_scheduler(plan),
        num_samples=1 if plan.searcher == "grid" else plan.trials,
        max_concurrent_trials=plan.parallel if plan.searcher == "optuna" else None,  # other searchers have their own
        reuse_actors=True,
    )
    run_config = tune.RunConfig(
        name="ray",
        storage_path=str(plan.folder),
        stop=LimitStopper(plan),
        callbacks=[RecordTrials(plan, echo)],
        failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
        verbose=0,
    )
    return tune.Tuner(trainable, param_space=_param_space(plan), tune_config=config, run_config=run_config)


def _param_space(plan: Plan) -> dict[str, Any]:
    """The space for Ray Tune's own searchers; Optuna has its own."""
    if plan.searcher == "grid":
        return {path: tune.grid_search(one.grid()) for path, one in plan.space.items()}
    if plan.searcher == "random":
        return {path: _domain(one) for path, one in plan.space.items()}
    return {}


def _searcher(plan: Plan) -> Any:
    if plan.searcher != "optuna":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(max_concurrent=plan.parallel or 0, random_state=plan.base.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A trial that restarts from its last checkpoint reports the evaluations after it again, with the same values.
    warnings.filterwarnings("ignore", "The reported value is ignored because this", UserWarning)
    sampler = optuna.samplers.TPESampler(seed=plan.base.seed, n_startup_trials=max(4, plan.trials // 4))
    space = {path: _optuna_distribution(one) for path, one in plan.space.items()}
    return OptunaSearch(space, metric="objective", mode="max", sampler=sampler)


def _optuna_distribution(one: Distribution) -> Any:
    from optuna import distributions

    if one.kind == "choice":
        return distributions.CategoricalDistribution(one.values)
    kind = distributions.IntDistribution if one.kind.endswith("integer") else distributions.FloatDistribution
    low, high = one.values
    return kind(low, high, log=one.kind.startswith("log_"))


def _domain(one: Distribution) -> Any:
    """A distribution as Ray Tune's search space API has it; the upper end of its integers is exclusive."""
    if one.kind == "choice":
        return tune.choice(list(one.values))
    low, high = one.values
    if one.kind.endswith("integer"):
        return (tune.lograndint if one.kind.startswith("log_") else tune.randint)(low, high + 1)
    return (tune.loguniform if one.kind.startswith("log_") else tune.uniform)(low, high)


def _scheduler(plan: Plan) -> Any:
    """The scheduler; its time axis is student updates, so that trials with other `student_steps` are comparable."""
    from ray.tune import schedulers

    updates = student_updates(plan.base)
    first = max(1, updates // NUM_EVALUATIONS)
    if plan.scheduler == "asha":
        return schedulers.ASHAScheduler(
            "student_updates", max_t=max(updates, 2), grace_period=first, reduction_factor=REDUCTION_FACTOR
        )
    if plan.scheduler == "none":
        return schedulers.FIFOScheduler()
    bounds = {path: one.values for path, one in plan.space.items()}

    def clip(values: dict[str, Any]) -> dict[str, Any]:
        return {path: min(max(value, bounds[path][0]), bounds[path][1]) for path, value in values.items()}

    return schedulers.PopulationBasedTraining(
        "student_updates",
        perturbation_interval=PERTURBATION_EVALUATIONS * first,
        hyperparam_mutations={path: _domain(one) for path, one in plan.space.items()},
        custom_explore_fn=clip,
    )


def _run_trial(sample: dict[str, Any], plan: Plan) -> None:
    """The trainable: runs a trial and reports its results, each with a Ray checkpoint that names the run's own one."""
    enter_working_dir(plan)
    checkpoint = tune.get_checkpoint()
    origin = None
    if checkpoint:
        with checkpoint.as_directory() as folder:
            origin = Origin(**json.loads(Path(folder, "origin.json").read_text()))
    train = trial.train_here if plan.num_processes == 1 else train_distributed
    with closing(trial.run(plan, tune.get_context().get_trial_id(), sample, origin, train)) as results:
        for result in results:
            values = dataclasses.asdict(result)
            if result.outcome == "failed":  # there may be no checkpoint
                tune.report(values)
                continue
            with tempfile.TemporaryDirectory() as folder:
                text = json.dumps(dataclasses.asdict(Origin(result.folder, result.round)))
                Path(folder, "origin.json").write_text(text)
                tune.report(values, checkpoint=tune.Checkpoint.from_directory(folder))


class LimitStopper(tune.Stopper):  # type: ignore[misc]
    """Stops the sweep when a limit is reached, and each trial after its last result."""

    def __init__(self, plan: Plan) -> None:
        self._folder = plan.folder
        self._counter: RoundCounter | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state without the count: after a restart the run folders and limits.json give it again."""
        return {"_folder": self._folder, "_counter": None}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Counts the rounds of a result; returns whether it is the trial's last one."""
        self._rounds().add(Path(result["folder"]), result["round"])
        return result["outcome"] is not None

    def stop_all(self) -> bool:
        """Whether a limit has been reached."""
        return self._rounds().limit_reached() is not None

    def _rounds(self) -> RoundCounter:
        if self._counter is None:
            self._counter = RoundCounter(self._folder)
        return self._counter


class RecordTrials(tune.Callback):  # type: ignore[misc]
    """Records each trial when it ends, and at the start those that had ended before a restart.

    Ray Tune pickles this object, so `echo` has to be a function of a module.
    """

    def __init__(self, plan: Plan, echo: Callable[[str], None]) -> None:
        self._plan, self._echo = plan, echo
        self._recorded: set[str] | None = None

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Records the trials that have ended."""
        self._record(trials)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Records the trials that ended in the last step, but not those that a signal has interrupted."""
        if Signals.received is None:
            self._record(trials)

    def _record(self, trials: list[Any]) -> None:
        if self._recorded is None:
            self._recorded = {record.id for record in records.trials(self._plan)}
        for one in trials:
            if one.is_finished() and one.trial_id not in self._recorded:
                self._recorded.add(one.trial_id)
                error = _reason(one.get_error()) if one.status == "ERROR" else None
                result = one.last_result or {}
                record = records.from_result(self._plan, one.trial_id, dict(one.config), result, error)
                records.add(self._plan, record, self._echo)


def _reason(error: BaseException | None) -> str:
    """The type and the first line of the error that ended a worker."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"[:300]
