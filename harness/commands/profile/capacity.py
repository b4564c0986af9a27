"""`ddad profile --find-batch`: the largest batch of a run that fits the memory of this machine."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence

import torch

from harness.commands.profile import measure, timing
from harness.config import Config

MIN_GROWTH = 64 * 2**20
"""Least growth of a process's peak, in bytes, at a doubled batch from which the size of an image is computed."""

MAX_BATCH = 2**20
"""Larger batches are not tried."""


def largest_batch(config: Config, say: Callable[[str], None]) -> tuple[int, str]:
    """(images a turn, how that was found): tried on a GPU; predicted on a CPU, where a failed try ends the process.

    Begins at the run's own batch; 0 if not even one image a micro-batch fits.
    """
    if not torch.cuda.is_available():
        return _predicted(config, say), "predicted from the growth of memory"
    return search(lambda size: _fits(config, size, say), config.batch_size, config.micro_batches), "tried"


def search(fits: Callable[[int], bool], start: int, unit: int) -> int:
    """The largest multiple of `unit` that fits, to a sixteenth: doubles until it fails, then halves what is between."""
    good, bad, size = 0, MAX_BATCH, start
    while good < size < bad:
        if fits(size):
            good = size
        else:
            bad = size
        if bad - good <= good // 16:
            break
        size = (2 * good if bad == MAX_BATCH else (good + bad) // 2) // unit * unit
    return good


def predict(sizes: Sequence[int], peaks: Sequence[float], free: float) -> int | None:
    """How many images fit, from peaks in bytes at batches that double, and bytes that are free beyond the last peak.

    Activations grow with the batch, the rest does not. None before two growths in a row are clear: a peak stays where
    it was, so the first may be partly hidden below what came before.
    """
    if len(peaks) < 3 or min(peaks[-1] - peaks[-2], peaks[-2] - peaks[-3]) < MIN_GROWTH:
        return None
    image = (peaks[-1] - peaks[-2]) / (sizes[-1] - sizes[-2])
    return sizes[-1] + max(0, int(free / image))


def _fits(config: Config, size: int, say: Callable[[str], None]) -> bool:
    try:
        _round(config, size, say)
        fit = True
    except torch.cuda.OutOfMemoryError:
        fit = False
    gc.collect()
    torch.cuda.empty_cache()
    say(f"batch {size} {'fits' if fit else 'does not fit'}")
    return fit


def _predicted(config: Config, say: Callable[[str], None]) -> int:
    import psutil

    sizes: list[int] = []
    peaks: list[float] = []
    size = config.batch_size
    while size < MAX_BATCH:
        _round(config, size, say)
        sizes.append(size)
        peaks.append(timing.peak_memory(torch.device("cpu")))
        say(f"batch {size}: {peaks[-1] / 2**20:,.0f} MiB at the peak")
        free = psutil.virtual_memory().available + psutil.Process().memory_info().rss - peaks[-1]
        if found := predict(sizes, peaks, free):
            return found // config.micro_batches * config.micro_batches
        size *= 2
    return MAX_BATCH


def _round(config: Config, size: int, say: Callable[[str], None]) -> None:
    measure.play(measure.machine(dataclasses.replace(config, batch_size=size), say), 0)
