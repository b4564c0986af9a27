"""From a recipe's name, a file and `path=value` words to one complete Config.

    field defaults < recipe < method's variant < --config FILE < command line

A file that carries `schema` is a resolved configuration: complete, so that neither recipe nor method applies again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from harness import config as config_module
from harness import methods, task
from harness.config import FROM_TEACHER, PRETRAINED, PRUNED, UNTRAINED, Config
from harness.config.check import refuse_password
from harness.config.parse import ALL_PATHS, Overlay, merge, paths
from harness.errors import UserError, nearest


def resolve(
    recipe: str | None = None,
    file: Overlay | None = None,
    overrides: Overlay | None = None,
    given: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Config:
    """The complete configuration of a run; UserError for whatever does not fit.

    `given`: the roles ("teacher", "student") whose modules are in memory; these need no network's name and no file.
    `say` gets a line about the input that the weights of a pretrained teacher expect.
    """
    file, overrides = file or {}, overrides or {}
    own = merge(file, overrides)
    if "schema" in file:
        return _expecting(_finish(_replay(recipe, file, overrides), given), own, say)
    name = recipe or file.get("recipe")
    if not name:
        raise UserError("no recipe was named: give one (`ddad recipes` lists them) or --config with a resolved file")
    task_name, function = task.find_recipe(str(name))
    task.load(str(own.get("task", task_name)))
    for key, value in (("recipe", name), ("task", task_name)):
        if own.get(key, value) != value:
            raise UserError(f"{key}={own[key]!r}: the values are those of recipe {name!r} of {task_name}: name one")
    base = merge({"task": task_name, "recipe": name}, function())
    chosen = merge(base, own)
    method, variant = chosen.get("method", "ddad"), chosen.get("variant", "paper")
    _, values = methods.find(str(method), str(variant))
    return _expecting(_finish(merge(merge(base, values), own), given), own, say)


def _replay(recipe: str | None, file: Overlay, overrides: Overlay) -> Overlay:
    """A resolved file with the command line over it."""
    if recipe and recipe != file.get("recipe"):
        raise UserError(f"recipe {recipe!r} was given with a resolved configuration of recipe {file.get('recipe')!r}")
    for key in ("task", "recipe", "method", "variant"):
        if key in overrides and overrides[key] != file.get(key):
            raise UserError(
                f"{key}={overrides[key]!r} cannot change a resolved configuration, whose other values belong to "
                f"{key}={file.get(key)!r}: start from the recipe instead"
            )
    return merge(file, overrides)


def _finish(overlay: Overlay, given: Collection[str]) -> Config:
    """Builds the Config and fills what follows from other fields."""
    config = config_module.build(overlay)
    refuse_password(config.tracking.uri)
    task.load(config.task)
    method, _ = methods.find(config.method, config.variant)
    for role in ("teacher", "student"):
        absent = not getattr(config, role).network and role not in given
        if absent and (role, config.method) != ("teacher", "supervised"):
            raise UserError(f"{role}.network is not set: name a network, or path/to/file.py:function")
    if not method.has_teacher and (config.student.network == PRUNED or config.student.start == FROM_TEACHER):
        asked = f"network={PRUNED}" if config.student.network == PRUNED else f"start={FROM_TEACHER}"
        raise UserError(f"student.{asked}: method={config.method} has no teacher whose weights the student could take")
    fill: dict[str, Any] = {}
    if config.student_discrepancy is None:
        fill["student_discrepancy"] = config.discrepancy
    if config.teacher.checkpoint is None and "teacher" not in given:
        if config.data.name == "none":
            raise UserError(
                "teacher.checkpoint is not set: give the file of the teacher's weights, "
                f"or teacher.checkpoint={UNTRAINED} to try the machinery with random ones"
            )
        fill["teacher"] = {"checkpoint": default_teacher(config)}
    return config_module.build(merge(config_module.to_dict(config), fill))


def _expecting(config: Config, own: Overlay, say: Callable[[str], None]) -> Config:
    """Channels, mean and std of a pretrained teacher, where the user's `own` has none: a recipe's are another's."""
    if config.teacher.checkpoint != PRETRAINED:
        return config
    from harness.networks import pretrained

    teacher = own.get("teacher")
    chosen = teacher if isinstance(teacher, Mapping) else {}
    if chosen.get("channels") is not None:
        pretrained.check(config)
    published = pretrained.expected(config.teacher.network, config.teacher.arguments)
    found = {key: value for key, value in published.items() if chosen.get(key) is None}
    if changed := {key: value for key, value in found.items() if value != getattr(config.teacher, key)}:
        values = ", ".join(f"teacher.{key}={value}" for key, value in changed.items())
        say(f"{values}: as the weights expect that {config.teacher.network} is published with")
    return config_module.build(merge(config_module.to_dict(config), {"teacher": found}))


