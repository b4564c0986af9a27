"""Whatever ends a run, the same command goes on, and the student comes out the same to the byte."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import (
    CPU,
    TEACHER,
    Ddad,
    contents,
    copy_teacher,
    only,
    rows,
    run_ddad,
    sha256,
    started,
    wait,
)  # fmt: skip
from tests.helpers import DDAD, environment

ROUNDS = 60

RUN = ("distill", "digits", f"rounds={ROUNDS}", "batch_size=32", "log_every=1", "checkpoint.every=4",
       "tracking.uri=none", "pictures=false")  # fmt: skip


def figures(folder: Path) -> list[dict[str, Any]]:
    """What the rows say, but for time."""
    return [{key: row[key] for key in row if key not in ("seconds", "rounds_per_second")} for row in rows(folder)]


def logged(place: Path, target: int) -> Callable[[], bool]:
    """Whether the run of a folder has told of a round."""
    return lambda: any(row["round"] >= target for folder in place.glob("runs/*") for row in rows(folder))


def rounds_saved(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("round-")) for path in folder.glob("checkpoints/round-*.safetensors"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, taught: tuple[Path, object]) -> Path:
    """The folder of a run that nothing disturbed."""
    place = tmp_path_factory.mktemp("undisturbed")
    copy_teacher(taught[0], place)
    done = run_ddad(*RUN, cwd=place)
    assert done.returncode == 0, done.stderr
    return only(place, "runs/*")


def assert_same(folder: Path, whole: Path) -> None:
    assert folder.name == whole.name
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    assert figures(folder) == figures(whole)
    one, other = (timeless(json.loads((run / "result.json").read_text())) for run in (folder, whole))
    assert one == other


def timeless(value: Any) -> Any:
    """A result without what was timed."""
    if not isinstance(value, dict):
        return value
    return {key: timeless(part) for key, part in value.items() if "second" not in key}


def end_by(place: Path, number: signal.Signals, target: int) -> subprocess.CompletedProcess[str]:
    """Starts the run, sends it a signal once it has told of a round, and waits for its end."""
    with started(*RUN, cwd=place) as process:
        wait(process, logged(place, target))
        process.send_signal(number)
        code = process.wait(300)
    return subprocess.CompletedProcess(RUN, code, *process.communicate())


@pytest.mark.slow
def test_killed_at_random_rounds(workplace: Path, whole: Path) -> None:
    targets = sorted(random.Random(0).sample(range(2, ROUNDS - 15), 3))
    for target in targets:
        done = end_by(workplace, signal.SIGKILL, target)
        assert done.returncode == -signal.SIGKILL
        folder = only(workplace, "runs/*")
        assert not (folder / "result.json").exists()
        assert all(number % 4 == 0 for number in rounds_saved(folder))
    done = run_ddad(*RUN, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert_same(folder, whole)
    first = re.match(r"round (\d+)/60 ", done.stdout)
    assert first and int(first[1]) > 1, "the last process began again from the start"


def test_stopped_by_signals_and_taken_up_with_other_intervals(workplace: Path, whole: Path, ddad: Ddad) -> None:
    for number, code, target in ((signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 15)):
        done = end_by(workplace, number, target)
        assert done.returncode == code and done.stderr == ""
        lines = [line for line in done.stdout.splitlines() if not line.startswith("round ")]
        (line,) = lines
        told = re.fullmatch(r"stopped after round (\d+) of 60 \((\w+)\): the same command goes on from there", line)
        assert told and told[2] == number.name
        folder = only(workplace, "runs/*")
        stopped = int(told[1])
        assert rounds_saved(folder)[-1] == stopped >= target
        assert rows(folder)[-1]["round"] == stopped
        assert not (folder / "result.json").exists()
    said = ddad(*RUN, "log_every=7", "checkpoint.every=25", "checkpoint.keep=9", "pictures=true", "max_minutes=50")
    assert (said.code, said.err) == (0, "")
    assert rounds_saved(folder)[-2:] == [50, 60]
    numbers = [row["round"] for row in rows(folder)]
    later = [number for number in range(1, ROUNDS + 1) if number > stopped and (number % 7 == 0 or number == ROUNDS)]
    assert numbers == [*range(1, stopped + 1), *later, ROUNDS]
    assert figures(folder) == [row for row in figures(whole) if row["round"] in numbers]
    assert sha256(folder / "student.safetensors") == sha256(whole / "student.safetensors")
    assert (folder / "samples" / f"round-{ROUNDS:08d}.png").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_before_there_is_a_run_ends_at_once(workplace: Path, number: signal.Signals, code: int) -> None:
    before = contents(workplace)
    with subprocess.Popen(
        [*DDAD, *RUN], cwd=workplace, env=environment(CPU), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (code, "", "")
    assert contents(workplace) == before


ENDLESS = """
import time
from torch import nn

