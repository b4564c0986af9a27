"""What MLflow's page shows of a run beside its figures: name, source, description, test set."""

from __future__ import annotations

import getpass
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import UNTRAINED, Config
from harness.run import folder as run_folder
from harness.tracking.stores import without_credentials

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
"""The tag that marks an experiment as model training, not as traces of language models."""

MAX_SOURCE_WORDS = 3
"""Words of a command in the page's column *Source*; the description has all."""


@dataclass(frozen=True)
class DataSet:
    """A set of images that a run was scored on."""

    name: str
    digest: str
    """Hexadecimal, at most 36 characters; equal for equal images and labels."""
    root: str
    """Where it was read."""
    profile: Mapping[str, Any]
    """Plain data about it, such as the number of images."""


def run_name(config: Config, folder: Path, tags: Mapping[str, Any]) -> str:
    """Recipe, method, variant and seed; the folder's name where the user or a sweep chose it."""
    words = [config.recipe, config.method, config.variant, f"seed {config.seed}"]
    name = " ".join(filter(None, words))
    if tags.get("kind") == "sweep":
        name = f"sweep of {name}"
    return name if folder.name == run_folder.default(config).name else f"{name} ({folder.name})"


def page_tags(config: Config, folder: Path, commit: str | None) -> dict[str, str | None]:
    """MLflow's own tags: source, commit, user, description. None where a value is not known."""
    command = _command(config)
    return {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": " ".join(command[:MAX_SOURCE_WORDS]),
        "mlflow.source.git.commit": commit.rstrip("+") if commit else None,
        "mlflow.source.git.dirty": json.dumps(commit.endswith("+")) if commit else None,
        "mlflow.user": _user(),
        "mlflow.note.content": _description(config, folder, command),
    }


def dataset_input(data: DataSet) -> DatasetInput:
    """The test set as MLflow holds it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    entity = Dataset(
        data.name, data.digest, "local", json.dumps({"uri": data.root}), profile=json.dumps(dict(data.profile))
    )
    return DatasetInput(entity, [InputTag(MLFLOW_DATASET_CONTEXT, "test")])


def _description(config: Config, folder: Path, command: list[str]) -> str:
    """Markdown: teacher, student, folder, command."""
    teacher = f"**Teacher** `{config.teacher.network}`, weights `{config.teacher.checkpoint}`"
    if config.teacher.checkpoint == UNTRAINED:
        teacher = f"**Teacher** `{config.teacher.network}`, random weights" if config.teacher.network else ""
    parts = [teacher, f"**Student** `{config.student.network}`", f"**Folder** `{folder}`", f"`{shlex.join(command)}`"]
    return "\n\n".join(filter(None, parts))


def _command(config: Config) -> list[str]:
    """The command of this process; a tracking URI in it is shown without name and password."""
    if config.tracking.parent:  # a worker's own command would say nothing
        return ["ddad", "sweep", config.recipe]
    program = Path(sys.argv[0])
    ours = program.name == "__main__.py" and program.parent.name == "harness"
    secret, shown = config.tracking.uri, without_credentials(config.tracking.uri)
    words = [word.replace(secret, shown) if secret else word for word in sys.argv[1:]]
    return ["ddad" if ours else program.name, *words]


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return None
