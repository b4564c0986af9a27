"""Ranges of the values of a configuration; every message has the value that was given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from harness.algorithm.generators import GENERATORS
from harness.algorithm.losses import DISCREPANCIES
from harness.errors import UserError

COLOUR = re.compile("#[0-9a-fA-F]{6}")
"""A colour as a key of `data.labels`."""


Values = Mapping[str, Any]
"""The whole configuration as {dotted path: value}."""


def check(values: Values, num_channels: int) -> None:
    """Raises UserError for the first of `values` that is out of range, for images of C channels."""
    _check_numbers(values)
    _check_names(values)
    _check_replay_and_average(values)
    _check_processes(values)
    _check_images(values, num_channels)
    for player in ("student", "generator"):
        _check_optimizer(values, player)
    _check_image_files(values["data.background"], values["data.labels"], values["classes"])
    for path in values:
        if path.startswith("weights.") or path in ("student.attention", "student.hints", "student.features"):
            _check_weight(path, values[path])
    _check_contrast(values["weights.contrastive"])


def refuse_password(uri: str) -> None:
    """UserError for a tracking URI of a new run that holds a password; run folders of earlier versions may have one."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UserError(f"tracking.uri: expected a URI ({error})") from None  # a password may be in it
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise UserError(
            "tracking.uri holds a password, which the run folder would keep: leave it out; MLflow reads "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PostgreSQL PGPASSWORD"
        )


def _need(values: Values, path: str, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"{path}={values[path]!r}: expected {expected}")


def _check_numbers(values: Values) -> None:
    for path in ("rounds", "batch_size", "student_steps", "generator_steps", "log_every", "checkpoint.every",
                 "checkpoint.keep", "micro_batches", "generator.latent_size", "teach.epochs", "teach.batch_size",
                 "inversion.steps", "inversion.rounds", "inversion.bank"):  # fmt: skip
        _need(values, path, values[path] >= 1, "at least 1")
    for path in ("seed", "teach.seed", "evaluate_every", "data.workers", "generator.width", "student.clip",
                 "generator.clip", "generator.warmup", "generator.restart", "student.reconstruct",
                 "student.weight_decay", "generator.weight_decay", "teach.weight_decay"):  # fmt: skip
        _need(values, path, 0 <= values[path] < math.inf, "at least 0")
    for path in ("student.lr", "generator.lr", "teach.lr", "student.gamma", "generator.gamma", "temperature"):
        _need(values, path, 0 < values[path] < math.inf, "a number above 0")
    for path in ("student_temperature", "inversion.latent_lr"):
        _need(values, path, values[path] is None or 0 < values[path] < math.inf, "a number above 0, or null")
    distance = values["generator.class_distance"]
    _need(values, "generator.class_distance", 0 <= distance < math.inf, "a distance of at least 0")
    _need(values, "inversion.momentum", 0 <= values["inversion.momentum"] < 1, "a number in [0, 1)")
    after = values["adversarial_after"]
    _need(values, "adversarial_after", 0 <= after < 1, "a share of the rounds, from 0 to below 1")
    until = values["student.features_until"]
    _need(values, "student.features_until", 0 < until <= 1, "a share of the rounds, above 0 to 1")
    _need(values, "classes", values["classes"] >= 2, "the number of classes, at least 2")
    divides = values["batch_size"] % values["micro_batches"] == 0
    _need(values, "micro_batches", divides, f"a divisor of batch_size={values['batch_size']}")
    for path in ("max_minutes", "checkpoint.minutes", "log_seconds"):
        _need(values, path, values[path] is None or values[path] > 0, "above 0, or null")


def _check_names(values: Values) -> None:
    named: dict[str, Iterable[str]] = {
        "discrepancy": DISCREPANCIES,
        "student_discrepancy": DISCREPANCIES,
        "generator.network": GENERATORS,
    }
    for path, known in named.items():
        _need(values, path, values[path] in (None, *known), f"one of {', '.join(known)}")


def _check_replay_and_average(values: Values) -> None:
    share, strategy = values["replay.share"], values["distributed.strategy"]
    _need(values, "replay.share", 0 <= share < 1, "a share of the student's turns, from 0 to below 1")
    _need(
        values, "replay.mixup", not values["replay.mixup"] or values["replay.augment"],
        "replay.augment=true, with which the teacher runs on the images again",
    )  # fmt: skip
    _need(values, "replay.memory", 0 < values["replay.memory"] < math.inf, "MiB above 0")
    sharded = f"0 under distributed.strategy={strategy}, where no process holds the whole network"
    for path in ("student.average", "generator.average"):
        _need(values, path, 0 <= values[path] < 1, "a share of the run's updates, from 0 to below 1")
        _need(values, path, not (values[path] and strategy in ("fsdp", "deepspeed")), sharded)
    # An average over weights from before and after a restart is of no generator that there was.
    restarts = f"0 with generator.restart={values['generator.restart']}"
    _need(values, "generator.average", not (values["generator.average"] and values["generator.restart"]), restarts)


