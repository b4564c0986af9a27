"""A strict parser from nested plain data to dataclasses: unknown paths and values of another type are errors."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from harness.errors import UserError, nearest

Overlay = Mapping[str, Any]
"""A nested dictionary with values for some fields of a dataclass."""

ALL_PATHS = "`ddad distill RECIPE --dry-run` prints all paths"
"""Hint for an unknown path that resembles no known one."""

Built = TypeVar("Built")


def paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Every dotted path of a dataclass that takes a value."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from paths(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name


def merge(base: Overlay, over: Overlay) -> dict[str, Any]:
    """`base` updated with the values of `over`; lists are replaced, dictionaries merged."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted path: value} as an overlay."""
    overlay: dict[str, Any] = {}
    for path, value in values.items():
        for name in reversed(path.split(".")):
            value = {name: value}
        overlay = merge(overlay, value)
    return overlay


def build(kind: type[Built], overlay: Overlay) -> Built:
    """The dataclass with the values of `overlay` and field defaults; UserError names the path and the expected type."""
    return typing.cast(Built, _build(kind, overlay, "", list(paths(kind))))


def _build(kind: type, overlay: object, prefix: str, known: list[str]) -> object:
    if not isinstance(overlay, Mapping):
        raise UserError(f"{prefix.rstrip('.')}={overlay!r}: expected a group of fields {_names(kind)}")
    hints = typing.get_type_hints(kind)
    for key in overlay:
        if key not in hints:
            path = _leaf(f"{prefix}{key}", overlay[key])
            raise UserError(f"unknown path {path!r}{nearest(path, known, ALL_PATHS)}")
    values = {}
    for key, value in overlay.items():
        hint, path = hints[key], prefix + key
        group = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        values[key] = _build(hint, value, path + ".", known) if group else _value(hint, value, path)
    return kind(**values)


def _leaf(path: str, value: object) -> str:
    """The path as it was given, down to the value: `studnet.lr` is nearer to `student.lr` than `studnet` is."""
    while isinstance(value, Mapping) and len(value) == 1:
        (key,) = value
        path, value = f"{path}.{key}", value[key]
    return path


def _value(hint: Any, value: object, path: str) -> object:
    try:
        return _convert(hint, value)
    except TypeError:
        raise UserError(f"{path}={value!r}: expected {_describe(hint)}") from None


def _convert(hint: Any, value: Any) -> Any:
    """`value` converted to the type `hint`; raises TypeError if it does not fit."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in inner:
            try:
                return _convert(option, value)
            except TypeError:
                continue
    elif origin is Literal:
        if value in inner and type(value) is str:
            return value
    elif origin is list:
        if isinstance(value, list | tuple):
            return [_convert(inner[0], item) for item in value]
    elif origin is dict:
        return _convert_map(inner[1], value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:  # a whole number of more than 308 digits
                raise TypeError from None
    elif hint is type(None):
        if value is None:
            return None
    elif type(value) is hint:
        return value
    raise TypeError


def _convert_map(hint: Any, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and hint is int:  # YAML parses the key of `255: 1` as a number
        return {str(key): _convert(int, item) for key, item in value.items()}
    if isinstance(value, Mapping) and _has_names(value):
        return dict(value)
    raise TypeError


def _has_names(value: object) -> bool:
    """Whether all keys in a value are text, at every depth."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_names(item) for key, item in value.items())
    return all(map(_has_names, value)) if isinstance(value, list) else True


LISTS: dict[Any, str] = {
    float: "a list of numbers, such as [0.5,0.4]",
    int: "a list of whole numbers, such as [64,48]",
    str: "a list of words, such as [a,b]",
}


def _describe(hint: Any) -> str:
    """A type hint in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in inner)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in inner)
    if origin is list:
        return LISTS.get(inner[0], f"a list, each {_describe(inner[0])}")
    if origin is dict:
        return "a map to whole numbers, such as {0: 0, 255: 1}" if inner[1] is int else "a group of keyword arguments"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, "null")


def _names(kind: type) -> str:
    return ", ".join(typing.get_type_hints(kind))
