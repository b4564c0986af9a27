"""`ddad profile`: operations by hand, the parts of a round, files, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from harness import cli, resolve
from harness.commands.profile import capacity, report, timing
from harness.commands.profile.measure import Part, Profile
from harness.config.parse import merge
from harness.errors import UserError

SMALL = {
    "batch_size": 4, "student_steps": 2, "teacher": {"checkpoint": "untrained", "network": "cnn8"},
    "student": {"network": "cnn4"}, "generator": {"latent_size": 8, "width": 4}, "tracking": {"uri": "none"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(timing, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(timing, "COPY_MIB", {"cpu": 1})


def test_a_profile_counts_every_part_of_a_round(tmp_path: Path) -> None:
    lines: list[str] = []
    found = report.run(resolve.resolve("digits", None, SMALL), tmp_path / "out", False, True, lines.append)
    all_parts = [Part(**part) for part in found["parts"]]
    parts = {(part.network, part.learns, part.step): part for part in all_parts}
    assert {role: part.times for role, part in parts.items()} == {
        ("generator", False, "answer"): 2, ("teacher", False, "answer"): 2,
        ("student", True, "forward"): 2, ("student", True, "backward"): 2, ("student", True, "update"): 2,
        ("generator", True, "forward"): 1, ("generator", True, "backward"): 1, ("generator", True, "update"): 1,
        ("teacher", False, "forward"): 1, ("teacher", False, "backward"): 1,
        ("student", False, "forward"): 1, ("student", False, "backward"): 1,
    }  # fmt: skip
    # cnn8 at 8x8, a batch of 4: multiply-adds of three 3x3 convolutions (1-8, 8-16, 16-16 behind a pool), then linear.
    forward = 2 * 4 * (8 * 1 * 9 * 64 + 16 * 8 * 9 * 64 + 16 * 16 * 9 * 16 + 16 * 10)
    assert parts["teacher", False, "answer"].flop == parts["teacher", False, "forward"].flop == forward
    assert parts["teacher", False, "backward"].flop == forward, "gradients of inputs alone: the weights are frozen"
    own, guest = parts["student", True, "backward"], parts["student", False, "backward"]
    assert guest.flop == parts["student", False, "forward"].flop < own.flop
    assert all(part.seconds > 0 and part.bytes > 0 for part in all_parts)
    assert found["flop"] == sum(part.times * part.flop for part in all_parts)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(report.OWN)
    assert json.loads((tmp_path / "out" / "profile.json").read_text()) == json.loads(json.dumps(found))
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    with Image.open(tmp_path / "out" / "timeline.png") as picture:
        assert picture.width > 1000
    assert "| teacher | others' | backward | 1 |" in (tmp_path / "out" / "profile.md").read_text()
    assert any("of peak FLOP/s" in line for line in lines)


def test_every_update_of_image_steps_is_counted(tmp_path: Path) -> None:
    over = merge(SMALL, {"method": "fast", "micro_batches": 2, "inversion": {"steps": 3, "rounds": 1}})
    found = report.run(resolve.resolve("digits", None, over), tmp_path / "out", False, False, lambda line: None)
    times = {(part["network"], part["step"]): part["times"] for part in found["parts"] if part["learns"]}
    assert times["generator", "update"] == times["generator", "backward"] == 2 * 3
    assert times["student", "update"] == 2


def test_shares_are_of_the_machines_peaks() -> None:
    config = resolve.resolve("digits", None, SMALL)
    part = Part("student", True, "forward", 2, 3_000, 500, 0.25)
    found = Profile(config, [part], [[("student", True, "forward")]], 1.0, 24_000, 4_000, 2**20, "cpu")
    whole = report.rows(found)[-1]
    assert report.rows(found)[0][-3:] == ["50.0%", "50%", "50%"]
    assert whole[-2:] == ["25%", "25%"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "studnet.lr=1"], "unknown path 'studnet.lr'"),
        (["digits", "--output", "taken"], "taken holds something else (mine.txt)"),
        (["digits", "--output", "file"], "--output file: cannot be a folder for a profile"),
        (["digits", "speed.cuda_graphs=true"], "speed.cuda_graphs=true needs a GPU"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["ddad", "profile", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and message in said[-1]
    assert sum(line.startswith("ddad: ") for line in said) == 1


def test_the_largest_batch_is_searched_for() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 1000

    for start in (64, 3000):  # the run's own batch may be too large
        tried.clear()
        found = capacity.search(fits, start, 4)
        assert 1000 - 1000 // 16 <= found <= 1000 and found % 4 == 0 and len(tried) < 12
    assert capacity.search(lambda size: False, 64, 4) == 0


def test_the_largest_batch_is_predicted_from_clear_growth() -> None:
    """1 GiB for 64 images more are 16 MiB an image: in 2 GiB are 128 more."""
    gib = 2.0**30
    assert capacity.predict([32, 64], [gib, 2 * gib], gib) is None
    assert capacity.predict([32, 64, 128], [gib, gib, 2 * gib], gib) is None
    assert capacity.predict([32, 64, 128], [gib, 1.5 * gib, 2.5 * gib], 2 * gib) == 128 + 128


def test_supervised_has_no_profile(tmp_path: Path) -> None:
    config = resolve.resolve("digits", None, {**SMALL, "method": "supervised"})
    with pytest.raises(UserError, match="a profile is of a distillation"):
        report.run(config, tmp_path / "out", False, False, print)
