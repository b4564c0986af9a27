"""A network that a user wrote: a function in a Python file of their own, `path/to/file.py:function`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import UserError, nearest, one_line
from harness.files import sha256


def source_file(name: str) -> Path | None:
    """The user's own file that "path/to/file.py:function" names; None for any other network."""
    path, colon, _ = name.rpartition(":")
    return Path(path).expanduser() if colon and path.endswith(".py") else None


def located(name: str, record: Mapping[str, Any] | None) -> str:
    """A network's name with the absolute path of the user's file from its `file_record`, valid in any folder."""
    return f"{record['path']}:{name.rpartition(':')[2]}" if record else name


def network(name: str, classes: int, channels: int, arguments: Mapping[str, Any]) -> object:
    """Calls a function of a user's file, with classes and channels if it takes them."""
    path, wanted = source_file(name), name.rpartition(":")[2]
    if path is None or not wanted:
        raise UserError(
            f"network {name!r}: expected a name of the task's own, timm:NAME, torchvision:NAME, smp:ARCH/ENCODER "
            "or path/to/file.py:function"
        )
    namespace = _import(path, name)
    function = getattr(namespace, wanted, None)
    if not callable(function):
        own = [key for key, value in vars(namespace).items() if getattr(value, "__module__", "") == namespace.__name__]
        hint = nearest(wanted, own) if own else "; it defines none"
        raise UserError(f"network {name!r}: {path} has no function {wanted!r}{hint}")
    signature = inspect.signature(function)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    implied = {"classes": classes, "channels": channels}
    keywords = {key: value for key, value in implied.items() if takes_any or key in signature.parameters}
    keywords |= arguments
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise UserError(f"network {name!r}: {error}; it is {wanted}{signature}, called with {keywords}") from None
    return function(**keywords)


def _import(path: Path, name: str) -> ModuleType:
    """Runs a user's file as a module of its own."""
    module_name = f"ddad_network_{path.stem}_{sha256(path)[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses in the file need their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(
            f"network {name!r}: {path} could not be imported: {type(error).__name__}: {one_line(error)}"
        ) from error
    return module
