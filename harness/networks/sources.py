"""Where the weights of a configuration come from: a file, a model hub, or a library's published ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import files
from harness.config import FRESH, FROM_TEACHER, MEMORY, PRETRAINED, UNTRAINED, Config
from harness.errors import UserError
from harness.networks import checkpoints, hub, pretrained

Records = Mapping[str, Mapping[str, Any]]
"""{role: record of a file}, as a run's config.yaml holds them."""


def present(reference: str) -> bool:
    """Whether the weights exist or can be downloaded: only a file of the user's may not be there yet."""
    return reference in (UNTRAINED, PRETRAINED, MEMORY) or reference.startswith(hub.PREFIX) or Path(reference).exists()


def locate(reference: str) -> Path:
    """The file on this machine that a path or `hub:` names, downloaded where it has to be."""
    return hub.fetch(hub.pin(hub.parse(reference))) if reference.startswith(hub.PREFIX) else Path(reference)


def names(config: Config) -> dict[str, str]:
    """{role: what names its weights} of the weights that a run begins with, of those that come from elsewhere."""
    found = {"teacher.checkpoint": config.teacher.checkpoint, "student.start": config.student.start}
    return {role: name for role, name in found.items() if name and name not in (UNTRAINED, MEMORY, FRESH, FROM_TEACHER)}


def pinned(config: Config, records: Records, say: Callable[[str], None] = lambda line: None) -> Config:
    """The configuration with every `hub:` at one commit: that of a run's `records`, else the present one.

    What it names is then on this machine. UserError where it cannot be had.
    """
    for role, name in names(config).items():
        if name == PRETRAINED:
            pretrained.file(config.teacher.network, config.teacher.arguments)
        if not name.startswith(hub.PREFIX):
            continue
        reference, record = hub.parse(name), records.get(role, {})
        if record.get("repository") == reference.repository:
            found = hub.Reference(reference.repository, record["file"], record["revision"])
        else:
            found = hub.pin(reference)
        hub.fetch(found)
        say(f"{role}={name}: {found.file} at commit {str(found.revision)[:8]}")
        player, field = role.split(".")
        changed = dataclasses.replace(getattr(config, player), **{field: str(found)})
        config = dataclasses.replace(config, **{player: changed})
    return config


def records(config: Config) -> dict[str, dict[str, Any]]:
    """By role, {path, size, sha256} of the files of weights that a run begins with; of a hub's also where they are."""
    found: dict[str, dict[str, Any]] = {}
    for role, name in names(config).items():
        if name == PRETRAINED:
            path = pretrained.file(config.teacher.network, config.teacher.arguments)
            found[role] = {**files.file_record(path), "pretrained": config.teacher.network}
        elif name.startswith(hub.PREFIX):
            at = hub.pin(hub.parse(name))
            place = {"repository": at.repository, "file": at.file, "revision": at.revision}
            found[role] = {**files.file_record(*checkpoints.parts(hub.fetch(at))), **place}
        else:
            found[role] = files.file_record(*checkpoints.parts(Path(name)))
    return found


def recorded(record: Mapping[str, Any]) -> str:
    """What names the weights of a record, in any folder: an absolute path, a `hub:` at its commit, or "pretrained"."""
    if "repository" in record:
        return str(hub.Reference(record["repository"], record["file"], record["revision"]))
    return PRETRAINED if "pretrained" in record else str(record["path"])


def change(role: str, record: Mapping[str, Any]) -> str | None:
    """What is wrong with a file on which a run depends, or None."""
    path = Path(record["path"])
    try:
        if "repository" in record:
            path = locate(recorded(record))
        if not path.exists():
            return f"{role} {path} is not there any more"
        same = files.sha256(*checkpoints.parts(path)) == record["sha256"]
    except UserError as error:  # a shard is gone, or the hub cannot be reached
        return f"{role}: {error}"
    return None if same else f"{role} {path} is not the file the run began with"
