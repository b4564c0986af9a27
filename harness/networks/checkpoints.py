"""Reads checkpoint files by their content, as weights only: from a file on disk to the tensors in it, by name."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from harness import errors
from harness.errors import UserError

Entries = dict[tuple[str, ...], dict[str, Tensor]]
"""{keys that lead to a mapping: its tensors by name}, for every mapping in a file that holds tensors itself."""

MAX_DEPTH = 6
"""Levels of nested mappings that are searched for weights."""

FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file with `git lfs pull`"),
    (b"<", "a web page or XML: download the file itself"),
    (b"\x1f\x8b", "packed with gzip: unpack it"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes: convert it to PyTorch weights"),
)
"""First bytes of files that are often mistaken for checkpoints, what they are, and what to do."""


class Ignored:
    """Replaces a value that is not a weight: the type that the file names is neither imported nor run."""

    def __init__(self, *arguments: object) -> None:
        """Drops the arguments."""

    def __setstate__(self, state: object) -> None:
        """Drops the state."""


_NUMPY = ("bool", "bool_", "str_", "bytes_", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
          "uint8", "uint16", "uint32", "uint64", "complex64", "complex128", "dtype", "ndarray")  # fmt: skip
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")

HARMLESS = (
    "argparse.Namespace",
    *(f"numpy.{name}" for name in _NUMPY),
    *(f"{module}.{name}" for module in _MULTIARRAY for name in ("scalar", "_reconstruct")),
)
"""Types of settings and scores that training scripts save beside the weights. They are read as `Ignored`, since numpy
itself can be made to corrupt memory by the dtype or the array of a hostile file."""

_SAFE: list[Callable[..., object] | tuple[Callable[..., object], str]] = [(Ignored, name) for name in HARMLESS]


def read(path: Path) -> Entries:
    """The tensors in a checkpoint file, on the CPU; of an index (.json) those of all its shards.

    The format follows from the content, not from the suffix: torch.save's zip or pickle, or safetensors. Nothing that
    the file holds is executed. Raises UserError where it cannot be read, is damaged or holds no tensors.
    """
    if path.suffix == ".json":
        return {(): _read_shards(path)}
    content = load(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}, expected weights by name: "
            "save them with torch.save(network.state_dict(), FILE)"
        )
    found = dict(_entries(content, (), ()))
    if not found:
        keys = first([str(key) for key in content]) if content else "nothing"
        arrays = ", not numpy's arrays" if any(isinstance(value, Ignored) for value in content.values()) else ""
        raise UserError(
            f"{path} holds no weights: it has {keys}; expected tensors by name{arrays}, such as "
            "torch.save(network.state_dict(), FILE) writes"
        )
    return found


def parts(path: Path) -> list[Path]:
    """The files that a checkpoint consists of: itself, and the shards where it is an index."""
    if path.suffix != ".json":
        return [path]
    return [path, *sorted({path.parent / shard for shard in _index(path).values()})]


def first(keys: list[str]) -> str:
    """`3 keys ('a', 'b', ...)`."""
    shown = ", ".join(repr(key) for key in keys[:2]) + (", ..." if len(keys) > 2 else "")
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''} ({shown})"


def _entries(
    content: Mapping[object, object], keys: tuple[str, ...], above: tuple[int, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping that holds tensors, by the keys that lead to it; `above`: ids of the mappings around this one."""
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    around = (*above, id(content))
    for key, value in content.items():
        if isinstance(value, Mapping) and id(value) not in around and len(keys) < MAX_DEPTH:
            yield from _entries(value, (*keys, str(key)), around)


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors that an index names, each from the shard that the index gives."""
    index = _index(path)
    found: dict[str, Tensor] = {}
    for shard in sorted(set(index.values())):
        content = load(path.parent / shard)
        tensors = content if isinstance(content, Mapping) else {}
        for name in (name for name, file in index.items() if file == shard):
            if not isinstance(tensors.get(name), Tensor):
                raise UserError(
                    f"{path.parent / shard} lacks {name!r}, which {path} says is in it: download both again"
                )
            found[name] = tensors[name]
    return found


def _index(path: Path) -> dict[str, str]:
    """{tensor name: file name of its shard}, from an index as Hugging Face's libraries write it."""
    _check_readable(path)
    try:
        content = json.loads(path.read_bytes())
        weight_map = content["weight_map"]
        if not weight_map or any(not isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is not the index of a checkpoint in parts: it has no weight_map {{name: file}}"
        ) from None
    for shard in weight_map.values():
        if shard != Path(shard).name or "\\" in shard or not shard.strip(".") or not shard.isprintable():
            raise UserError(f"{path} names the file {shard!r}: expected files beside it, without a folder")
    return dict(weight_map)


def load(path: Path) -> object:
    """What a single file holds, on the CPU; raises UserError as `read` does."""
    _check_readable(path)
    with path.open("rb") as file:
        start = file.read(512)
    try:
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
            from safetensors.torch import load_file

            return load_file(path)
        safe = torch.serialization.safe_globals(_SAFE)
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"), safe:
            return torch.load(file, map_location="cpu", weights_only=True)  # of a path, it goes by the suffix
    except Exception as error:  # torch's readers raise many types for damaged files
        text = str(error)
        names = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text)
        program = f"a pickle that would run {names[1]} when read" if names else "a TorchScript program"
        if names or "TorchScript" in text:
            advice = "if you trust it, save its weights again with torch.save(network.state_dict(), FILE)"
            raise UserError(f"{path} is refused: it is {program}, not weights alone; {advice}") from None
        raise UserError(f"{path} is damaged, or not a checkpoint: {_reason(start, error)}") from None


def _reason(start: bytes, error: Exception) -> str:
    """Why a file could not be read, in one line: its actual format, or the reader's error."""
    foreign = [what for magic, what in FOREIGN if start.startswith(magic)]
    if start[257:262] == b"ustar":
        foreign.append("a tar archive: unpack it and name the file in it")
    if foreign:
        return f"it is {foreign[0]}"
    # torch wraps its reason in advice to read the file unsafely
    reason = re.sub(r"(?s).*WeightsUnpickler error:|Check the documentation.*", "", str(error))
    said = errors.one_line(reason) or "it ends too soon"
    if "Unsupported operand" in said:
        said += "; where it was saved with another pickle_protocol, save it again with torch.save's default"
    return f"{type(error).__name__}: {said}; expected what torch.save or safetensors writes: get it again"


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except IsADirectoryError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name the file of weights in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from None
