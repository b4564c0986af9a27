"""How the arithmetic of a step is carried out: what `speed.*` asks for, checked against the device that is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from harness.config import Config, ever
from harness.errors import UserError

BACKEND = "inductor"
"""What torch.compile compiles with; `eager` traces only, as the test that counts graphs does."""

MAX_GRAPHS = 64
"""Graphs of one function in a process, after which torch.compile gives up and runs it as it is; torch's own is 8."""

Call = TypeVar("Call", bound=Callable[..., object])


def switch(config: Config, device: torch.device, world_size: int) -> Callable[[], None]:
    """Sets torch's own switches, which hold for the whole process; returns what sets them back.

    UserError for what the device or the number of processes does not allow.
    """
    wanted = config.speed
    for name in ("cuda_graphs", "tf32"):
        if getattr(wanted, name) and device.type != "cuda":
            raise UserError(f"speed.{name}=true needs a GPU, this run is on the {device.type}: set it to null")
    if wanted.cuda_graphs:
        _check_graphs(config)
    undo = ExitStack()
    if wanted.compile:
        _check_compile(config, device, world_size)
        # Graphs are counted by code, not by network: all runs of this process, such as a sweep's, count together.
        _set(undo, torch._dynamo.config, "recompile_limit", MAX_GRAPHS)
    if device.type == "cuda" and wanted.tf32 is not None:
        # The newer switches, fp32_precision, make these raise when they are read, as torch.compile does here and there.
        for owner in (torch.backends.cuda.matmul, torch.backends.cudnn):
            _set(undo, owner, "allow_tf32", wanted.tf32)
    return undo.close


def _set(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Sets an attribute; `undo` will set it back."""
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def compiled(call: Call, config: Config) -> Call:
    """`call`, a network or a function of images, compiled where `speed.compile` is on; else as it is.

    Shapes are taken as fixed. A network has one graph for its own turn and one for the others', which differ in what
    takes gradients and whether running statistics move; both are made in the first round.
    """
    if not config.speed.compile:
        return call
    mode = "reduce-overhead" if config.speed.cuda_graphs and BACKEND == "inductor" else None
    graph = torch.compile(call, dynamic=False, mode=mode, backend=BACKEND)
    if not mode:
        return graph  # type: ignore[return-value]  # it takes and gives what `call` does

    def kept(*inputs: object) -> object:
        """What a CUDA graph answers is overwritten when it runs again; a round holds on to some of it."""
        return pytree.tree_map_only(torch.Tensor, torch.clone, graph(*inputs))

    return kept  # type: ignore[return-value]  # likewise


def _check_graphs(config: Config) -> None:
    if not config.speed.compile:
        raise UserError("speed.cuda_graphs=true records what is compiled: set speed.compile=true too")
    if config.micro_batches > 1:
        raise UserError(
            f"speed.cuda_graphs=true: the gradients of micro_batches={config.micro_batches} would be overwritten "
            "before they are added up: set micro_batches=1, or speed.cuda_graphs=null"
        )


def _check_compile(config: Config, device: torch.device, world_size: int) -> None:
    if world_size > 1 or config.distributed.strategy == "deepspeed":
        found = "distributed.strategy=deepspeed" if world_size == 1 else f"{world_size} processes"
        raise UserError(f"speed.compile=true: compiled networks run on one process, not {found}: set it to null")
    for path, weight in config.student.comparisons.items():
        if ever(weight):
            raise UserError(
                f"speed.compile=true: a compiled student keeps no feature maps: set student.{path}=0, or "
                "speed.compile=null"
            )
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers if name):
        raise UserError("speed.compile=true needs a C++ compiler, such as g++, and none was found: install one")
