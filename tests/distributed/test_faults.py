"""What happens when a process of several fails, dies, hangs or is asked to stop: nothing is lost, and it is named."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import safetensors

from tests.distributed import held_networks, ranks, starting
from tests.helpers import ROOT

pytestmark = pytest.mark.distributed

RUN = (
    "distill", "digits", "teacher.checkpoint=untrained", "tracking.uri=none", "pictures=false", "batch_size=8",
    "student_steps=2", "generator.width=8", f"student.network={held_networks.__file__}:cnn4", "rounds=40",
    "checkpoint.every=1", "log_every=1", "data.name=none", "--output", "run",
)  # fmt: skip
"""A run of a second or two; every round is stored."""

FRAGILE = Path(__file__).with_name("fragile_networks.py")


def begin(folder: Path, world_size: int, *words: str) -> list[BaseProcess]:
    return ranks.start(world_size, ranks.ddad, folder / "log", folder, *RUN, *words)


@contextmanager
def held(folder: Path, world_size: int, *words: str) -> Iterator[list[BaseProcess]]:
    """The processes of a run that waits in its 13th round as long as the block takes, ten of them logged."""
    (folder / "hold").touch()
    processes = begin(folder, world_size, *words)
    reach(folder, processes, 10)
    assert all(process.is_alive() for process in processes), said(folder)
    yield processes
    (folder / "hold").unlink()


def reach(folder: Path, processes: list[BaseProcess], num_rounds: int) -> None:
    """Waits until the run has done some rounds, or has ended."""
    rows = folder / "run" / "metrics.jsonl"
    while all(process.is_alive() for process in processes):
        if rows.exists() and rows.read_text().count("\n") >= num_rounds:
            return
        time.sleep(0.005)


def said(folder: Path, rank: int = 0) -> list[str]:
    return (folder / f"log.{rank}").read_text().splitlines()


def complaint(folder: Path, rank: int = 0) -> str:
    """The last word of a process that did not end well; gloo may have its own after that."""
    return [line for line in said(folder, rank) if line.startswith("ddad: ")][-1]


def ends(folder: Path) -> tuple[bytes, list[dict[str, object]]]:
    """What a finished run is compared by: the student's bytes, and all figures but times and loads."""
    assert (folder / "run" / "result.json").exists()
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    figures = [{k: v for k, v in row.items() if "second" not in k and not k.startswith("system/")} for row in rows]
    return (folder / "run" / "student.safetensors").read_bytes(), figures


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[bytes, list[dict[str, object]]]]:
    """The end of a run on so many processes that nothing happened to."""
    found: dict[int, tuple[bytes, list[dict[str, object]]]] = {}

    def end(world_size: int) -> tuple[bytes, list[dict[str, object]]]:
        if world_size not in found:
            folder = tmp_path_factory.mktemp(f"whole-{world_size}")
            assert ranks.finish(begin(folder, world_size)) == [0] * world_size, said(folder)
            found[world_size] = ends(folder)
        return found[world_size]

    return end


Whole = Callable[[int], tuple[bytes, list[dict[str, object]]]]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_and_the_run_goes_on(tmp_path: Path, whole: Whole, victim: int) -> None:
    with held(tmp_path, 2) as processes:
        processes[victim].kill()
    codes = ranks.finish(processes)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 4
    line = complaint(tmp_path, 1 - victim)
    store_is_gone = "the processes' store is gone" in line  # rank 0 keeps it where no launcher does
    assert store_is_gone if victim == 0 else re.search(r"no answer from rank 1 \(last seen in round \d+\)", line), line
    assert line.endswith("the last checkpoint is kept: the same command goes on from there")
    assert ranks.finish(begin(tmp_path, 2)) == [0, 0]
    assert ends(tmp_path) == whole(2)


def test_four_processes_go_on_to_the_bit(tmp_path: Path, whole: Whole) -> None:
    with held(tmp_path, 4) as processes:
        processes[2].kill()
    assert sorted(ranks.finish(processes)) == [-signal.SIGKILL, 4, 4, 4]
    assert ranks.finish(begin(tmp_path, 4)) == [0] * 4
    assert ends(tmp_path) == whole(4)


