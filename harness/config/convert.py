"""A Config from plain data and back, and which of its fields determine the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from harness.config import check, parse, start
from harness.config.fields import SCHEMA, Config, num_channels
from harness.config.parse import Overlay
from harness.errors import UserError

BOOKKEEPING = frozenset(
    {"distributed", "tracking", "checkpoint", "pictures", "log_every", "log_seconds", "evaluate_every", "max_minutes",
     "data.workers", "replay.place"}
)  # fmt: skip
"""Fields, and groups of fields, that do not determine the result: only these may change when a run is resumed."""


def build(overlay: Overlay) -> Config:
    """The Config that `overlay` describes over the field defaults.

    Raises UserError for an unknown path, a value of the wrong type, one out of range, or another schema.
    """
    schema = overlay.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise UserError(
            f"this configuration has schema {schema!r}, this version reads schema {SCHEMA}: "
            "use the version of ddad that wrote it, or start again from its recipe"
        )
    config = parse.build(Config, overlay)
    check.check(flat(config), num_channels(config))
    start.check(flat(config))
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The whole configuration as nested plain data; `build` gives back an equal Config."""
    return dataclasses.asdict(config)


def flat(config: Config) -> dict[str, Any]:
    """The whole configuration as {dotted path: value}."""

    def walk(node: Overlay, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value and prefix + key != "data.labels":  # its keys are not field names
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(to_dict(config), ""))


def is_bookkeeping(path: str) -> bool:
    """Whether the field at a dotted path is one of BOOKKEEPING, by itself or with its group."""
    return path in BOOKKEEPING or path.partition(".")[0] in BOOKKEEPING


def bookkeeping(config: Config) -> dict[str, Any]:
    """The fields of BOOKKEEPING as an overlay."""
    found: Overlay = {}
    for path in BOOKKEEPING:
        group, _, name = path.partition(".")
        value = to_dict(config)[group]
        found = parse.merge(found, {group: {name: value[name]} if name else value})
    return dict(found)


def normalised(config: Config) -> Config:
    """The same run with the default value in every field of BOOKKEEPING; these do not change its results."""
    return build(parse.merge(to_dict(config), bookkeeping(Config())))


def identity(config: Config) -> str:
    """Eight hexadecimal digits over every field that determines the result."""
    kept = {key: value for key, value in to_dict(normalised(config)).items() if key not in BOOKKEEPING}
    kept |= {path: flat(config)[path] for path in _of_processes(config)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _of_processes(config: Config) -> list[str]:
    """Fields of BOOKKEEPING that determine the result, since batch statistics are those of each process's part."""
    return [] if config.sync_batch_norm else ["distributed.world_size"]


def differences(a: Config, b: Config) -> list[str]:
    """The dotted paths of fields that determine the result and differ between two configurations."""
    left, right = flat(a), flat(b)
    paths = sorted(left.keys() | right.keys())
    absent = object()  # an argument of null is not one that was not given
    found = [path for path in paths if left.get(path, absent) != right.get(path, absent)]
    return [path for path in found if not is_bookkeeping(path) or path in _of_processes(a)]