class Endless(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.last = nn.Linear(64 * channels, classes)

    def forward(self, x):
        while self.training:
            with open("ticks", "a") as file:
                file.write(".")
            time.sleep(0.01)
        return self.last(x.flatten(1))
"""
"""A student whose first turn takes for ever, and writes a character every now and then."""


def test_second_signal_does_not_wait_for_the_round(workplace: Path) -> None:
    (workplace / "endless.py").write_text(ENDLESS)
    ticks = workplace / "ticks"
    with started(*RUN, "student.network=endless.py:Endless", cwd=workplace) as process:
        wait(process, ticks.exists)
        process.send_signal(signal.SIGTERM)
        seen = ticks.stat().st_size
        wait(process, lambda: ticks.stat().st_size > seen + 3)  # it has taken the first one in, and the round goes on
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "stopped after" not in out and "Traceback" not in out + err


def test_killed_while_it_was_ending(workplace: Path, whole: Path, ddad: Ddad) -> None:
    """A folder as a kill leaves it anywhere between the last checkpoint and result.json."""
    folder = shutil.copytree(whole, workplace / "runs" / whole.name)
    for lost in (["result.json"], ["student.json", "student.safetensors", "curves.png"]):
        for name in ["result.json", *lost]:
            (folder / name).unlink(missing_ok=True)
        said = ddad(*RUN)
        assert (said.code, said.err) == (0, "")
        assert_same(folder, whole)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text(text[:-20])
    assert ddad(*RUN).code == 0
    assert (folder / "metrics.jsonl").read_text() == text


def test_killed_while_a_teacher_was_taught(tmp_path: Path, whole: Path, taught: tuple[Path, object]) -> None:
    words = (*RUN, "teach.epochs=2", "rounds=4")
    with started(*words, cwd=tmp_path) as process:
        wait(process, lambda: any(tmp_path.glob("runs/teach-*/checkpoints/round-00000022.safetensors")))
        process.kill()
    assert not (tmp_path / TEACHER).exists(), "too late: the teacher was there"
    assert not list(tmp_path.glob("runs/digits-*"))
    done = run_ddad(*words, cwd=tmp_path)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line == f"no teacher at {TEACHER} yet: teaching one on digits first"
    assert sha256(tmp_path / TEACHER) == sha256(taught[0] / TEACHER)
    lesson = only(tmp_path, "runs/teach-*")
    assert figures(lesson) == figures(only(taught[0], "runs/*"))
    assert (only(tmp_path, "runs/digits-*") / "result.json").exists()


def test_same_command_in_the_same_folder_by_another_path(workplace: Path, whole: Path, ddad: Ddad) -> None:
    """Stopped, moved elsewhere, taken up there by its own config.yaml."""
    assert ddad(*RUN, "max_minutes=0.00001").code == 0
    moved = shutil.move(only(workplace, "runs/*"), workplace / "elsewhere")
    said = ddad("distill", "--config", Path(moved) / "config.yaml", "--output", moved, "max_minutes=null")
    assert said.code == 0
    assert sha256(Path(moved) / "student.safetensors") == sha256(whole / "student.safetensors")