@pytest.mark.slow
def test_torchrun_starts_again_and_ends_in_the_same_bits(tmp_path: Path, whole: Whole) -> None:
    words = [ROOT / "launch/torchrun.sh", *RUN[1:]]
    (tmp_path / "hold").touch()
    with starting.started(words, tmp_path, {"NPROC": "4"}) as process:
        starting.until(process, lambda: bool(starting.saved(tmp_path / "run")))
        starting.workers(process.pid)[2].kill()
        (tmp_path / "hold").unlink()
        out, err = process.communicate()
    # torchrun always names the process; it may end the others before one of them has missed it.
    assert process.returncode == 0 and "failed (exitcode: -9) local_rank: 2 " in err, (out, err)
    assert ends(tmp_path) == whole(4)


def test_a_process_that_hangs_is_named(tmp_path: Path) -> None:
    with held(tmp_path, 2, "distributed.timeout=10") as processes:
        assert processes[1].pid is not None
        os.kill(processes[1].pid, signal.SIGSTOP)
    (code,) = ranks.finish(processes[:1])
    processes[1].kill()
    processes[1].join()
    assert code == 4
    assert "no answer from rank 1 (last seen in round " in complaint(tmp_path)


def test_another_ranks_error_reaches_rank_0(tmp_path: Path) -> None:
    codes = ranks.finish(begin(tmp_path, 2, f"student.network={FRAGILE}:Fails"))
    assert codes == [4, 1]
    assert re.match(r"ddad: rank 1 failed in round \d+: RuntimeError: out of luck; the last", complaint(tmp_path))
    assert any("Traceback" in line for line in said(tmp_path, 1)), "a fault of the program is shown where it is"


def test_a_mistake_on_one_host_is_everyones(tmp_path: Path) -> None:
    processes = begin(tmp_path, 2, f"student.network={FRAGILE}:unbuildable")
    assert ranks.finish(processes[:1]) == [2]
    processes[1].kill()  # a launcher ends the others; until it does they leave the word to rank 0
    processes[1].join()
    (line,) = said(tmp_path)
    assert "rank 1: " in line and "not on this host" in line
    assert said(tmp_path, 1) == []
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_stops_all_after_the_same_round(tmp_path: Path, whole: Whole) -> None:
    with held(tmp_path, 2) as processes:
        processes[1].terminate()
    # An exit code of 0 would tell an elastic launcher on another host that the run is done.
    assert ranks.finish(processes) == [128 + signal.SIGTERM] * 2
    (line,) = [line for line in said(tmp_path) if line.startswith("stopped after round")]
    assert "(SIGTERM)" in line
    assert ranks.finish(begin(tmp_path, 2)) == [0, 0]
    assert ends(tmp_path) == whole(2)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path, whole: Whole) -> None:
    """Of either process, in the rounds and the writing of checkpoints, and sometimes while both are starting."""
    source, folder = random.Random(0), tmp_path / "work"
    folder.mkdir()
    expected, num_kills, stored = whole(2), 0, 0
    while num_kills < 20:
        processes = begin(folder, 2)
        if num_kills % 5:
            reach(folder, processes, stored + 2)  # a round more than its checkpoint tells of
        time.sleep(source.uniform(0.0, 0.3))
        if killed := all(process.is_alive() for process in processes):
            processes[source.randrange(2)].kill()
            num_kills += 1
        codes = ranks.finish(processes, 0.3 if killed else 240)  # a launcher ends those that wait for a lost one
        assert killed or codes == [0, 0], said(folder)
        rounds = [stored_round(path) for path in (folder / "run" / "checkpoints").glob("round-*.safetensors")]
        assert max(rounds, default=0) >= stored, "nothing that was stored is lost"
        stored = max(rounds, default=0)
        if codes == [0, 0]:
            assert ends(folder) == expected
            shutil.rmtree(folder / "run")
            stored = 0
    assert ranks.finish(begin(folder, 2)) == [0, 0], said(folder)
    assert ends(folder) == expected


def stored_round(checkpoint: Path) -> int:
    """The round of a checkpoint, which has to be complete."""
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        return int(json.loads(file.metadata()["state"])["round"])
