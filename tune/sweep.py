"""`ddad sweep`: the probe, the trials under Ray Tune, the report, the repetitions. The only file that imports ray."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from harness import files, tracking
from harness.config import Config
from harness.distributed.runtime import leave
from harness.errors import Diverged, Lost, UserError
from harness.run import folder as run_folder
from tune import journal, limits, probe, product, report, trial
from tune.interrupts import Signals
from tune.limits import Counter
from tune.plan import REPORTS, Plan, budget, check, record
from tune.spaces import Distribution
from tune.trial import Origin

Say = Callable[[str], None]

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
}
"""Ray's environment, here and in its workers: nothing is reported to its makers, signals are ours, its state is noted
every 2 seconds, and a trial that was stopped has time to close its record before its process takes the next."""

OBJECT_STORE = 128 * 2**20
"""Bytes for what processes hand to each other: a plan and figures; images and weights go through files."""

KNOCK_SECONDS = 5.0
"""For a cluster's head to answer."""

MAX_FAILURES = 3
"""Times that a trial whose process dies is taken up again."""

RUNG_FACTOR = 2
"""ASHA lets the better one of so many go on at each rung, and the next rung is so many times as far."""


PERTURBED_EVERY = 2
"""Judgements between two changes in a population: each change starts processes, and weights need time to tell."""


def sweep(plan: Plan, resume: bool, seeds: list[int], say: Say) -> dict[str, Any]:
    """The whole sweep, in `plan.folder`, with the best and the defaults repeated over `seeds`; returns report.json.

    Raises UserError for a mistake before any trial starts, and KeyboardInterrupt where a signal ended it: the same call
    with `resume` goes on.
    """
    base = check(plan)
    tracking.require(base.tracking.uri)
    with cluster(plan), Signals() as signals, _alone(plan.folder):  # Ray sets handlers of its own as it starts
        record(plan, resume)
        parent = journal.open_parent(plan, base, say)
        status: tracking.Status = "KILLED"
        try:
            plan = dataclasses.replace(plan, parent=parent.run_id())
            if plan.parent is None:
                tracking.require(base.tracking.uri)  # it is off, or gone meanwhile
            found = _run(plan, base, parent, signals, seeds, say)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            journal.settle_runs(plan, say)
            parent.close(status)
    return found


def _run(
    plan: Plan, base: Config, parent: tracking.Experiment, signals: Signals, seeds: list[int], say: Say
) -> dict[str, Any]:
    if plan.probe:
        probe.adopt(plan.probe, plan.probe_file)
    if not plan.probe_file.exists() or run_folder.result(plan.default_folder) is None:
        say("a run of the recipe's defaults" if plan.probe else "making the probe: a run of the recipe's defaults")
        _remotely(plan, [(trial.default, (plan,))])
    journal.note_probe(plan, parent)
    if not journal.ended(plan):
        _search(plan, signals, say)
    found = report.write(plan, base)
    if found["best"] is None:
        raise UserError(f"{plan.folder}: no trial got as far as a judgement; its report.md says what became of them")
    if seeds:
        say(f"repeating the best configuration and the defaults over seeds {', '.join(map(str, seeds))}")
        calls = product.repetitions(plan, base, found["best"], seeds)
        values = _remotely(plan, [(trial.repeat, (plan, config, path)) for config, path in calls])
        journal.note_repetitions(plan, [path for _, path in calls], values)
        found = report.write(plan, base)
    product.publish(plan, base, found, parent, say)
    return found


def _search(plan: Plan, signals: Signals, say: Say) -> None:
    """Plays the trials that are left; KeyboardInterrupt, with Ray's state saved, where a signal came."""
    limits.begin(plan)
    bundles = _bundles(plan) if plan.workers == 1 else [{}, *_bundles(plan)]  # {}: of who only hands reports on
    trainable = tune.with_resources(tune.with_parameters(_trial, plan=plan), tune.PlacementGroupFactory(bundles))
    state = plan.folder / "ray"
    if tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), trainable)
    else:
        tuner = _tuner(plan, trainable, say)
    with signals.searching():
        tuner.fit()
    journal.settle_lost(plan, say)
    journal.note_end(plan, limits.reached(plan.folder))


