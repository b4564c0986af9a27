"""Files that are complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not.

    Raises UserError naming the path where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was there before is intact") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what processes that were killed while writing left half-written in a folder that is ours alone."""
    for temporary in folder.rglob(".*.tmp*"):
        temporary.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock file for this process; it goes with the process, however that ends.

    Raises UserError where the folder cannot be written, BlockingIOError where another holds it and `wait` is off.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes | str) -> None:
    """Writes a whole file atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256(path: Path, *more: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; with `more`, of all their hashes. UserError where one cannot be read."""
    if more:
        return hashlib.sha256("\n".join(sha256(each) for each in (path, *more)).encode()).hexdigest()
    try:
        with path.open("rb") as file:
            digest: str = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return digest


def file_record(path: Path, *more: Path) -> dict[str, Any]:
    """{path (absolute), size (bytes), sha256}: what tells later whether a file, with `more`, is still the same."""
    digest = sha256(path, *more)
    return {"path": str(path.absolute()), "size": sum(each.stat().st_size for each in (path, *more)), "sha256": digest}


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
