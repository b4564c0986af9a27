"""What `speed.*` switches: the same losses within rounding, a fixed number of graphs, and refusals in one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from harness import config as config_module
from harness import resolve
from harness.config.parse import Overlay, merge
from harness.distributed import speed
from harness.errors import Diverged, UserError
from harness.training import checkpoint, distill
from harness.training.machine import Machine
from tests.unit.test_turns import SMALL, build, state

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # torch.compile looks at its inputs, and hides this
)

FULL: Overlay = {"weights": {"activation": 0.1, "tv": 0.01}, "precision": "fp64"}
"""A round in which everything is asked of the teacher: moments and features."""


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler, as speed.compile does"
)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile that traces and runs what it traced, without compiling; its counters start at 0."""
    monkeypatch.setattr(speed, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def play(over: Overlay, rounds: int) -> list[float]:
    """The totals of all turns, in order."""
    built = build(over)
    return [built.play(index, turn).total.item() for index in range(rounds) for turn in range(len(built.turns))]


def graphs() -> dict[str, int]:
    return {
        "unique_graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
        "recompiled": sum(counters["recompile_limit"].values()),
    }


@needs_compiler
@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("over", "expected"),
    [
        (FULL, 6),  # teacher, student and generator, each in its own turn or with gradients, and in others'
        ({**FULL, "precision": "bf16"}, 6),
        (merge(FULL, {"method": "zskt", "weights": {"batch_norm": 1.0}}), 6),
    ],
    ids=["ddad", "bf16", "zskt"],
)
def test_a_round_is_a_fixed_number_of_graphs_without_a_break(over: Overlay, expected: int) -> None:
    built = build(merge(over, {"speed": {"compile": True}}))
    for turn in range(len(built.turns)):
        built.play(0, turn)
    first = graphs()
    assert first == {"unique_graphs": expected, "breaks": 0, "recompiled": 0}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for index in (1, 2):
            for turn in range(len(built.turns)):
                built.play(index, turn)
    assert graphs() == first


@needs_compiler
@pytest.mark.usefixtures("counted")
def test_tracing_changes_nothing() -> None:
    """The same operations in the same order: what differs under inductor is inductor's rounding alone."""
    assert play(merge(FULL, {"speed": {"compile": True}}), 2) == play(FULL, 2)


