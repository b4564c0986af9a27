"""What the launch tests start, and how they look at it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from tests.distributed import held_networks
from tests.helpers import environment

ROUNDS = 20

TINY = ("digits", f"rounds={ROUNDS}", "batch_size=16", "teacher.checkpoint=untrained", "precision=fp64",
        "student.network=cnn4", "generator.width=8", "student_steps=2", "data.name=none",
        "tracking.uri=none", "pictures=false", "log_every=1", "checkpoint.every=1")  # fmt: skip
"""A run of a second; what test images would need takes longer to import."""

HELD = (*TINY, f"student.network={held_networks.__file__}:cnn4")
"""The same run, which waits in its 13th round as long as there is a file `hold` in the folder where it was started."""

SCRIPTS = Path(sys.executable).parent
"""Where `accelerate` and `torchrun` are."""


def variables(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a launch, on the CPU everywhere."""
    found = environment({"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", **(extra or {})})
    return {**found, "PATH": f"{SCRIPTS}:{found['PATH']}"}


@contextmanager
def started(
    words: Sequence[object], cwd: Path, extra: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command running by itself; it and all that it started are killed when the block ends if they still are."""
    process = subprocess.Popen(
        [*map(str, words)], cwd=cwd, env=variables(extra), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.communicate()


def run(words: Sequence[object], cwd: Path, extra: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command to its end; the caller asserts `returncode`."""
    with started(words, cwd, extra) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Waits for something, while the process runs."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def saved(folder: Path) -> list[int]:
    """The rounds of a run's checkpoints."""
    return sorted(int(path.stem.removeprefix("round-")) for path in folder.glob("checkpoints/round-*.safetensors"))


def result(folder: Path) -> dict[str, Any]:
    """The content of result.json."""
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def distance(one: Path, other: Path) -> float:
    """The largest difference between the weights of two runs' students."""
    left, right = (load_file(folder / "student.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def workers(launcher: int) -> dict[int, psutil.Process]:
    """The processes of a run by rank, below the process that launched them."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process(launcher).children(recursive=True):
        with suppress(psutil.Error):  # what a process starts in passing may be gone again
            if rank := process.environ().get("RANK"):
                found.setdefault(int(rank), process)
    return found
