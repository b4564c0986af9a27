"""The run folder: its configuration, its environment, its result. `result.json` is written last."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from harness import config as config_module
from harness import files
from harness.config import Config
from harness.errors import UserError
from harness.networks import own_file, sources
from harness.networks.cutting import Structure
from harness.networks.given import NOTHING, Given
from harness.run import given

VERSIONS = ("torch", "torchvision", "accelerate", "timm", "torchmetrics", "deepspeed", "mlflow", "ray", "numpy")

STRUCTURE = "structure.json"
"""What is kept of the teacher in a pruned student."""


def default(config: Config) -> Path:
    """runs/<recipe>-<hash>: the same configuration finds its own run again."""
    return Path("runs") / f"{config.recipe}-{config_module.identity(config)}"


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Locks the folder for this process; UserError if another process has locked it or it cannot be written."""
    entered = False
    try:
        with files.lock(folder / ".lock"):
            entered = True
            files.sweep(folder)
            yield
    except BlockingIOError:
        if entered:
            raise
        raise UserError(f"{folder} is in use by another process: wait for it, or give another --output") from None


def open_run(folder: Path, config: Config, modules: Given = NOTHING, pinned: Config | None = None) -> None:
    """Records the run in a new folder, or checks that the folder belongs to this run; `modules`: given from Python.

    `pinned`: the same configuration with every `hub:` at its commit (`sources.pinned`).
    """
    records = file_records(pinned or config) | given.records(folder, modules)
    _check_owner(folder, config, records)
    content = {**config_module.to_dict(config), "records": records}
    files.write(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False))
    files.write(folder / "environment.json", json.dumps(environment(), indent=1) + "\n")
    given.keep(folder, modules)


def finished(folder: Path, config: Config, modules: Given = NOTHING) -> dict[str, Any] | None:
    """The result of this run if it is finished, else None; UserError if the folder belongs to another run.

    Files that it began with may be gone by then; those that are there have to be the same.
    """
    try:
        if not folder.exists():
            return None
        _check_owner(folder, config, given.records(folder, modules))
        found = result(folder)
        for role, record in recorded(folder).items() if found else ():
            present = "repository" not in record and Path(record["path"]).exists()  # a commit of a hub cannot change
            if present and (problem := sources.change(role, record)):
                raise UserError(f"{folder}: {problem}: put that one back, or give another --output")
    except OSError as error:
        raise UserError(f"{folder} cannot be a run folder: {error.strerror}") from None
    return found


def _check_owner(folder: Path, config: Config, records: Mapping[str, Mapping[str, Any]]) -> None:
    if not (folder / "config.yaml").exists():
        if foreign := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise UserError(f"{folder} holds something else ({foreign[0]}): give another --output")
        return
    old, old_records = read_config(folder)
    if differing := config_module.differences(old, config):
        changes = _changes(old, config, differing)
        raise UserError(f"{folder} belongs to another run ({changes}): give another --output")
    for role, path in given.ROLES.items():
        if "logits" in records.get(path, {}):
            given.check(folder, role, records[path], old_records.get(path, {}))
    for field, record in records.items():
        if record["sha256"] != old_records.get(field, {}).get("sha256"):
            raise UserError(
                f"{folder}: {record['path']} ({field}) is not the file this run began with: "
                "put that one back, or give another --output"
            )


def read_config(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration in a run folder and its file records {field: {path, size, sha256}}."""
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} is not a run folder: its config.yaml cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{folder} is not a run folder: its config.yaml holds no configuration")
    records = content.pop("records", None)
    if not isinstance(records, dict):
        raise UserError(f"{folder} is not a run folder: its config.yaml has no records of the files it needs")
    return config_module.build(content), records


def file_records(config: Config) -> dict[str, dict[str, Any]]:
    """Path, size and sha256 of every file outside the run folder that the result depends on, by role."""
    found = sources.records(config)
    for role, name in (("teacher.network", config.teacher.network), ("student.network", config.student.network)):
        if source := own_file.source_file(name):
            found[role] = files.file_record(source)
    if config.generator.embeddings:
        found["generator.embeddings"] = files.file_record(Path(config.generator.embeddings))
    return found


def recorded(folder: Path) -> dict[str, Any]:
    """The file records of a run in its folder; none where there is no run yet."""
    return read_config(folder)[1] if (folder / "config.yaml").exists() else {}


def structure(folder: Path) -> Structure | None:
    """What is kept of the teacher in this run's pruned student; None where nothing is recorded yet."""
    path = folder / STRUCTURE
    try:
        content = json.loads(path.read_text())
        found: Structure = {"kept": content["kept"], "dropped": content["dropped"]}
        same = content["sha256"] == _digest(found)
    except (FileNotFoundError, NotADirectoryError):  # `open_run` refuses what is no folder
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): give another --output") from None
    if not same:
        raise UserError(f"{path} is not what this run began with, it was changed: give another --output")
    return found


def write_structure(folder: Path, found: Structure) -> None:
    """Records what is kept of the teacher in the student, from which a resumed run builds it."""
    content = {**found, "sha256": _digest(found)}
    files.write(folder / STRUCTURE, json.dumps(content) + "\n")


def _digest(found: Structure) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def result(folder: Path) -> dict[str, Any] | None:
    """The result of a run; None if it is not finished."""
    try:
        content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'result.json'} cannot be read: {error}") from None
    if not (isinstance(content, dict) and {"student", "teacher", "wall_seconds"} <= content.keys()):
        raise UserError(f"{folder / 'result.json'} is not what a finished run wrote: delete it, and run it again")
    return content


def write_result(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes result.json, which marks the run as complete."""
    files.write(folder / "result.json", json.dumps(content, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Versions, commit, hardware, threads and command of this process."""
    return {
        "python": platform.python_version(),
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        "commit": commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "command": sys.argv,
    }


def commit() -> str | None:
    """The commit of the code that runs, with `+` where the tree has changes; None outside a git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _changes(old: Config, new: Config, differing: list[str]) -> str:
    before, after = config_module.flat(old), config_module.flat(new)
    shown = [f"{path} is {before.get(path)!r} there, {after.get(path)!r} here" for path in differing[:3]]
    return ", ".join(shown) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
