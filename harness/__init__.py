"""Data-free distillation; from Python: `from harness import distill`. Data sets are in `tasks`, sweeps in `tune`.

The names below are imported when they are first asked for: torch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.commands.evaluate import of_run as evaluate
    from harness.commands.generate import generate
    from harness.config import Config
    from harness.errors import UserError
    from harness.run.student import load_student
    from harness.training.distill import Report, distill, rounds

__all__ = ["Config", "Report", "UserError", "distill", "evaluate", "generate", "load_student", "rounds"]

_WHERE = {
    "Config": "harness.config:Config",
    "Report": "harness.training.distill:Report",
    "UserError": "harness.errors:UserError",
    "distill": "harness.training.distill:distill",
    "evaluate": "harness.commands.evaluate:of_run",
    "generate": "harness.commands.generate:generate",
    "load_student": "harness.run.student:load_student",
    "rounds": "harness.training.distill:rounds",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, inner = _WHERE[name].partition(":")
    return getattr(importlib.import_module(module), inner)
