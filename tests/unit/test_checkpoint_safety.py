"""What is read of the types that torch's own list lacks: nothing of theirs runs, and nothing inside them."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.networks.checkpoints import HARMLESS
from harness.networks.weights import load

NAME = "teacher.network=linear"
GOOD = nn.Linear(2, 1).state_dict()
SCALAR, REBUILD = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


class Reduced:
    """Pickles as a call: a function, its arguments, and the state of what it returns."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def hostile(trap: Trap) -> dict[str, object]:
    """A trap at every position inside a harmless type."""
    return {
        "attribute": argparse.Namespace(lr=trap),
        "nested": argparse.Namespace(inner=argparse.Namespace(values=[{"x": trap}])),
        "state": Reduced(argparse.Namespace, (), trap),
        "scalar": Reduced(SCALAR, (np.dtype("float64"), trap)),
        "dtype": Reduced(np.dtype, (trap,)),
        "dtype's state": Reduced(np.dtype, ("f8",), trap),
        "array": np.array([trap], dtype=object),
        "array's state": Reduced(REBUILD, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, [trap])),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("position", hostile(Trap(Path())))
def test_code_inside_harmless_types_is_refused(tmp_path: Path, position: str, protocol: int) -> None:
    path, marker = tmp_path / "t.pth", tmp_path / "it ran"
    content = hostile(Trap(marker))[position]
    torch.save({"state_dict": GOOD, "args": content}, path, pickle_protocol=protocol)
    with pytest.raises(UserError) as caught:
        load(nn.Linear(2, 1), path, NAME)
    said = "is refused: it is a pickle that would run" if protocol == 2 else "another pickle_protocol, save it again"
    assert said in str(caught.value)
    assert not marker.exists()
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(content, protocol))
    assert marker.exists()  # so the trap is a real one


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (Reduced(np.dtype, ("no such type",)), TypeError),
        (Reduced(np.dtype, ("f8", False, True), "no state of a dtype"), SystemError),
        (Reduced(SCALAR, (np.dtype("f8"), b"short")), ValueError),
        (Reduced(REBUILD, (np.ndarray, "no shape")), TypeError),
        (Reduced(argparse.Namespace, ("no positional arguments",)), TypeError),
    ],
    ids=["dtype", "state", "scalar", "array", "namespace"],
)
def test_harmless_types_are_not_called(tmp_path: Path, content: Reduced, refusal: type[Exception]) -> None:
    """numpy and argparse would refuse these arguments, and numpy crash on others."""
    torch.save({"state_dict": GOOD, "args": content}, tmp_path / "t.pth")
    with pytest.raises(refusal):
        pickle.loads(pickle.dumps(content))
    module = nn.Linear(2, 1)
    load(module, tmp_path / "t.pth", NAME)
    assert torch.equal(module.weight, GOOD["weight"])


def test_the_list_is_numpy_and_namespace_and_holds_while_a_file_is_read(tmp_path: Path) -> None:
    assert {name.partition(".")[0] for name in HARMLESS} == {"numpy", "argparse"}
    before = set(map(str, torch.serialization.get_safe_globals()))
    torch.save({"state_dict": GOOD, "args": argparse.Namespace(x=1)}, tmp_path / "good.pth")
    load(nn.Linear(2, 1), tmp_path / "good.pth", NAME)
    torch.save(nn.Linear(2, 1), tmp_path / "bad.pth")
    with pytest.raises(UserError, match="is refused"):
        load(nn.Linear(2, 1), tmp_path / "bad.pth", NAME)
    assert set(map(str, torch.serialization.get_safe_globals())) == before
