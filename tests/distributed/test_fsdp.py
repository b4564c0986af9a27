"""One process and two that share every parameter between them give the same losses, updates and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from harness.config.parse import merge
from tests.distributed import cases, fsdp_cases, ranks

pytestmark = pytest.mark.distributed

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, in one start for all tests."""
    folder = tmp_path_factory.mktemp("fsdp")
    fsdp_cases.half(folder / "alone", fsdp_cases.CASES["blocks, adam"])
    assert ranks.finish(ranks.start(2, fsdp_cases.everything, folder), seconds=500) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> list[dict[str, Any]]:
    """The findings of the two ranks."""
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, State]:
    """The end of every case on one process."""
    ends = {}
    for case, over in fsdp_cases.CASES.items():
        machine = cases.build(over)
        cases.play(machine)
        ends[case] = cases.state(machine)
    return ends


@pytest.mark.parametrize("case", fsdp_cases.CASES)
def test_two_processes_are_as_one(alone: dict[str, State], out: Path, case: str) -> None:
    assert cases.distance(load_file(out / f"{case}.safetensors"), alone[case]) < 1e-8


def test_clipping_counts_in_these_cases(alone: dict[str, State]) -> None:
    case = "blocks, clipped, in micro-batches"
    free = cases.build(merge(fsdp_cases.CASES[case], {"student": {"clip": 0.0}, "generator": {"clip": 0.0}}))
    cases.play(free)
    assert cases.distance(cases.state(free), alone[case]) > 1e-2


@pytest.mark.parametrize("case", [*fsdp_cases.CASES, "resumed", "from one process", "local"])
def test_ranks_give_the_same_bits(found: list[dict[str, Any]], case: str) -> None:
    """Also with batch norm whose statistics each process keeps for itself."""
    assert found[0][case] == found[1][case]


@pytest.mark.parametrize("network", ["student", "generator", "teacher"])
def test_a_process_holds_its_share(found: list[dict[str, Any]], network: str) -> None:
    (first, total), (second, _) = (rank["own share"][network] for rank in found)
    assert first + second == total
    assert 0.4 * total < second <= first


def test_a_resumed_run_goes_on_to_the_bit(found: list[dict[str, Any]]) -> None:
    assert found[0]["resumed"] == found[0]["blocks, adam"]


def test_a_gradient_that_is_not_finite_stops_before_the_update(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["skipped"] == [
            [f"the gradient of {player} ({player}/gradient_norm) is not finite", True]
            for player in ("student", "generator")
        ]


def test_checkpoints_go_from_one_process_to_shards_and_back(alone: dict[str, State], out: Path) -> None:
    assert cases.distance(load_file(out / "from one process.safetensors"), alone["blocks, adam"]) < 1e-8
    assert cases.distance(cases.state(fsdp_cases.resumed(out / "together")), alone["blocks, adam"]) < 1e-8


def test_ranks_may_evaluate_different_numbers_of_batches(found: list[dict[str, Any]]) -> None:
    machine = cases.build(fsdp_cases.CASES["teacher"])
    cases.play(machine)
    assert found[0]["scores"] == found[1]["scores"] == fsdp_cases.uneven_evaluation(machine)


def test_updates_end_on_the_device(found: list[dict[str, Any]]) -> None:
    assert found[0]["latched"] and found[1]["latched"]


def test_bf16_is_autocast_over_fp32_weights(found: list[dict[str, Any]]) -> None:
    single = fsdp_cases.low_precision()
    for rank in found:
        assert rank["bf16"]["inside"] == ["torch.bfloat16"] * 3, "two turns of its own, one of another"
        assert rank["bf16"]["weights"] == ["torch.float32"]
        assert rank["bf16"]["losses"] == pytest.approx(single["losses"], rel=0.05)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (0, "distributed.shard_teacher=true needs distributed.strategy=fsdp, not ddp"),
        (1, "needs a loss over the teacher's logits, from round 5 there is none"),
        (2, "distributed.strategy=fsdp cannot shard Scalar"),
    ],
)
def test_what_cannot_be_sharded_is_said_in_a_line(found: list[dict[str, Any]], place: int, reason: str) -> None:
    for rank in found:
        assert reason in (rank["refused"][place] or "")
        assert "\n" not in rank["refused"][place]
