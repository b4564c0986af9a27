"""The configurations of a sweep's runs: of a sample, of the default run, of the best trial and its repetitions."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import resolve
from harness.config import Config, Weight, bookkeeping, build, flat, parse, to_dict
from harness.methods import METHODS
from harness.run import folder
from harness.training.inversion import inverts
from tune import probe
from tune.plan import NUM_EVALUATIONS, Plan


def student_updates(config: Config) -> int:
    """Updates of the student in a whole run."""
    return config.rounds * config.student_steps


def of_sample(plan: Plan, sample: dict[str, Any]) -> Config:
    """The recipe with the values of a sample, {dotted path: value}.

    Every trial trains its student for as many updates as the default run does. So if `student_steps` is sampled,
    `rounds` changes, and with it every other value that is counted in rounds. The learning-rate schedules cover these
    rounds, even if a scheduler ends the trial early.
    """
    base, overlay = plan.base, parse.merge(plan.overrides, parse.nest(sample))
    steps = sample.get("student_steps", base.student_steps)
    if steps == base.student_steps:
        return resolve.resolve(plan.recipe, plan.file, overlay)
    overlay["rounds"] = math.ceil(student_updates(base) / steps)
    config = resolve.resolve(plan.recipe, plan.file, overlay)
    return _overlaid(config, _rescaled(config, sample, base.student_steps / steps))


def _rescaled(config: Config, sample: dict[str, Any], factor: float) -> dict[str, Any]:
    """An overlay of the values counted in rounds, for `factor` times as many rounds, without the sampled values."""
    flat_values = flat(config)
    values: dict[str, Any] = {
        path: _rescaled_schedule(flat_values[path], factor)
        for path in _weight_paths(Config)
        if isinstance(flat_values[path], list)
    }
    if inverts(METHODS[config.method].turns(config)):
        values["inversion.rounds"] = max(1, round(config.inversion.rounds * factor))
    if config.generator.restart:
        values["generator.restart"] = max(1, round(config.generator.restart * factor))
    return parse.nest({path: value for path, value in values.items() if path not in sample})


def _weight_paths(kind: type, prefix: str = "") -> Iterator[str]:
    """The dotted paths of all fields of type Weight: a number, or a schedule over rounds."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _weight_paths(typing.cast(type, hint), f"{prefix}{name}.")
        elif hint == Weight:
            yield prefix + name


def _rescaled_schedule(schedule: list[list[float]], factor: float) -> list[list[float]]:
    """[[round, value], ...] with each round times `factor`; of values that then start together the last one is kept."""
    return [list(pair) for pair in {float(round(start * factor)): value for start, value in schedule}.items()]


def of_trial(plan: Plan, sample: dict[str, Any]) -> Config:
    """The configuration that a trial runs: `of_sample`, with an evaluation and a checkpoint NUM_EVALUATIONS times.

    Only fields that do not change the result differ from `of_sample`. Pictures and MLflow models are left out, because
    they take time and space in every trial.
    """
    config = of_sample(plan, sample)
    every = math.ceil(config.rounds / NUM_EVALUATIONS)
    # A population copies the checkpoints of evaluated rounds: none by the clock may take their place.
    copied = {"keep": NUM_EVALUATIONS + 1, "minutes": None}
    overlay = {
        "evaluate_every": every,
        "checkpoint": {"every": every, **(copied if plan.scheduler == "pbt" else {"keep": 2})},
        "log_every": min(config.log_every, every),
        "pictures": False,
        "tracking": {"parent": plan.parent, "model": False},
    }
    return _overlaid(config, overlay)


def sources(plan: Plan) -> list[probe.Source]:
    """The default run, and the runs of other methods if their generators make a part of the probe too."""
    found = [probe.Source(of_default_run(plan, plan.base), plan.default_folder)]
    for method in probe.METHODS_OF_PROBE if plan.several_methods else ():
        if method != plan.base.method:
            config = of_default_run(plan, plan.of_method(method))
            found.append(probe.Source(config, plan.folder / "sources" / method, method))
    return found


def of_default_run(plan: Plan, config: Config) -> Config:
    """A configuration without a sample, with a report at each checkpoint that the probe needs."""
    every = probe.interval(config.rounds)
    overlay = {
        "evaluate_every": math.ceil(config.rounds / NUM_EVALUATIONS),
        "checkpoint": {"every": every, "keep": 2},
        "log_every": every if config.log_every > every else math.gcd(every, config.log_every),
        "tracking": {"parent": plan.parent, "model": False},
    }
    return _overlaid(config, overlay)


def of_repetition(plan: Plan, config: Config) -> Config:
    """`config` with evaluations during the run, as a child of the sweep's MLflow run."""
    every = config.evaluate_every or math.ceil(config.rounds / NUM_EVALUATIONS)
    return _overlaid(config, {"evaluate_every": every, "tracking": {"parent": plan.parent, "model": False}})


def of_best(plan: Plan, base: Config, path: Path) -> Config:
    """The configuration of the trial in the run folder `path`, with the bookkeeping fields of the recipe."""
    recorded, _ = folder.read_config(path)
    return _overlaid(recorded, bookkeeping(base))


def recorded(plan: Plan, path: Path) -> Config:
    """The configuration in a trial's run folder, with the sweep's tracking; the recipe's if the folder has none."""
    config = folder.read_config(path)[0] if (path / "config.yaml").exists() else plan.base
    tracking = {**vars(plan.base.tracking), "parent": plan.parent, "model": False}
    return _overlaid(config, {"tracking": tracking})


def with_seed(config: Config, seed: int) -> Config:
    """`config` with another seed."""
    return _overlaid(config, {"seed": seed})


def _overlaid(config: Config, overlay: dict[str, Any]) -> Config:
    return build(parse.merge(to_dict(config), overlay))
