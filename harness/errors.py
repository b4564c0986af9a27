"""What can end a run, and the exit code each gives the `ddad` command."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake a person can mend: what was given, what was expected, what to do, in one line."""

    exit_code = 2


class Diverged(RuntimeError):
    """A loss or a weight is no longer finite; the last good checkpoint is kept."""

    exit_code = 3


class Lost(RuntimeError):
    """Another process of the run failed, died or does not answer; the last checkpoint is kept."""

    exit_code = 4


def nearest(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """A hint that names the closest known words: `; did you mean 'a' or 'b'?`, else `otherwise`, else the whole list.

    Dotted paths that end in the word are closest.
    """
    words = sorted(known)
    close = [path for path in words if path.endswith(f".{word}")][:3]
    close = close or difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return f"; {otherwise}" if otherwise else "; known: " + ", ".join(words)


def memory_wanted(error: BaseException) -> str | None:
    """What an allocation that failed was for, such as `20.00 GiB`, "" where it is not said; None for other errors."""
    text = str(error)
    # torch's error for the memory of a device has a class of its own, that for the host's has not
    if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in text):
        return None
    found = re.search(r"ried to allocate ([\d.]+) (\w+)", text)
    if not found:
        return ""
    return f"{int(found[1]) / 2**30:.1f} GiB" if found[2] == "bytes" else f"{found[1]} {found[2]}"


def one_line(message: object) -> str:
    """An error's message in one line of bearable length."""
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:297] + "..."
