"""Run folders that are somebody else's, damaged or in use; runs that diverge; disks that are full."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from harness import resolve
from harness.errors import UserError
from harness.training import distill
from tests.end_to_end.conftest import (
    DIGITS,
    OWN,
    SMALL,
    TEACHER,
    UNTAUGHT,
    Ddad,
    contents,
    only,
    sha256,
    started,
    teacher_weights,
    wait,
)


@pytest.fixture
def begun(workplace: Path, ddad: Ddad) -> Path:
    """A run stopped after the first of its two rounds."""
    assert ddad(*DIGITS, "max_minutes=0.00001").code == 0
    return only(workplace, "runs/*")


def test_folder_of_another_run(workplace: Path, ddad: Ddad, begun: Path) -> None:
    before = contents(workplace)
    line = ddad(*DIGITS, "student.lr=0.2", "--output", begun).complaint()
    assert "belongs to another run (student.lr is 0.1 there, 0.2 here)" in line
    line = ddad(*DIGITS, "student.lr=0.2", "seed=1", "batch_size=8", "temperature=2", "--output", begun).complaint()
    assert "batch_size is 16 there, 8 here, seed is 0 there, 1 here" in line and "and 1 more" in line
    assert contents(workplace) == before


def test_folder_of_another_schema_or_damaged(workplace: Path, ddad: Ddad, begun: Path) -> None:
    file = begun / "config.yaml"
    content = yaml.safe_load(file.read_text())
    for damage, expected in {
        yaml.safe_dump({**content, "schema": 7}).encode(): "schema 7, this version reads schema 1",
        b"seed: [": "its config.yaml cannot be read",
        b"- 1\n": "its config.yaml holds no configuration",
        b"\xff\xfe\xfd": "its config.yaml cannot be read",
        yaml.safe_dump({**content, "records": None}).encode(): "records",
        yaml.safe_dump({key: value for key, value in content.items() if key != "records"}).encode(): "records",
    }.items():
        file.write_bytes(damage)
        before = contents(workplace)
        assert expected in ddad(*DIGITS).complaint()
        assert contents(workplace) == before


def test_folder_of_something_else(workplace: Path, ddad: Ddad) -> None:
    (workplace / "thesis").mkdir()
    (workplace / "thesis" / "chapter.tex").write_text("...")
    (workplace / "file").write_text("...")
    before = contents(workplace)
    assert "thesis holds something else (chapter.tex)" in ddad(*DIGITS, "--output", "thesis").complaint()
    assert "file" in ddad(*DIGITS, "--output", "file").complaint()
    assert "cannot write to file/run: Not a directory" in ddad(*DIGITS, "--output", "file/run").complaint()
    assert "cannot write to /proc/run" in ddad(*DIGITS, "--output", "/proc/run").complaint()
    assert contents(workplace) == before


@pytest.fixture
def powerless() -> Iterator[None]:
    """Permissions count also where root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folder_without_permission(
    ddad: Ddad, workplace: Path, powerless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path itself belongs to root
        place = Path(name)
        monkeypatch.chdir(place)
        words = (*OWN, *UNTAUGHT)
        for folder, mode in {"readable": 0o500, "closed": 0o000}.items():
            (place / folder).mkdir(mode=mode)
            line = ddad(*words, "--output", place / folder / "run").complaint()
            assert str(place / folder) in line and "Permission denied" in line
        (place / "closed").chmod(0o700)
        place.chmod(0o500)
        assert "Permission denied" in ddad(*words).complaint()
        assert [path.name for path in sorted(place.rglob("*"))] == ["closed", "readable"]
        place.chmod(0o700)


def test_checkpoint_of_the_run_is_corrupt(workplace: Path, ddad: Ddad, begun: Path) -> None:
    checkpoint = only(begun, "checkpoints/*")
    whole = checkpoint.read_bytes()
    for damage in (whole[:-1], b"", random.Random(0).randbytes(500), whole[:8] + b"x" + whole[9:]):
        checkpoint.write_bytes(damage)
        before = contents(workplace)
        line = ddad(*DIGITS).complaint()
        assert f"checkpoint {checkpoint.relative_to(workplace)} is damaged" in line
        after = contents(workplace)
        assert after.keys() == before.keys()
        assert after[str(checkpoint.relative_to(workplace))] == before[str(checkpoint.relative_to(workplace))]
    checkpoint.write_bytes(whole)
    assert ddad(*DIGITS).code == 0


def test_checkpoint_of_the_run_is_foreign(workplace: Path, ddad: Ddad, begun: Path) -> None:
    checkpoint = only(begun, "checkpoints/*")
    other = (*DIGITS, "student.network=cnn6", "max_minutes=0.00001", "--output", "other")
    assert ddad(*other).code == 0
    shutil.copy(workplace / "other" / "checkpoints" / checkpoint.name, checkpoint)
    before = contents(workplace)
    line = ddad(*DIGITS).complaint()
    assert re.search(r"belongs to another student: it does not fit at features\.0\.weight, ", line)
    assert contents(workplace).keys() == before.keys()
    for metadata in (None, {"state": "{}"}, {"state": "3"}, {"state": json.dumps({"round": 1})}, {"other": "1"}):
        save_file(teacher_weights(), checkpoint, metadata)
        line = ddad(*DIGITS).complaint()
        assert checkpoint.name in line


def test_result_of_the_run_is_damaged(workplace: Path, ddad: Ddad, begun: Path) -> None:
    (begun / "result.json").write_text('{"schema": 1, "ta')
    assert "result.json cannot be read" in ddad(*DIGITS).complaint()
    for content in ('{"a": 1}', "[]"):
        (begun / "result.json").write_text(content)
        assert "result.json is not what a finished run wrote: delete it" in ddad(*DIGITS).complaint()


def test_evaluating_a_run_that_is_not_finished(workplace: Path, ddad: Ddad, begun: Path) -> None:
    for words in (("evaluate", begun), ("export", begun), ("predict", begun, "image.png")):
        assert "is unfinished" in ddad(*words).complaint()


def test_teacher_of_the_run_was_replaced(workplace: Path, ddad: Ddad, begun: Path) -> None:
    save_file({key: value + 1 for key, value in teacher_weights().items()}, TEACHER)
    before = contents(workplace)
    line = ddad(*DIGITS).complaint()
    assert "(teacher.checkpoint) is not the file this run began with" in line
    assert contents(workplace) == before


def test_teacher_was_replaced_after_the_run_or_is_gone(workplace: Path, ddad: Ddad, begun: Path) -> None:
    assert ddad(*DIGITS).code == 0
    taught = Path(TEACHER).read_bytes()
    save_file({key: value + 1 for key, value in teacher_weights().items()}, TEACHER)
    before = contents(workplace)
    line = ddad(*DIGITS).complaint()
    assert f"{TEACHER} is not the file the run began with: put that one back, or give another --output" in line
    assert contents(workplace) == before
    Path(TEACHER).write_bytes(taught)
    assert "is finished" in ddad(*DIGITS).err
    Path(TEACHER).unlink()
    assert "is finished" in ddad(*DIGITS).err


def test_two_processes_on_one_folder(workplace: Path, ddad: Ddad) -> None:
    words = ("digits", "rounds=500", "log_every=1", *SMALL[1:])
    with started("distill", *words, cwd=workplace) as process:
        wait(process, lambda: any(path.stat().st_size for path in workplace.glob("runs/*/metrics.jsonl")))
        process.send_signal(signal.SIGSTOP)
        line = ddad("distill", *words).complaint()
        assert re.search(r"runs/digits-\w+ is in use by another process", line)
        process.kill()


def test_relay_of_a_lock_left_by_a_dead_process(workplace: Path, ddad: Ddad, begun: Path) -> None:
    assert (begun / ".lock").exists()
    assert ddad(*DIGITS).code == 0


# Divergence -----------------------------------------------------------------------------------------------------------


def test_diverging_student_is_named(workplace: Path, ddad: Ddad) -> None:
    line = ddad(*DIGITS, "student.lr=1e30").complaint(3)
    assert re.match(r"diverged in round 1: student/(discrepancy|total) is not finite", line)
    assert "lower a learning rate" in line
    assert not list(workplace.glob("runs/*/checkpoints/*"))


def test_diverging_generator_is_named_and_keeps_the_last_good_checkpoint(workplace: Path, ddad: Ddad) -> None:
    words = ("distill", "digits", "rounds=9", *SMALL[1:], "log_every=1", "checkpoint.every=2")
    said = ddad(*words, "weights.adversarial=[[0,1],[5,1e39]]")  # beyond fp32
    assert said.code == 3
    (line,) = said.err.splitlines()
    assert re.match(r"ddad: diverged in round 6: generator/(adversarial|total) is not finite; the last good", line)
    folder = only(workplace, "runs/*")
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == [
        "round-00000002.safetensors", "round-00000004.safetensors"
    ]  # fmt: skip
    assert all(value.isfinite().all() for path in folder.glob("checkpoints/*") for value in load_file(path).values())
    assert not (folder / "result.json").exists() and not (folder / "student.safetensors").exists()
    assert [json.loads(row)["round"] for row in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    again = ddad(*words, "weights.adversarial=[[0,1],[5,1e39]]")
    assert (again.code, again.err) == (3, said.err)


# Disks that are full --------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2.4 MB: two checkpoints of the digits recipe fit, a third beside them does not."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2400k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(file: Path) -> None:
    """Appends blanks until the disk takes no more."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(descriptor, b" " * 4096):
            pass
    os.close(descriptor)
    assert os.statvfs(file).f_bavail == 0


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)


@pytest.mark.root
def test_disk_is_full_at_a_checkpoint(workplace: Path, ddad: Ddad, disk: Path) -> None:
    words = ("distill", "digits", "rounds=6", *SMALL[1:], "log_every=1", "checkpoint.every=1")
    said = ddad(*words, "--output", disk / "run")
    assert said.code == 2
    (line,) = said.err.splitlines()
    assert re.match(r"ddad: cannot write .*round-00000003.safetensors: No space left on device", line)
    assert "what was there before is intact" in line
    files = {str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file()}
    assert files == {
        "run/.lock", "run/config.yaml", "run/environment.json", "run/metrics.jsonl",
        "run/checkpoints/round-00000001.safetensors", "run/checkpoints/round-00000002.safetensors",
    }  # fmt: skip
    enlarge(disk)
    assert ddad(*words, "--output", disk / "run").code == 0
    assert ddad(*words, "--output", "roomy").code == 0
    assert sha256(disk / "run" / "student.safetensors") == sha256(workplace / "roomy" / "student.safetensors")


@pytest.mark.root
@pytest.mark.parametrize("full_after", [1, 2, 6])
def test_disk_is_full_at_the_log_or_the_end(workplace: Path, ddad: Ddad, disk: Path, full_after: int) -> None:
    """Filled by something else after a round: the log, then the student, has no room."""
    over = {"rounds": 6, "batch_size": 16, "log_every": 1, "checkpoint": {"every": 6}, "tracking": {"uri": "none"}}
    config = resolve.resolve("digits", overrides={**over, "pictures": False})
    reports = distill.rounds(config, disk / "run")
    for report in reports:
        if report.round == full_after:
            break
    fill(disk / "filler")
    fill(disk / "run" / "metrics.jsonl")  # up to the last byte of its last page
    with pytest.raises(UserError, match="No space left on device"):
        for _ in reports:
            pass
    assert not list(disk.rglob("*.tmp*"))
    (disk / "filler").unlink()
    enlarge(disk)
    words = ("distill", "--config", disk / "run" / "config.yaml", "--output", disk / "run")
    assert ddad(*words).code == 0
    assert (disk / "run" / "result.json").exists()
