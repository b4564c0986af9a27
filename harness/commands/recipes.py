"""`ddad recipes`: the list, and what one of them sets."""

from __future__ import annotations

import inspect

import yaml

from harness import task


def listing() -> str:
    """A line for each recipe."""
    lines = []
    for name in task.names():
        for recipe, function in task.load(name).recipes().items():
            lines.append(f"{recipe:32}{(function.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)


def page(name: str) -> str:
    """A recipe's description as comments, with its figures, and what it sets as YAML: a file for --config.

    Raises UserError for an unknown name, with the nearest.
    """
    _, function = task.find_recipe(name)
    comments = [f"# {line}".rstrip() for line in (inspect.getdoc(function) or "").splitlines()]
    values = yaml.safe_dump({"recipe": name, **function()}, sort_keys=False, default_flow_style=False)
    return "\n".join([*comments, values.rstrip()])
