"""Training a teacher: the supervised run that does it, and the file that its student is copied to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import config as config_module
from harness import files
from harness import task as tasks
from harness.config import PRETRAINED, UNTRAINED, Config
from harness.config.parse import merge
from harness.errors import UserError
from harness.networks import hub
from harness.resolve import file_name
from harness.training.data import TrainingBatches

INPUT = ("input.size", "data.size", "teacher.arguments", "teacher.channels", "teacher.mean", "teacher.std")
"""Settings of a teacher's network and its images, beside `teach.*`."""


def supervised_config(config: Config) -> Config:
    """The supervised run that trains a configuration's teacher: SGD with momentum .9 under a cosine."""
    if config.data.name == "none":
        raise UserError("data.name=none: a teacher is taught on real data; name a data set")
    teach = config.teach
    data = tasks.load(config.task).dataset(config, "train", augment=True)
    per_epoch = TrainingBatches(data, teach.batch_size, teach.seed).per_epoch
    over = {
        "method": "supervised",
        "variant": "paper",
        "recipe": f"teach-{config.data.name}-{file_name(config.teacher.network)}",
        "seed": teach.seed,
        "batch_size": teach.batch_size,
        "rounds": teach.epochs * per_epoch,
        "log_every": per_epoch,
        "checkpoint": {"every": per_epoch},
        "teach": {"automatic": False},
        "teacher": {
            "checkpoint": UNTRAINED,
            "mean": config.teacher.mean,
            "std": config.teacher.std,
            "channels": config.teacher.channels,
        },
        "student": {
            "network": config.teacher.network,
            "arguments": config.teacher.arguments,
            "lr": teach.lr,
            "weight_decay": teach.weight_decay,
        },
    }
    # What belongs to the generator and the student of the data-free run is left at its defaults.
    left_out = (
        "weights", "student", "generator", "generator_steps", "shared_latents", "replay", "inversion", "teacher",
    )  # fmt: skip
    kept = {key: value for key, value in config_module.to_dict(config).items() if key not in left_out}
    return config_module.build(merge(kept, over))


def target(config: Config) -> Path:
    """The file that the configuration's teacher is to be written to."""
    checkpoint = config.teacher.checkpoint
    if not checkpoint or checkpoint in (UNTRAINED, PRETRAINED) or checkpoint.startswith(hub.PREFIX):
        raise UserError(f"teacher.checkpoint={checkpoint!r}: expected the file that the teacher is to be written to")
    if not checkpoint.endswith(".safetensors"):
        raise UserError(f"teacher.checkpoint={checkpoint!r}: a teacher is written as .safetensors; give such a path")
    return Path(checkpoint)


@contextmanager
def lock(target: Path) -> Iterator[None]:
    """Inside, no other run teaches the teacher of this file; one that wants to waits until this one is done."""
    with files.lock(target.with_name(f".{target.name}.lock"), wait=True):
        yield


def copy_student(run: Path, target: Path, config: Config) -> None:
    """Copies the student of a finished run to the teacher's file, and notes beside it by which settings it was taught.

    `config` is that of the run for which it is taught.
    """
    with files.atomic(target) as temporary:
        shutil.copyfile(run / "student.safetensors", temporary)
    content = {"sha256": files.sha256(target), "settings": _settings(config)}
    files.write(note(target), json.dumps(content, indent=1) + "\n")


def check_note(config: Config, warn: Callable[[str], None]) -> None:
    """Warns where the teacher's file was taught with other settings than those of `config`, which do not change it."""
    file = Path(str(config.teacher.checkpoint))
    if not config.teach.automatic or not file.is_file():
        return
    try:
        content = json.loads(note(file).read_text())
        before, same = content["settings"], content["sha256"] == files.sha256(file)
    except (OSError, ValueError, TypeError, KeyError):  # not taught here
        return
    now = json.loads(json.dumps(_settings(config)))
    differing = [f"{path}={before[path]}, here {now[path]}" for path in now if before.get(path, now[path]) != now[path]]
    if same and differing:
        warn(f"{file} was taught with {'; '.join(differing[:3])}: it is used as it is; to teach it anew, delete it")


def note(weights: Path) -> Path:
    """The file beside a teacher's weights in which `copy_student` notes by which settings it was taught."""
    return weights.with_suffix(".json")


def _settings(config: Config) -> dict[str, Any]:
    """What a teacher is taught by, by dotted path."""
    flat = config_module.flat(config)
    chosen = [path for path in flat if path.startswith("teach.") and path != "teach.automatic"]
    return {path: flat.get(path) for path in (*chosen, *INPUT)}
