"""A sweep as plain data, and where its files are. `sweep.json` holds it, so that `--resume` continues the same one."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import files, resolve
from harness import task as tasks
from harness.config import BOOKKEEPING, Config, build, flat, parse, to_dict
from harness.errors import UserError, nearest
from harness.methods import METHODS
from harness.training.inversion import inverts
from tune import probe, spaces
from tune.spaces import Space

SEARCHERS = ("optuna", "random", "grid")
SCHEDULERS = ("asha", "none", "pbt")

TRIALS = 16
"""Trials where none were asked for; a grid has as many as it has points."""

REPORTS = 8
"""Times that a trial is judged, evenly spread over its student updates; the first is ASHA's first rung."""

PROBE = "evaluation/probe_agreement"
"""The metric, in every trial's metrics: share of the probe on which the student says what the teacher says."""


@dataclass(frozen=True)
class Plan:
    """What is searched, how, and for how long."""

    recipe: str | None
    file: dict[str, Any] | None
    """The content of --config."""
    overrides: dict[str, Any]
    """path=value words, nested."""
    space: Space
    objective: str = "agreement"
    """`agreement` on the probe, or the task's metric on real data: an oracle."""
    searcher: str = "optuna"
    scheduler: str = "asha"
    trials: int = TRIALS
    total_rounds: int | None = None
    """Rounds of all trials together, after which no more are played."""
    minutes: float | None = None
    """Minutes of this invocation, after which the trials that run are stopped."""
    cpus: float = 1.0
    """CPUs of each process of a trial."""
    gpus: float = 0.0
    parallel: int | None = None
    """Trials at a time at most; None: as many as fit."""
    folder: Path = Path()
    """Where everything goes, absolute; on a cluster, every node sees it."""
    place: Path = Path()
    """The folder in which the command was given, absolute: relative paths of the configuration start there."""
    address: str | None = None
    """An existing Ray cluster; None: one of this machine's own."""
    probe: Path | None = None
    """Another sweep's folder whose probe judges here too, so that both are judged alike; None: one is made."""
    parent: str | None = None
    """The sweep's MLflow run."""

    @property
    def base(self) -> Config:
        """The recipe's defaults with what was given: what every sample is laid over."""
        return resolve.resolve(self.recipe, self.file, self.overrides)

    @property
    def workers(self) -> int:
        """Processes that play a trial, or any other run of the sweep, together."""
        return self.base.distributed.world_size or 1

    @property
    def trials_folder(self) -> Path:
        """One run folder a trial, and for trials of a population one for every change of weights."""
        return self.folder / "trials"

    @property
    def probe_file(self) -> Path:
        """The probe's images and the teacher's answers."""
        return probe.of(self.folder)

    @property
    def default_folder(self) -> Path:
        """The run of the recipe's defaults, whose generator made the probe."""
        return self.folder / "default"

    @property
    def metric(self) -> str:
        """The objective's name in a run's metrics."""
        return PROBE if self.objective == "agreement" else f"evaluation/student_{self.objective}"

    @property
    def words(self) -> str:
        """The objective for people, with its standing."""
        if self.objective == "agreement":
            return "agreement on the probe (data-free)"
        return f"{self.objective} on real data (ORACLE: no data-free setting has it)"


Given = tuple[str | None, dict[str, Any] | None, dict[str, Any]]
"""Recipe, content of --config, overrides: what `harness.resolve.resolve` takes."""


def make(
    given: Given, output: Path | None, space: str, trials: int | None, searcher: str | None, **options: Any
) -> Plan:
    """The plan of a command, given in the current folder; `options` are fields of Plan."""
    found = spaces.find(space)
    if searcher is None:
        searcher = "random" if options["scheduler"] == "pbt" else "optuna"
    if trials is None:
        trials = len(spaces.grid(found)) if searcher == "grid" else TRIALS
    plan = Plan(*given, found, searcher=searcher, trials=trials, place=Path.cwd(), **options)
    folder = output or Path("sweeps") / f"{plan.base.recipe}-{identity(plan)}"
    return replace(plan, folder=folder.absolute())


