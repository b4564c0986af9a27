"""Files that are complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from harness.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to `path` if the block succeeds, removed if it fails.

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


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`: renamed to `path` if the block succeeds, removed if it fails.

    Raises UserError where `path` holds something, before the block, or cannot be written.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is there already and holds something: give a new folder")
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes temporary files that killed processes left in a folder. No other process may be writing there."""
    for temporary in list(folder.rglob(".*.tmp*")):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock file for this process; the system releases it when the process ends, in whatever way.

    The lock is flock(2), also on network file systems that support it. Where a file system has no flock, filelock warns
    and takes the existence of the file as the lock: one that a killed process left is then removed by the next process
    on the same host, but has to be deleted by hand for a process on another host.

    Raises UserError where the folder cannot be written, BlockingIOError where another process holds the lock and `wait`
    is false.
    """
    # Not thread-local: a generator that holds the lock may be closed by another thread.
    held = filelock.FileLock(path, timeout=-1 if wait else 0, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except filelock.Timeout:
        raise BlockingIOError(f"another process holds {path}") from None
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        yield
    finally:
        held.release()


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