def file_name(network: str) -> str:
    """A network's name as part of a file's."""
    return network.replace("/", "_").replace(":", "_")


def default_teacher(config: Config) -> str:
    """Where `ddad teach` writes the teacher of a configuration that names no checkpoint."""
    return f"teachers/{config.data.name}-{file_name(config.teacher.network)}.safetensors"


def untrained(config: Config) -> Config:
    """The configuration with a teacher of random weights."""
    change = {"teacher": {"checkpoint": UNTRAINED}}
    return config_module.build(merge(config_module.to_dict(config), change))


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`path=value` words, each value in YAML's spelling, as a nested overlay."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for word in words:
        if "=" not in word or word.startswith(("=", "-")):
            known = nearest(word, paths(Config), ALL_PATHS) if not word.startswith("-") else ""
            before = words[: list(words).index(word)]
            if any(each.count("[") + each.count("{") > each.count("]") + each.count("}") for each in before):
                known = ": a value has no spaces, or stands in quotes: 'teacher.mean=[0.48, 0.45, 0.40]'"
            raise UserError(f"{word!r}: expected path=value{known}")
    overlay: dict[str, Any] = {}
    for word in words:
        value = word.partition("=")[2]
        if not value.strip():
            raise UserError(f"{word!r}: there is no value after the =; null stands for none")
        if re.search(r"\s#", value) and not re.search(r"[\"']", value):
            raise UserError(f"{word!r}: YAML takes what follows ' #' for a comment: put the value in quotes")
        try:
            one = OmegaConf.to_container(OmegaConf.from_dotlist([word]), resolve=True)
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{word!r}: {_first_line(error)}") from None
        except Exception as error:  # yaml's own errors, which OmegaConf lets through
            raise UserError(f"{word!r}: the value is not valid YAML: {_first_line(error)}") from None
        _refuse_odd_numbers(value, f"{word!r}: ")
        overlay = merge(overlay, cast(dict[str, Any], one))
    return overlay


def read_file(path: Path) -> dict[str, Any]:
    """A YAML file as a nested overlay; `${...}` references are resolved within it."""
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        raise UserError(f"--config {path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or _first_line(error)}") from None
    except Exception as error:  # yaml's errors have no common base with OmegaConf's
        raise UserError(f"--config {path}: not a readable YAML file: {_where(error)}") from None
    _refuse_odd_numbers(path.read_text(), f"--config {path}: ")
    if not isinstance(content, Mapping):
        raise UserError(f"--config {path}: expected fields of a configuration, found {type(content).__name__}")
    return {str(key): value for key, value in content.items() if key != "records"}


def _where(error: Exception) -> str:
    """The place and the problem of an error of YAML; the first line of any other."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return _first_line(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers that YAML 1.1 reads to the base 8 or 60: 010 is 8 there, and 1:30 is 90."""


def _refuse_odd_numbers(text: str, where: str) -> None:
    """UserError for a number that YAML reads otherwise than people do."""
    events = [event for event in yaml.parse(text, Loader=yaml.SafeLoader) if isinstance(event, yaml.ScalarEvent)]
    for plain in [event.value for event in events if event.style is None]:
        if ODD_NUMBER.fullmatch(plain) and (read := yaml.safe_load(plain)) != plain:
            raise UserError(
                f"{where}YAML reads {plain} as {read}: write a number to the base 10 without leading zeros, text in "
                "quotes, and a map with a space after each colon, such as {0: 0, 255: 1}"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