def seeds(text: str | None) -> list[int]:
    """The seeds in `0-4` or `0,7`; none where there is no text."""
    try:
        found: list[int] = []
        for word in text.split(",") if text else []:
            first, _, last = word.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        found = []
    if text is not None and (not found or len(set(found)) < len(found)):
        raise UserError(f"--retrain {text!r}: expected seeds such as 0-4 or 0,7, each once")
    return found


def oracle(config: Config) -> str | None:
    """The metric on real data that the trials' curves hold, where there is data."""
    return f"evaluation/student_{tasks.load(config.task).primary_metric}" if config.data.name != "none" else None


def check(plan: Plan) -> Config:
    """The base configuration; UserError for whatever in the plan does not fit together."""
    config = plan.base
    _one_of("--searcher", plan.searcher, SEARCHERS)
    _one_of("--scheduler", plan.scheduler, SCHEDULERS)
    if not METHODS[config.method].data_free or not METHODS[config.method].has_teacher:
        raise UserError(f"method={config.method} invents no images to make a probe of: sweep a data-free method")
    if config.max_minutes is not None:
        raise UserError(f"max_minutes={config.max_minutes:g} ends a run early: the budget of a sweep is --minutes")
    _check_objective(plan.objective, config)
    spaces.check(plan.space, config)
    if both := sorted(plan.space.keys() & flat_keys(plan.overrides)):
        raise UserError(f"{both[0]} is both given and searched: leave one of them out")
    for name in ("trials", "total_rounds", "minutes", "parallel", "cpus"):
        value = getattr(plan, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")
    if plan.probe:
        probe.check(plan.probe, config)
    if not (0 <= plan.gpus < 1 or (plan.gpus.is_integer() and plan.gpus > 0)):
        raise UserError(f"--gpus {plan.gpus:g}: expected a share of one GPU, such as 0.5, or a whole number")
    if plan.workers > 1 and plan.gpus % 1:
        raise UserError(f"--gpus {plan.gpus:g}: each of {plan.workers} processes of a trial needs a GPU of its own")
    if plan.scheduler == "pbt":
        _check_population(plan, config)
    if plan.searcher == "grid" and plan.trials != (points := len(spaces.grid(plan.space))):
        raise UserError(f"--trials {plan.trials}: the grid of this space has {points} points; leave --trials out")
    return config


def _one_of(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UserError(f"{option} {word!r}: expected one of {', '.join(known)}{nearest(word, known)}")


def _check_objective(objective: str, config: Config) -> None:
    primary = tasks.load(config.task).primary_metric
    _one_of("--objective", objective, ("agreement", primary))
    if objective == primary and config.data.name == "none":
        raise UserError(f"--objective {objective} is measured on real data, and data.name=none: use agreement")


def _check_population(plan: Plan, config: Config) -> None:
    if others := [path for path in plan.space if not path.startswith("weights.")]:
        raise UserError(f"--scheduler pbt changes values during a run, which only weights.* may: not {others[0]}")
    if choices := [path for path, one in plan.space.items() if one.kind == "choice"]:
        raise UserError(f"--scheduler pbt multiplies weights: {choices[0]} is a choice; give it a range")
    if plan.searcher != "random":
        raise UserError(f"--scheduler pbt searches by itself: --searcher random, not {plan.searcher}")
    if plan.parallel:
        raise UserError("--parallel: a population takes turns on what there is; limit it by --cpus or --gpus")
    if plan.trials < 2:
        raise UserError(f"--scheduler pbt --trials {plan.trials}: a population has at least 2")


def flat_keys(overlay: dict[str, Any]) -> set[str]:
    """Every dotted path that a nested overlay sets."""
    return {
        f"{key}{'.' + rest if rest else ''}"
        for key, value in overlay.items()
        for rest in (flat_keys(value) if isinstance(value, dict) else {""})
    }


def budget(config: Config) -> int:
    """Student updates of a whole run, by which trials of different turns are compared."""
    return config.rounds * config.student_steps


def configuration(plan: Plan, sample: dict[str, Any]) -> Config:
    """The run that a sample describes, as it would be run by itself.

    Every trial trains its student as often as the base does: where `student_steps` is sampled, `rounds` follows, and
    with it whatever else is counted in rounds. The learning rates' horizon is that whole run, however early a scheduler
    may end it.
    """
    base, over = plan.base, parse.merge(plan.overrides, spaces.nested(sample))
    steps = sample.get("student_steps", base.student_steps)
    if steps == base.student_steps:
        return resolve.resolve(plan.recipe, plan.file, over)
    over["rounds"] = math.ceil(budget(base) / steps)
    config = resolve.resolve(plan.recipe, plan.file, over)
    return build(parse.merge(to_dict(config), _rescaled(config, sample, base.student_steps / steps)))


def _rescaled(config: Config, sample: dict[str, Any], factor: float) -> dict[str, Any]:
    """The values counted in rounds, for `factor` times as many rounds, as an overlay; sampled ones stay as they are."""
    weights = {f"weights.{name}": weight for name, weight in vars(config.weights).items()}
    weights["student.attention"] = config.student.attention
    found: dict[str, Any] = {
        path: _rescaled_schedule(weight, factor) for path, weight in weights.items() if isinstance(weight, list)
    }
    if inverts(METHODS[config.method].turns(config)):
        found["inversion.rounds"] = max(1, round(config.inversion.rounds * factor))
    return spaces.nested({path: value for path, value in found.items() if path not in sample})


def _rescaled_schedule(schedule: list[list[float]], factor: float) -> list[list[float]]:
    """[[round, value], ...] over other rounds; of several values from one round on the last remains."""
    return [list(pair) for pair in {float(round(start * factor)): value for start, value in schedule}.items()]


def bookkeeping(config: Config, plan: Plan) -> Config:
    """The run as a trial: judged REPORTS times, each with a checkpoint, a child of the sweep.

    Only fields that do not change the result. Pictures and models would cost more than they tell.
    """
    every = math.ceil(config.rounds / REPORTS)
    over = {
        "evaluate_every": every,
        "checkpoint": {"every": every, "keep": REPORTS + 1 if plan.scheduler == "pbt" else 2},
        "log_every": min(config.log_every, every),
        "pictures": False,
        "tracking": {"parent": plan.parent, "model": False},
    }
    return build(parse.merge(to_dict(config), over))


def identity(plan: Plan) -> str:
    """Eight hexadecimal digits over what determines which trials a sweep makes."""
    return hashlib.sha256(json.dumps(_determining(plan), sort_keys=True).encode()).hexdigest()[:8]


def _determining(plan: Plan) -> dict[str, Any]:
    kept = {path: value for path, value in flat(plan.base).items() if path.partition(".")[0] not in BOOKKEEPING}
    return {
        "config": kept,
        "space": spaces.to_plain(plan.space),
        **{name: getattr(plan, name) for name in ("objective", "searcher", "scheduler", "trials")},
        **({"probe": probe.load(probe.of(plan.probe)).sha256} if plan.probe else {}),
    }


def record(plan: Plan, resume: bool) -> None:
    """Writes sweep.json into a fresh folder, or checks that the one there is this very sweep."""
    file = plan.folder / "sweep.json"
    content = {"schema": 1, "metric": plan.metric, "objective_in_words": plan.words, **_determining(plan)}
    if not file.exists():
        if plan.folder.exists() and (found := sorted(p.name for p in plan.folder.iterdir() if p.name[0] != ".")):
            raise UserError(f"{plan.folder} holds something else ({found[0]}): give another --output")
        if resume:
            raise UserError(f"--resume: there is no sweep in {plan.folder}; leave --resume out to begin it")
        files.write(file, json.dumps(content, indent=1) + "\n")
        return
    try:
        there = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    mine = json.loads(json.dumps(content))
    if differing := [key for key in mine if there.get(key) != mine[key]]:
        key = differing[0]
        raise UserError(f"{plan.folder} belongs to another sweep ({_change(key, there.get(key), mine[key])}): "
                        "give another --output")  # fmt: skip
    if not resume:
        raise UserError(f"{plan.folder} holds this sweep already: --resume continues it, or give another --output")


def _change(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
        return _change(inner, old.get(inner), new.get(inner))
    return f"{key} is {old!r} there, {new!r} here"
