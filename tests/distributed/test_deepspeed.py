"""DeepSpeed: every pair of stages is as one process, and its checkpoints are everyone's."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.config.parse import Overlay, merge
from harness.errors import UserError
from harness.training import checkpoint
from tests.distributed import cases, deepspeed_cases, ranks
from tests.distributed.deepspeed_cases import BF16, HALF, NORMALISED, PLAIN, PRUNED, STAGES, VARIANTS, name

TOLERANCE = 1e-6
"""Of fp32 after 5 rounds."""

SKIPPED = [
    [f"the gradient of {player} ({player}/gradient_norm) is not finite", True] for player in ("student", "generator")
]
"""What a student's and a generator's turn end in: a message, and a network that is as it was."""

State = dict[str, Tensor]


def alone(over: Overlay) -> State:
    """The end of a case on one process, without DeepSpeed."""
    machine = cases.build(over)
    cases.play(machine)
    return cases.state(machine)


@pytest.fixture(scope="module")
def plain() -> State:
    return alone(PLAIN)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave behind, beginning from a single process's checkpoint "alone"."""
    out = tmp_path_factory.mktemp("together")
    machine = cases.build(PLAIN)
    cases.play(machine, 0, HALF)
    checkpoint.store(out / "alone", machine.players, {"round": HALF}, 1)
    assert ranks.finish(ranks.start(2, deepspeed_cases.play_all, out), seconds=840) == [0, 0]
    return out


@pytest.fixture(scope="module")
def found(together: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((together / "found.json").read_text())
    return content


pairs = pytest.mark.parametrize("stages", STAGES, ids=name)
several = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(900)]


class TestTwoProcesses:
    pytestmark = several

    @pairs
    def test_they_are_as_one(
        self, plain: State, together: Path, found: dict[str, Any], stages: tuple[int, int]
    ) -> None:
        assert cases.distance(load_file(together / f"{name(stages)}.end"), plain) <= TOLERANCE
        assert found[name(stages)]["start"] and found[name(stages)]["equal"], "both hold the same bits"

    @pairs
    def test_resume_is_equal_to_the_bit(self, found: dict[str, Any], stages: tuple[int, int]) -> None:
        assert found[name(stages)]["resumed"]

    @pairs
    def test_one_process_goes_on_from_their_checkpoint(
        self, plain: State, together: Path, stages: tuple[int, int]
    ) -> None:
        machine = cases.build(PLAIN)
        state = checkpoint.restore(together / name(stages), machine.players)
        assert state and state["round"] == HALF
        cases.play(machine, HALF)
        assert cases.distance(cases.state(machine), plain) <= TOLERANCE

    @pairs
    def test_they_go_on_from_its_checkpoint(self, plain: State, together: Path, stages: tuple[int, int]) -> None:
        machine = cases.build(PLAIN)
        checkpoint.restore(together / "alone", machine.players)
        assert cases.distance(load_file(together / f"{name(stages)}.taken"), cases.state(machine)) == 0
        assert cases.distance(load_file(together / f"{name(stages)}.taken_end"), plain) <= TOLERANCE

    @pairs
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_variants_are_as_one(self, plain: State, together: Path, stages: tuple[int, int], variant: str) -> None:
        expected = alone(VARIANTS[variant])
        assert cases.distance(load_file(together / f"{name(stages)}.{variant}"), expected) <= TOLERANCE
        assert cases.distance(expected, plain) > 1e-3, "and another run than the plain one"

    @pairs
    def test_the_latch_skips_updates(self, found: dict[str, Any], stages: tuple[int, int]) -> None:
        assert found[name(stages)]["latched"]
        assert found[name(stages)]["frozen"]

    @pairs
    def test_a_gradient_that_is_not_finite_stops_before_the_update(
        self, found: dict[str, Any], stages: tuple[int, int]
    ) -> None:
        assert found[name(stages)]["skipped"] == SKIPPED * 2

    def test_stage_3_holds_no_whole_weights(self, found: dict[str, Any]) -> None:
        assert found["3-3"]["held"] == 0 < found["2-2"]["held"]

    def test_a_parameter_without_an_axis_is_refused(self, found: dict[str, Any]) -> None:
        assert found["scalar"].startswith("student.network: its parameter '1.gain' is of shape []")

    def test_synchronised_batch_norm(self, together: Path, found: dict[str, Any]) -> None:
        assert found["normalised"]
        assert cases.distance(load_file(together / "normalised"), alone(NORMALISED)) < 1e-4

    def test_a_pruned_student(self, together: Path, found: dict[str, Any]) -> None:
        assert found["pruned"]
        assert cases.distance(load_file(together / "pruned"), alone(PRUNED)) < 1e-4

    def test_bf16_is_autocast(self, plain: State, together: Path, found: dict[str, Any]) -> None:
        state = load_file(together / "bf16")
        assert found["bf16"]
        assert {value.dtype for value in state.values()} == {torch.float32}
        one, rounding = alone(BF16), 1e-2  # 8 bits; the processes' sums over 6 and 7 images round another way
        assert 1e-4 < cases.distance(state, plain) < rounding
        assert 1e-4 < cases.distance(one, plain) < rounding


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_process_without_a_launcher(plain: State, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=deepspeed_cases.play_alone, args=(tmp_path,))
    process.start()
    assert ranks.finish([process], seconds=840) == [0]
    assert cases.distance(load_file(tmp_path / "one"), plain) <= TOLERANCE


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers, .*: pip install transformers"):
        cases.build({"distributed": {"strategy": "deepspeed"}})


def test_fp64_is_refused() -> None:
    with pytest.raises(UserError, match=r"precision=fp64: DeepSpeed .* set precision=fp32"):
        cases.build({"distributed": {"strategy": "deepspeed"}})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is something to move state from")
def test_offload_is_refused_without_a_gpu() -> None:
    with pytest.raises(UserError, match=r"distributed\.zero\.offload=true .* there is no GPU here"):
        cases.build(merge(PLAIN, {"distributed": {"strategy": "deepspeed", "zero": {"offload": True}}}))
