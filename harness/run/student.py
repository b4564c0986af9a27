"""The result of a run: the student's weights, and plain data from which its network is built again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from harness import files
from harness import task as tasks
from harness.config import PRUNED
from harness.errors import UserError
from harness.networks import build, cutting, own_file, weights
from harness.run import given
from harness.run.folder import read_config

SCHEMA = 1
"""Version of student.json; increased only when the meaning of a field changes."""

WEIGHTS, DESCRIPTION = "student.safetensors", "student.json"

KEYS = ("task", "network", "arguments", "classes", "class_names", "preprocessing", "source", "sha256")
"""What student.json holds beside `schema`."""


def write_student(folder: Path, module: nn.Module, record: Mapping[str, Any]) -> None:
    """Writes student.safetensors, and student.json: `record` with `schema` and the weights' `sha256` added.

    `record` holds task, network, arguments, classes, class_names, preprocessing (`dataclasses.asdict`) and `source`:
    `files.file_record` of a user's own network file, or None. For a pruned student there is `pruned` too: network and
    arguments of its teacher, whose file `source` then is, and the structure (`harness.networks.cutting`). Raises
    UserError where the folder cannot be written.
    """
    path = folder / WEIGHTS
    save_weights(module, path)
    content = {"schema": SCHEMA, **record, "sha256": files.sha256(path)}
    files.write(folder / DESCRIPTION, json.dumps(content, indent=1) + "\n")


def load_student(run: str | Path, module: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The student of a run folder, in eval mode on the CPU, and its student.json.

    `module`: a student that was given from Python, or the teacher of a pruned one, whose name does not rebuild it; a
    copy gets the weights. Raises UserError where the folder is no run's, unfinished or damaged, or the user's network
    file, or the module, is not the same.
    """
    run = Path(run)
    record = _read_record(run)
    if record["source"]:
        _check_source(run, record["source"])
    path = run / WEIGHTS
    if files.sha256(path) != record["sha256"]:
        raise UserError(f"{path} is not the file that {DESCRIPTION} describes: it was changed or is damaged")
    whole = record.get("pruned") or record  # a pruned student is what is left of this network
    if module is None:
        channels = 1 if record["preprocessing"]["channels"] == "gray" else 3
        source = record["source"] and {**record["source"], "path": run / record["source"]["path"]}
        name = own_file.located(whole["network"], source)
        task, arguments = tasks.load(record["task"]), build.without_weights(name, whole["arguments"])
        module = build.network(task, name, record["classes"], channels, arguments)
    else:
        role = "teacher" if "structure" in whole else "student"
        module = given.rebuilt(run, role, module, *read_config(run))
    if "structure" in whole:
        cutting.cut(module, whole["structure"])
    weights.load(module, path, record["network"])
    return module.eval(), record


def save_weights(module: nn.Module, path: Path) -> None:
    """All parameters and buffers by name, atomically."""
    files.write(path, weights.serialise(module))  # safetensors' own file writer names no reason when the disk is full


def _read_record(run: Path) -> dict[str, Any]:
    """The content of student.json."""
    path = run / DESCRIPTION
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        schema = record["schema"]
    except FileNotFoundError:
        if (run / "config.yaml").exists():
            raise UserError(f"{run} is unfinished, it has no student yet: run `ddad distill` again") from None
        raise UserError(f"{run} is not a run folder: it has no {DESCRIPTION}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): expected what a finished run wrote") from None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema!r}, this version reads {SCHEMA}: use the version that wrote it")
    if missing := [key for key in KEYS if key not in record]:
        raise UserError(f"{path} lacks {', '.join(missing)}: expected what a finished run wrote")
    if record["network"] == PRUNED and not {"network", "arguments", "structure"} <= set(record.get("pruned") or {}):
        raise UserError(f"{path} lacks what is left of the pruned network: expected what a finished run wrote")
    return record


def _check_source(run: Path, source: Mapping[str, Any]) -> None:
    """The user's network file is where it was, and the same."""
    path = run / source["path"]  # an absolute path, or beside an exported student
    if not path.exists():
        raise UserError(f"{path}, the student's own network file, is gone: put it back to rebuild the student")
    if files.sha256(path) != source["sha256"]:
        raise UserError(f"{path}, the student's own network file, was changed since the run: put the old one back")
