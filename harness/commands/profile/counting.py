"""Operations and bytes of a piece of work, counted as it runs once without compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class _Bytes(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def count(work: Callable[[Any], object], prepare: Callable[[], Any] = lambda: None) -> tuple[int, int]:
    """(operations, bytes) of `work` on what `prepare` returns; what `prepare` does is not counted."""
    with torch.compiler.set_stance("force_eager"):
        given = prepare()
        with FlopCounterMode(display=False) as flops, _Bytes() as moved:
            work(given)
    return int(flops.get_total_flops()), moved.total
