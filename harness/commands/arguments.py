"""What the words and options of a command mean."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands.session import say
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config import Config

DISTILL_EXAMPLES = """\b
Examples:
  ddad distill digits
  ddad distill classification teacher.network=resnet34 teacher.checkpoint=my.pth classes=17 input.size=64 \\
      student.network=pruned student.arguments.macs=0.5 variant=warm
  ddad distill cifar10-resnet34-resnet18 seed=1 --output runs/seed-1 --dry-run
"""
"""The end of `ddad distill --help`."""


def _refuse_options(context: typer.Context, words: list[str] | None) -> list[str] | None:
    """The words; UserError for `output=DIR` where the command has an option --output."""
    options = {option for parameter in context.command.params for option in parameter.opts}
    for word in words or []:
        name, equals, value = word.partition("=")
        option = f"--{name.replace('_', '-')}"
        if equals and option in options:
            raise UserError(f"{word!r}: {name} is an option, not a path: {option} {value}".rstrip())
    return words


def show_version(asked: bool) -> None:
    """Prints the versions and ends the command."""
    if asked:
        print(", ".join(f"{name} {_version(name)}" for name in ("ddad", "torch")))
        raise typer.Exit


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="A recipe (`ddad recipes` lists them), then any number of path=value.", callback=_refuse_options
    ),
]

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A YAML file of values; a run folder's config.yaml replays it.")
]

Output = Annotated[Path | None, typer.Option(help="The run folder; default runs/<recipe>-<hash>.")]

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, all else on standard error.")]

Run = Annotated[Path, typer.Argument(help="A run folder.")]


def resolved(words: list[str] | None, file: Path | None) -> Config:
    """The complete configuration that a command's words and --config ask for."""
    from harness import resolve

    config = resolve.resolve(*read(words, file), say=say)
    for line in _changed_files(file, config) if file else ():
        say(line)
    return config


def _changed_files(file: Path, config: Config) -> Iterator[str]:
    """Lines about files of a run's config.yaml with another content by now; a hub's are named with their commit."""
    import yaml

    from harness.config import flat
    from harness.networks import own_file, sources

    values = flat(config)
    for path, record in (yaml.safe_load(file.read_text()).get("records") or {}).items():
        value = str(values.get(path))
        here = own_file.source_file(value) if path.endswith(".network") else Path(value)
        same = here and "repository" not in record and here.absolute() == Path(record["path"])
        if same and (problem := sources.change(path, record)):
            yield f"{problem}: what follows is another run than {file} records"


def read(words: list[str] | None, file: Path | None) -> tuple[str | None, dict[str, Any] | None, dict[str, Any]]:
    """Recipe, content of the file and overrides, as `harness.resolve.resolve` takes them."""
    from harness import resolve

    words = words or []
    recipe = words[0] if words and "=" not in words[0] else None
    overrides = resolve.read_overrides(words[1:] if recipe else words)
    return recipe, resolve.read_file(file) if file else None, overrides


def data_fields(words: list[str]) -> dict[str, Any]:
    """The overlay of `data.FIELD=value` words: of a configuration, only what is scored on may change afterwards."""
    from harness import resolve

    for word in words:
        if "=" in word and (not word.startswith("data.") or word.startswith("data.name=")):
            raise UserError(f"{word!r}: evaluate takes --data NAME and data.FIELD=value, such as data.size=64")
    return resolve.read_overrides(words)


def to_numbers(option: str, text: str | None) -> list[float] | None:
    """Numbers between commas or spaces."""
    try:
        return [float(word) for word in text.replace(",", " ").split()] if text else None
    except ValueError:
        raise UserError(f"{option} {text!r}: expected a number per channel, such as .485,.456,.406") from None


def to_size(text: str | None) -> int | list[int] | None:
    """A side, or height and width between a comma or spaces."""
    try:
        sides = [int(word) for word in text.replace(",", " ").split()] if text else None
    except ValueError:
        sides = []
    if sides is not None and len(sides) not in (1, 2):
        raise UserError(f"--size {text!r}: expected a side, or height,width, such as 32 or 360,480")
    return sides[0] if sides and len(sides) == 1 else sides


def to_colour(text: str | None) -> list[int] | None:
    """Red, green and blue between commas or spaces."""
    words = text.replace(",", " ").split() if text is not None else []
    levels = [int(word) for word in words if word.isdecimal()]
    if text is not None and not (len(words) == len(levels) == 3 and max(levels) <= 255):
        raise UserError(f"--background {text!r}: expected red, green and blue, 0 to 255 each, such as 255,255,255")
    return levels or None
