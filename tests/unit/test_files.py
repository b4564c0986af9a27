"""Files are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness import files
from harness.errors import UserError
from harness.run import folder
from tests.helpers import environment


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    files.write(path, "old")

    def fail() -> None:
        with files.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*; what was there before is intact"):
        files.write(tmp_path / "file" / "below", "x")


def test_claiming_a_folder_sweeps_what_a_killed_writer_left(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    with files.atomic(checkpoints / "round-00000001.safetensors") as temporary:
        temporary.write_text("whole")
        left = temporary.with_name(temporary.name.replace(".tmp", "9.tmp"))  # another process's
        left.write_text("half")
    images = tmp_path / ".images.1.tmp"  # of a command that makes a folder
    images.mkdir()
    (images / "0.png").write_text("half")
    with folder.claim(tmp_path):
        assert [entry.name for entry in checkpoints.iterdir()] == ["round-00000001.safetensors"]
        assert not images.exists()


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match="in use by another process")
    with folder.claim(tmp_path), refused, folder.claim(tmp_path):
        pass
    with folder.claim(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    """The other process is killed while this one waits."""
    program = "import sys, time\nfrom pathlib import Path\nfrom harness import files\n"
    program += "with files.lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    path = tmp_path / "made" / ".lock"
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), files.lock(path):
            pass
        waiting = threading.Timer(0.2, holder.kill)
        waiting.start()
        with files.lock(path, wait=True):
            assert holder.wait(10) < 0
        waiting.join()


def test_a_lock_is_released_by_whichever_thread_ends_the_work(tmp_path: Path) -> None:
    held = files.lock(tmp_path / ".lock")
    held.__enter__()
    thread = threading.Thread(target=held.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    with files.lock(tmp_path / ".lock"):
        pass


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / ".lock").mkdir(parents=True)
    for path in (tmp_path / "file" / ".lock", tmp_path / "folder" / ".lock"):
        with pytest.raises(UserError, match="cannot write to"), files.lock(path):
            pass