@needs_compiler
@pytest.mark.usefixtures("counted")
def test_an_evaluation_between_rounds_is_not_compiled_and_the_state_is_the_same() -> None:
    built, plain = build(merge(FULL, {"speed": {"compile": True}})), build(FULL)
    for one in (built, plain):
        one.play(0, 0)
        one.play(0, 2)
        networks = one.networks()
        assert networks.teacher is not None
        with torch.no_grad():
            networks.teacher(networks.generate(5, "samples"))
        one.play(1, 0)
        one.play(1, 2)
    assert graphs()["unique_graphs"] == 6
    for name, player in plain.players.items():
        other = state(built.players[name].module)
        assert all(torch.equal(value, other[key]) for key, value in state(player.module).items())


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_inductor_agrees_with_eager_and_resumes_to_its_own_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    small = merge(FULL, {"student_steps": 1, "teacher": {"network": "cnn4"}})
    plain, straight, first, second = (
        build(small),
        *(build(merge(small, {"speed": {"compile": True}})) for _ in range(3)),
    )

    def play_round(built: Machine, index: int) -> list[float]:
        return [built.play(index, turn).total.item() for turn in range(2)]

    expected = play_round(plain, 0) + play_round(plain, 1)
    assert play_round(straight, 0) + play_round(straight, 1) == pytest.approx(expected, rel=1e-9)
    play_round(first, 0)
    checkpoint.store(tmp_path / "run", first.players, {"round": 1}, keep=1)
    checkpoint.restore(tmp_path / "run", second.players)
    play_round(second, 1)
    for name, player in straight.players.items():
        other = state(second.players[name].module)
        assert all(torch.equal(value, other[key]) for key, value in state(player.module).items())


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"speed": {"cuda_graphs": True}},
            r"speed\.cuda_graphs=true needs a GPU, this run is on the cpu",
        ),
        ({"speed": {"tf32": True}}, r"speed\.tf32=true needs a GPU"),
        (
            {"speed": {"compile": True}, "student": {"attention": 1.0}},
            r"no feature maps: set student\.attention=0",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(over: Overlay, message: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=message) as caught:
        build(over)
    assert "\n" not in str(caught.value)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, such as g\+\+"):
        build({"speed": {"compile": True}})


class NoReading(TorchDispatchMode):
    """Refuses what makes the host read a number of the device, and so wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")), name
        return func(*args, **(kwargs or {}))


OTHERS: dict[str, Overlay] = {
    "full": FULL,
    "clip": {"student": {"clip": 1.0, "attention": 1.0}, "micro_batches": 2},
    "replay": {"replay": {"share": 0.5, "place": "device"}},
    "cropped": {"replay": {"share": 0.5, "augment": True, "place": "device"}},
    "averaged": {"student": {"average": 0.1}},
    "zskt": {"method": "zskt", "student": {"attention": 1.0}},
    "deepinversion": {"method": "deepinversion", "weights": {"target": 1.0}, "inversion": {"steps": 2}},
    "cmi": {"method": "cmi", "weights": {"contrastive": 1.0}, "inversion": {"steps": 2, "views": "crop"}},
    "fast": {"method": "fast", "inversion": {"steps": 2, "latent_lr": 0.1, "momentum": 0.9}},
    "nayer": {"method": "nayer", "weights": {"target": 1.0}, "inversion": {"steps": 2}, "generator": {"restart": 1}},
    "anew": {"generator_steps": 2, "generator": {"restart": 1}},
    "shared latents": {
        "generator_steps": 2, "shared_latents": True, "inversion": {"views": "crop"},
        "replay": {"share": 0.5, "place": "device"},
    },
    "averaged generator": {"generator": {"average": 0.5}},
    "segmentation": {
        "task": "segmentation", "adversarial_transform": "log1p", "input": {"size": 16},
        "teacher": {"network": "unet8"}, "student": {"network": "unet4"}, "generator": {"network": "dcgan"},
    },
}  # fmt: skip
"""What a turn can be beside the usual."""


@pytest.mark.parametrize("over", OTHERS.values(), ids=OTHERS.keys())
def test_a_turn_reads_nothing_back(over: Overlay) -> None:
    """On a GPU each number read waits for all that was asked of it; here the operations that read are refused."""
    built = build(over)
    built.health.verify = lambda: None  # type: ignore[method-assign]  # as on a GPU between two reports
    for index in (0, 1):  # in the second there is a past to draw from
        with NoReading():
            for turn in range(len(built.turns)):
                for part in range(built.config.micro_batches):
                    built.play(index, turn, part)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReading():
        torch.arange(3)[torch.tensor(1)]


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_report_reads_once(tmp_path: Path) -> None:
    """Beside the latch after each turn, which is read on a CPU alone, and the report's values, all at once."""
    over = {"recipe": "bare", "rounds": 6, "log_every": 2, "pictures": False, "tracking": {"uri": "none"}}
    config = config_module.build(merge(SMALL, over))
    reports = distill.rounds(config, tmp_path / "run")
    assert next(reports).round == 2
    with Reads() as reads:
        assert next(reports).round == 4
    reports.close()
    num_turns = 2 * (config.student_steps + 1)
    assert reads.count == 2 * num_turns + 1, "the loss and the gradient of each turn, and the report"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("switches", "tolerance"),
    [
        ({"compile": True}, 1e-4),
        ({"compile": True, "cuda_graphs": True}, 1e-4),
        ({"tf32": True}, 1e-2),
        ({"tf32": False}, 1e-4),
    ],
    ids=str,
)
def test_a_gpus_switches_agree_with_its_defaults(switches: dict[str, bool], tolerance: float) -> None:
    expected = play({}, 2)
    assert play({"speed": switches}, 2) == pytest.approx(expected, rel=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "over", [over for over in OTHERS.values() if "inversion" not in over]
)  # a batch begins on the host
def test_a_turn_does_not_wait_for_the_gpu(over: Overlay) -> None:
    built = build(over)
    for turn in range(len(built.turns)):
        built.play(0, turn)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for turn in range(len(built.turns)):
            built.play(1, turn)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_switches_are_set_back_in_reverse() -> None:
    """They can be set where there is no GPU."""
    before, gpu = tf32(), torch.device("cuda")
    resets = []
    for value in (True, False):
        config = config_module.build(merge(SMALL, {"speed": {"tf32": value}}))
        resets.append(speed.switch(config, gpu, 1))
        assert tf32() == (value, value)
    resets[1]()
    assert tf32() == (True, True)
    resets[0]()
    assert tf32() == before


@needs_compiler
@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("end", ["finished", "closed early", "failed"])
def test_a_run_sets_its_switches_back(end: str, tmp_path: Path) -> None:
    over: Overlay = {"recipe": "bare", "rounds": 1, "pictures": False, "tracking": {"uri": "none"}, "log_every": 1,
                     "speed": {"compile": True}, "data": {"name": "none"}}  # fmt: skip
    if end == "failed":
        over = merge(over, {"weights": {"adversarial": 1e39}})
    # Tests that build a Runtime and never close it leave theirs.
    with torch._dynamo.config.patch(recompile_limit=3):
        reports = distill.rounds(config_module.build(merge(SMALL, over)), tmp_path / "run")
        with pytest.raises(Diverged) if end == "failed" else nullcontext():
            next(reports)
            assert torch._dynamo.config.recompile_limit == speed.MAX_GRAPHS
            if end == "finished":
                assert [report.result is not None for report in reports] == [True]
        reports.close()
        assert torch._dynamo.config.recompile_limit == 3


@pytest.mark.parametrize("taught", [True, False])
def test_one_runtime_a_configuration(taught: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a teacher is taught on the way there is that of the lesson, and the run's again after it."""
    from accelerate.state import AcceleratorState

    made: list[bool] = []
    reset = AcceleratorState._reset_state

    def count(reset_partial_state: bool = False) -> None:
        made.append(reset_partial_state)
        reset(reset_partial_state)

    monkeypatch.setattr(AcceleratorState, "_reset_state", staticmethod(count))
    monkeypatch.chdir(tmp_path)
    over = {"rounds": 1, "batch_size": 1024, "pictures": False, "tracking": {"uri": "none"}, "log_every": 1}
    teacher = {"teach": {"epochs": 1}} if taught else {"teacher": {"checkpoint": "untrained"}}
    config = resolve.resolve("digits", None, merge(over, teacher))
    with closing(distill.rounds(config, tmp_path / "run")) as reports:
        assert next(report.round for report in reports if report.folder == tmp_path / "run") == 1
    assert len(made) == (3 if taught else 1)
