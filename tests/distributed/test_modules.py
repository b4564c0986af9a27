"""Networks that are modules in memory, on several processes: all have to be given the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.files import sha256
from tests.distributed import cases, ranks

pytestmark = pytest.mark.distributed


def test_modules_alike_are_one_run_and_others_are_refused(tmp_path: Path) -> None:
    ranks.run(2, cases.given_modules, tmp_path, "alike", (5, 5))
    ranks.run(1, cases.given_modules, tmp_path, "one", (5,))
    kept = [sha256(tmp_path / name / "given/student.safetensors") for name in ("alike", "one")]
    assert kept[0] == kept[1] and not list(tmp_path.glob("*.refused"))
    ranks.run(2, cases.given_modules, tmp_path, "unlike", (5, 6))
    assert sorted(path.name for path in tmp_path.iterdir() if "unlike" in path.name) == [
        "unlike-0.refused",
        "unlike-1.refused",
    ]
    assert "other weights: load or seed them alike" in (tmp_path / "unlike-1.refused").read_text()
