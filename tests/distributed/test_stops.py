"""Two processes stop and write after the same turn, whichever of them asks, and go on to the bit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed import ranks, stops

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("stops")
    ranks.run(2, stops.stop_and_go, out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", stops.STEPPED)
def test_a_stop_of_one_is_everyones_after_the_same_turn(found: list[dict[str, Any]], case: str) -> None:
    first, second = (rank[case] for rank in found)
    assert first == second
    assert first["same"], "and the run goes on to the bit"
    *stopped, last = first["positions"]
    assert all((reason, done) == ("SIGTERM", round_) for done, reason, round_, _ in stopped)
    assert last[1] is None and len(stopped) > 1
    assert any(turn for *_, turn in stopped), "within a round"


def test_the_clock_of_rank_0_counts(found: list[dict[str, Any]]) -> None:
    assert found[0]["timed"] == found[1]["timed"]
    assert len(found[0]["timed"]) > 2