def _tuner(plan: Plan, trainable: Any, say: Say) -> Any:
    random.seed(plan.base.seed)  # Ray's population-based training draws from it
    config = tune.TuneConfig(
        metric="objective",
        mode="max",
        search_alg=_searcher(plan),
        scheduler=_scheduler(plan),
        num_samples=1 if plan.searcher == "grid" else plan.trials,
        max_concurrent_trials=plan.parallel if plan.searcher == "optuna" else None,  # the others limit themselves
        reuse_actors=True,
    )
    run_config = tune.RunConfig(
        name="ray",
        storage_path=str(plan.folder),
        stop=_Budget(plan),
        callbacks=[_Journal(plan, say)],
        failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
        verbose=0,
    )
    values: dict[str, Any] = {}
    if plan.searcher == "grid":
        values = {path: tune.grid_search(one.grid()) for path, one in plan.space.items()}
    elif plan.searcher == "random":
        values = {path: _domain(one) for path, one in plan.space.items()}
    return tune.Tuner(trainable, param_space=values, tune_config=config, run_config=run_config)


def _searcher(plan: Plan) -> Any:
    if plan.searcher != "optuna":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(max_concurrent=plan.parallel or 0, random_state=plan.base.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A trial whose worker was lost tells its judgements again from the last checkpoint on: the same values.
    warnings.filterwarnings("ignore", "The reported value is ignored because this", UserWarning)
    sampler = optuna.samplers.TPESampler(seed=plan.base.seed, n_startup_trials=max(4, plan.trials // 4))
    dimensions = {path: _dimension(one) for path, one in plan.space.items()}
    return OptunaSearch(dimensions, metric="objective", mode="max", sampler=sampler)


def _dimension(one: Distribution) -> Any:
    from optuna import distributions

    if one.kind == "choice":
        return distributions.CategoricalDistribution(one.values)
    kind = distributions.IntDistribution if one.kind.endswith("integer") else distributions.FloatDistribution
    low, high = one.values
    return kind(low, high, log=one.kind.startswith("log_"))


def _domain(one: Distribution) -> Any:
    if one.kind == "choice":
        return tune.choice(list(one.values))
    low, high = one.values
    if one.kind.endswith("integer"):
        return (tune.lograndint if one.kind.startswith("log_") else tune.randint)(low, high + 1)
    return (tune.loguniform if one.kind.startswith("log_") else tune.uniform)(low, high)


def _scheduler(plan: Plan) -> Any:
    """Time is counted in student updates: trials of different turns meet where their students learned as much."""
    from ray.tune import schedulers

    updates = budget(plan.base)
    first = max(1, updates // REPORTS)
    if plan.scheduler == "asha":
        return schedulers.ASHAScheduler(
            "student_updates", max_t=max(updates, 2), grace_period=first, reduction_factor=RUNG_FACTOR
        )
    if plan.scheduler == "none":
        return schedulers.FIFOScheduler()
    bounds = {path: one.values for path, one in plan.space.items()}

    def within(values: dict[str, Any]) -> dict[str, Any]:
        return {path: min(max(value, bounds[path][0]), bounds[path][1]) for path, value in values.items()}

    return schedulers.PopulationBasedTraining(
        "student_updates",
        perturbation_interval=PERTURBED_EVERY * first,
        hyperparam_mutations={path: _domain(one) for path, one in plan.space.items()},
        custom_explore_fn=within,
    )


def _trial(sample: dict[str, Any], plan: Plan) -> None:
    """What Ray runs in a worker: the trial's standings, reported each with where its state is."""
    _enter(plan)
    given = tune.get_checkpoint()
    origin = None
    if given:
        with given.as_directory() as folder:
            origin = Origin(**json.loads(Path(folder, "origin.json").read_text()))
    play = trial.standings if plan.workers == 1 else _play_together
    with closing(trial.run(plan, tune.get_context().get_trial_id(), sample, origin, play)) as standings:
        for standing in standings:
            values = dataclasses.asdict(standing)
            if standing.outcome == "failed":  # there may be no checkpoint
                tune.report(values)
                continue
            with tempfile.TemporaryDirectory() as folder:
                text = json.dumps({"folder": standing.folder, "round": standing.round})
                Path(folder, "origin.json").write_text(text)
                tune.report(values, checkpoint=tune.Checkpoint.from_directory(folder))


def _enter(plan: Plan) -> None:
    """A worker goes to where the command was given: the configuration's relative paths start there."""
    if not plan.folder.is_dir():
        raise RuntimeError(f"{ray.util.get_node_ip_address()} does not see {plan.folder}: every node needs it")
    os.chdir(plan.place)


class _Budget(tune.Stopper):  # type: ignore[misc]
    """Ends the sweep where its limits are reached, and every trial after its last report."""

    def __init__(self, plan: Plan) -> None:
        self.folder = plan.folder
        self.counter: Counter | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray's state on disk has it: what was spent under which limits is read again from the folder."""
        return {"folder": self.folder, "counter": None}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Takes account of a report; whether it is the trial's last, after which no scheduler has a say."""
        self._count().add(Path(result["folder"]), result["round"])
        return result["outcome"] is not None

    def stop_all(self) -> bool:
        """Whether nothing more is to be played."""
        return self._count().over() is not None

    def _count(self) -> Counter:
        if self.counter is None:
            self.counter = Counter(self.folder)
        return self.counter


class _Journal(tune.Callback):  # type: ignore[misc]
    """Writes down what became of each trial as soon as that is known, and of those known from before a restart.

    Ray pickles it: `say` is a module's function.
    """

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan, self.say = plan, say
        self._known: set[str] | None = None

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """After every event."""
        self._settle(trials)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """After the last: all are known to have ended, if only before a restart; of a signal they just look so."""
        if Signals.received is None:
            self._settle(trials)

    def _settle(self, trials: list[Any]) -> None:
        if self._known is None:
            self._known = {entry.id for entry in journal.entries(self.plan)}
        for one in trials:
            if one.is_finished() and one.trial_id not in self._known:
                self._known.add(one.trial_id)
                error = _first_line(one.get_error()) if one.status == "ERROR" else None
                found = journal.entry(self.plan, one.trial_id, dict(one.config), one.last_result or {}, error)
                journal.settle(self.plan, found, self.say)


def _first_line(error: BaseException | None) -> str:
    """What ended a worker, in a line."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with files.lock(folder / ".lock"):
            yield
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another sweep: wait for it, or give another --output") from None


@contextmanager
def cluster(plan: Plan) -> Iterator[None]:
    """Ray: the cluster at `plan.address`, else one of this machine's own that ends with the block; or the one there is.

    UserError where none answers at the address, or the nodes cannot hold a trial.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    owned = not ray.is_initialized()
    if owned:
        _start(plan.address)
    try:
        check_resources(plan, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield
    finally:
        if owned:
            ray.shutdown()


def _start(address: str | None) -> None:
    if address not in (None, "auto"):
        _knock(str(address))
    options: dict[str, Any] = {"runtime_env": {"env_vars": QUIET}}
    if address is None:
        options = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except Exception as error:  # Ray raises bare ones too, on a node that is too busy to start for one
        where = f"--address {address}: no Ray cluster answers there" if address else "Ray cannot be started here"
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where} ({line[:200]})") from None
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what becomes of trials is in the report


def _knock(address: str) -> None:
    """UserError where nothing listens at HOST:PORT: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"--address {address!r}: expected HOST:PORT of the cluster's head, such as 10.0.0.1:6379, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there ({error}): start one with `ray start --head`, "
            "or leave --address out"
        ) from None


def check_resources(plan: Plan, nodes: list[dict[str, float]]) -> None:
    """UserError, instead of waiting for ever, where the nodes cannot hold a trial."""
    (asked, *_) = _bundles(plan)
    room = sum(int(min(node.get(name, 0) // amount for name, amount in asked.items())) for node in nodes)
    if room < plan.workers:
        there = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        processes = f"{plan.workers} processes with {plan.cpus:g} CPUs and {plan.gpus:g} GPUs each"
        one = f"{plan.cpus:g} CPUs and {plan.gpus:g} GPUs on one node"
        raise UserError(
            f"a trial asks for {one if plan.workers == 1 else processes}; there are {there}: lower --cpus or --gpus"
            + (", or distributed.world_size" if plan.workers > 1 else "")
        )


def _bundles(plan: Plan) -> list[dict[str, float]]:
    """What each process of a trial takes."""
    asked = {"CPU": plan.cpus, "GPU": plan.gpus}
    return [{name: amount for name, amount in asked.items() if amount}] * plan.workers


def _remotely(plan: Plan, calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Results of functions called with a trial's resources, as many at a time as there is room for."""

    def there(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        _enter(plan)
        if plan.workers == 1:
            return function(*arguments)
        group = placement_group(_bundles(plan))
        ray.get(group.ready())
        try:
            (result,) = _together(plan, group, _once, function, *arguments)
        finally:
            remove_placement_group(group)
        return result

    alone = plan.workers == 1
    task = ray.remote(
        num_cpus=plan.cpus if alone else 0, num_gpus=plan.gpus if alone else 0, max_retries=MAX_FAILURES,
        retry_exceptions=[Lost, ray.exceptions.WorkerCrashedError],
    )(there)  # fmt: skip
    waiting = [task.remote(*call) for call in calls]
    with _plain_mistakes():
        return list(ray.get(waiting))


def _once(function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    yield function(*arguments)


def _play_together(plan: Plan, config: Config, path: Path) -> trial.Standings:
    """`trial.standings` by several processes, in the placement group of the trial."""
    yield from _together(plan, ray.util.get_current_placement_group(), trial.standings, plan, config, path)


def _together(plan: Plan, group: Any, function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """What a generator function yields on rank 0, called in a process in each bundle of the group.

    They are the processes of one run, each with the environment that a launcher gives. Where one of them dies the
    others are ended too; the run goes on from its last checkpoint.
    """
    places = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(plan.workers)]
    where = ray.get(ray.remote(_meeting_point).options(num_cpus=0, scheduling_strategy=places[0]).remote())
    part = ray.remote(
        num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=0, max_calls=1,  # a process of its own, which keeps nothing
        num_returns="streaming", _generator_backpressure_num_objects=1,
    )(_part)  # fmt: skip
    parts = [
        part.options(scheduling_strategy=place).remote(plan, rank, where, function, arguments)
        for rank, place in enumerate(places)
    ]
    try:
        with _plain_mistakes():
            for reference in parts[0]:
                yield ray.get(reference)
    finally:
        for each in parts:
            ray.cancel(each, force=True)


def _meeting_point() -> tuple[str, int]:
    """Address and a free port of the node this runs on."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        return ray.util.get_node_ip_address(), taken.getsockname()[1]


def _part(
    plan: Plan, rank: int, where: tuple[str, int], function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> Iterator[Any]:
    """What one of several processes does; it sees no GPU but its own, so each is a node to itself."""
    _enter(plan)
    address, port = where
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(plan.workers), LOCAL_RANK="0", GROUP_RANK=str(rank),
        MASTER_ADDR=address, MASTER_PORT=str(port),
    )  # fmt: skip
    for each in function(*arguments):
        if rank == 0:  # nobody takes what another yields
            yield each
    leave()


@contextmanager
def _plain_mistakes() -> Iterator[None]:
    """Raises a mistake or a divergence in a worker as what it is, without the worker's traceback."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | Diverged):
            raise type(error.cause)(str(error.cause)) from None
        raise
