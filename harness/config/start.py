"""Checks of the student's initial weights and of the shares of a pruned student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config.networks import FRESH, FROM_TEACHER, PRUNED
from harness.errors import UserError, nearest

SHARES = ("macs", "parameters", "channels", "blocks")
"""Quantities whose remaining share can be set for a pruned student; at most one of the first three."""


def check(values: Mapping[str, Any]) -> None:
    """Raises UserError for the first value of {dotted path: value} that does not fit the others."""
    start, pruned = values["student.start"], values["student.network"] == PRUNED
    if pruned and start != FRESH:
        raise UserError(
            f"student.start={start} with student.network={PRUNED}, whose weights are what it keeps of the teacher's: "
            "set one of them"
        )
    chosen = [path for path in values if f"{path}.".startswith("student.blocks.") and values[path] is not None]
    if chosen and start != FROM_TEACHER:
        raise UserError(f"{chosen[0]}={values[chosen[0]]!r}: expected null unless student.start={FROM_TEACHER}")
    if pruned:
        prefix = "student.arguments."
        _check_shares({path.removeprefix(prefix): values[path] for path in values if path.startswith(prefix)})


def _check_shares(arguments: Mapping[str, Any]) -> None:
    for key, value in arguments.items():
        if key not in SHARES:
            raise UserError(
                f"student.arguments.{key}: student.network={PRUNED} takes no such argument{nearest(key, SHARES)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"student.arguments.{key}={value!r}: expected the share that remains, a number in (0, 1)")
    if len(several := [key for key in SHARES[:3] if key in arguments]) > 1:
        raise UserError(f"student.arguments: expected one of {', '.join(SHARES[:3])}, got {' and '.join(several)}")
    if not arguments:
        raise UserError(
            f"student.network={PRUNED}: expected the share of the teacher that remains, such as "
            f"student.arguments.macs=0.5; known: {', '.join(SHARES)}"
        )