def _check_processes(values: Values) -> None:
    wanted, least = values["distributed.world_size"], values["distributed.min_world_size"]
    _need(values, "distributed.world_size", wanted is None or wanted >= 1, "at least 1, or null")
    fits = least is None or (wanted is not None and 1 <= least <= wanted)
    _need(values, "distributed.min_world_size", fits, f"1 up to distributed.world_size={wanted}")
    _need(values, "distributed.timeout", 0 < values["distributed.timeout"] < math.inf, "seconds above 0")
    for path in ("distributed.zero.generator", "distributed.zero.student"):
        _need(values, path, values[path] in (0, 1, 2, 3), "a ZeRO stage, 0 to 3")


def _check_images(values: Values, num_channels: int) -> None:
    for path in ("input.size", "data.size"):
        size = values[path]
        sides = size if isinstance(size, list) else [size, size]
        fits = len(sides) == 2 and (size is None or min(sides) >= 1)
        _need(values, path, fits, "a side or [height, width] in pixels")
    for path in ("teacher.mean", "teacher.std"):
        fits = values[path] is None or len(values[path]) == num_channels
        _need(values, path, fits, f"{num_channels} numbers for {values['teacher.channels']} images")
    inside = all(0 <= level <= 1 for level in values["teacher.mean"] or [])
    _need(
        values, "teacher.mean", inside,
        "numbers from 0 to 1, as pixels are: divide mean and std by 255 where they are of pixels from 0 to 255",
    )  # fmt: skip
    _need(values, "teacher.std", all(0 < each < math.inf for each in values["teacher.std"] or []), "numbers above 0")


def _check_optimizer(values: Values, player: str) -> None:
    betas, falls = values[f"{player}.betas"], values[f"{player}.milestones"]
    fits = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    _need(values, f"{player}.betas", fits, "two numbers in [0, 1)")
    momentum = values[f"{player}.momentum"]
    _need(values, f"{player}.momentum", 0 <= momentum < 1, "a number in [0, 1)")
    _need(values, f"{player}.momentum", momentum > 0 or not values[f"{player}.nesterov"], "above 0 for nesterov")
    falling = values[f"{player}.schedule"] != "multistep" or bool(falls)
    _need(values, f"{player}.milestones", falling, f"fractions of the run, for {player}.schedule=multistep")
    rising = falls == sorted(falls) and all(0 < fall < 1 for fall in falls)
    _need(values, f"{player}.milestones", rising, "rising fractions of the run, each in (0, 1)")


def _check_image_files(background: list[int] | None, labels: Mapping[str, int], classes: int) -> None:
    if background is not None and (len(background) != 3 or not all(0 <= level <= 255 for level in background)):
        raise UserError(f"data.background={background}: expected [red, green, blue], each 0 to 255, or null")
    kinds = {"colour" if COLOUR.fullmatch(key) else "value" if key.isdecimal() else key for key in labels}
    wanted = "values, such as {0: 0, 255: 1}, or colours, such as {'#000000': 0, '#800000': 1}, each once"
    if kinds not in ({"colour"}, {"value"}, set()) or len({key.lower() for key in labels}) < len(labels):
        raise UserError(f"data.labels={dict(labels)}: expected {wanted}")
    for key, index in labels.items():
        if not 0 <= index < classes and index != 255:
            expected = f"expected 0 to {classes - 1}, or 255 for void"
            raise UserError(f"data.labels={dict(labels)}: {key} is class {index}, {expected}")


def _check_contrast(weight: float | list[list[float]]) -> None:
    """Earlier images of rounds without the term have no features, and would count as images that are all alike."""
    if isinstance(weight, list) and 0 < sum(pair[1] > 0 for pair in weight) < len(weight):
        raise UserError(f"weights.contrastive={weight!r}: expected values above 0, or 0 in all rounds")


def _check_weight(path: str, weight: float | list[list[float]]) -> None:
    if not isinstance(weight, list):
        if not 0 <= weight < math.inf:
            raise UserError(f"{path}={weight!r}: expected a number of at least 0, or a list of [round, value]")
        return
    pairs = all(len(pair) == 2 and math.isfinite(pair[0]) and 0 <= pair[1] < math.inf for pair in weight)
    starts = [pair[0] for pair in weight if pair]
    if not weight or not pairs or starts[0] != 0 or starts != sorted(set(starts)):
        expected = "a list of [round, value], rounds rising from 0, values at least 0"
        raise UserError(f"{path}={weight!r}: expected {expected}")
