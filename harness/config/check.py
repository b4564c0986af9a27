"""What values a configuration may hold beyond their types; every message has the value that was given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.algorithm.generators import GENERATORS
from harness.algorithm.losses import DISCREPANCIES
from harness.errors import UserError

COLOUR = re.compile("#[0-9a-fA-F]{6}")
"""A colour as a key of `data.labels`."""


def check(values: Mapping[str, Any], num_channels: int) -> None:
    """Raises UserError for the first of {dotted path: value} that is out of range for images of C channels."""

    def need(holds: bool, path: str, expected: str) -> None:
        if not holds:
            raise UserError(f"{path}={values[path]!r}: expected {expected}")

    for path in ("rounds", "batch_size", "student_steps", "log_every", "checkpoint.every", "checkpoint.keep",
                 "micro_batches", "generator.latent_size", "teach.epochs", "teach.batch_size", "inversion.steps",
                 "inversion.rounds", "inversion.bank"):  # fmt: skip
        need(values[path] >= 1, path, "at least 1")
    for path in ("seed", "teach.seed", "evaluate_every", "data.workers", "generator.width", "student.clip",
                 "generator.clip", "student.weight_decay", "generator.weight_decay", "teach.weight_decay"):  # fmt: skip
        need(values[path] >= 0, path, "at least 0")
    for path in ("student.lr", "generator.lr", "teach.lr", "student.gamma", "generator.gamma", "temperature"):
        need(0 < values[path] < math.inf, path, "a number above 0")
    for path in ("student_temperature", "inversion.latent_lr"):
        need(values[path] is None or 0 < values[path] < math.inf, path, "a number above 0, or null")
    need(0 <= values["inversion.momentum"] < 1, "inversion.momentum", "a number in [0, 1)")
    need(0 <= values["adversarial_after"] < 1, "adversarial_after", "a share of the rounds, from 0 to below 1")
    named: dict[str, Iterable[str]] = {
        "discrepancy": DISCREPANCIES,
        "student_discrepancy": DISCREPANCIES,
        "generator.network": GENERATORS,
    }
    for path, known in named.items():
        need(values[path] in (None, *known), path, f"one of {', '.join(known)}")
    need(0 <= values["replay.share"] < 1, "replay.share", "a share of the student's turns, from 0 to below 1")
    need(0 < values["replay.memory"] < math.inf, "replay.memory", "MiB above 0")
    need(0 <= values["student.average"] < 1, "student.average", "a share of the run's updates, from 0 to below 1")
    shards = values["distributed.strategy"] in ("fsdp", "deepspeed")
    sharded = f"0 under distributed.strategy={values['distributed.strategy']}, where no process holds the whole network"
    need(not (values["student.average"] and shards), "student.average", sharded)
    need(values["classes"] >= 2, "classes", "the number of classes, at least 2")
    parts = values["micro_batches"]
    need(values["batch_size"] % parts == 0, "micro_batches", f"a divisor of batch_size={values['batch_size']}")
    wanted, least = values["distributed.world_size"], values["distributed.min_world_size"]
    need(wanted is None or wanted >= 1, "distributed.world_size", "at least 1, or null")
    fits = least is None or (wanted is not None and 1 <= least <= wanted)
    need(fits, "distributed.min_world_size", f"1 up to distributed.world_size={wanted}")
    need(0 < values["distributed.timeout"] < math.inf, "distributed.timeout", "seconds above 0")
    for path in ("distributed.zero.generator", "distributed.zero.student"):
        need(values[path] in (0, 1, 2, 3), path, "a ZeRO stage, 0 to 3")
    minutes = values["max_minutes"]
    need(minutes is None or minutes > 0, "max_minutes", "above 0, or null")
    for path in ("input.size", "data.size"):
        size = values[path]
        sides = size if isinstance(size, list) else [size, size]
        fits = len(sides) == 2 and (size is None or min(sides) >= 1)
        need(fits, path, "a side or [height, width] in pixels")
    for path in ("teacher.mean", "teacher.std"):
        fits = values[path] is None or len(values[path]) == num_channels
        need(fits, path, f"{num_channels} numbers for {values['teacher.channels']} images")
    need(min(values["teacher.std"] or [1.0]) > 0, "teacher.std", "numbers above 0")
    for player in ("student", "generator"):
        betas, falls = values[f"{player}.betas"], values[f"{player}.milestones"]
        need(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), f"{player}.betas", "two numbers in [0, 1)")
        momentum = values[f"{player}.momentum"]
        need(0 <= momentum < 1, f"{player}.momentum", "a number in [0, 1)")
        need(momentum > 0 or not values[f"{player}.nesterov"], f"{player}.momentum", "above 0 for nesterov")
        rising = falls == sorted(falls) and all(0 < fall < 1 for fall in falls)
        need(rising, f"{player}.milestones", "rising fractions of the run, each in (0, 1)")
    _check_image_files(values["data.background"], values["data.labels"], values["classes"])
    for path in [*(path for path in values if path.startswith("weights.")), "student.attention"]:
        _check_weight(path, values[path])


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


def _check_weight(path: str, weight: float | list[list[float]]) -> None:
    if not isinstance(weight, list):
        if not 0 <= weight < math.inf:
            raise UserError(f"{path}={weight!r}: expected a number of at least 0, or a list of [round, value]")
        return
    pairs = all(len(pair) == 2 and 0 <= pair[1] < math.inf for pair in weight)
    starts = [pair[0] for pair in weight if pair]
    if not weight or not pairs or starts[0] != 0 or starts != sorted(set(starts)):
        expected = "a list of [round, value], rounds rising from 0, values at least 0"
        raise UserError(f"{path}={weight!r}: expected {expected}")
