"""`from harness import distill`: networks that are modules in memory, their copies in the run folder, and resume."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harness import UserError, distill, evaluate, load_student, rounds
from harness.files import sha256
from harness.networks import build
from harness.run import folder
from harness.task import load
from tests.end_to_end.conftest import Ddad
from tests.helpers import environment

pytestmark = pytest.mark.usefixtures("no_curves")

SETTINGS: dict[str, Any] = {
    "recipe": "classification",
    "classes": 10,
    "input": {"size": 8},
    "teacher": {"channels": "gray", "mean": [0.3], "std": [0.4]},
    "rounds": 4,
    "batch_size": 16,
    "log_every": 1,
    "checkpoint": {"every": 1},
    "tracking": {"uri": "none"},
    "pictures": False,
}


class Net(nn.Module):
    """A network that no name builds."""

    def __init__(self, width: int, activation: type[nn.Module] = nn.ReLU, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.activation = activation()
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(self.norm(self.conv(x)))
        answer: torch.Tensor = self.head(nn.functional.adaptive_avg_pool2d(hidden, 2).flatten(1))
        return answer


def a_net(width: int, seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> Net:
    """With running statistics that matter."""
    torch.manual_seed(seed)
    net = Net(width, activation)
    net(torch.randn(32, 1, 8, 8))
    return net


def cnn(width: int) -> nn.Module:
    """A built-in network, with running statistics that matter."""
    torch.manual_seed(3)
    net = build.network(load("classification"), f"cnn{width}", 10, 1)
    net(torch.randn(32, 1, 8, 8))
    return net


def with_names(teacher: str, student: str) -> dict[str, Any]:
    """The settings, with names of networks."""
    return {**SETTINGS, "teacher": {**SETTINGS["teacher"], "network": teacher}, "student": {"network": student}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two modules."""
    path = tmp_path_factory.mktemp("modules") / "run"
    distill(SETTINGS, path, teacher=a_net(8), student=a_net(4, 1))
    return path


def test_the_run_keeps_what_the_modules_were(run: Path) -> None:
    config, records = folder.read_config(run)
    assert (config.teacher.network, config.teacher.checkpoint) == ("memory:Net", "memory")
    assert (config.student.network, config.student.start) == ("memory:Net", "memory")
    for role, module, path in (("teacher", a_net(8), "teacher.checkpoint"), ("student", a_net(4, 1), "student.start")):
        kept = load_file(run / "given" / f"{role}.safetensors")
        assert all(torch.equal(kept[name], value) for name, value in module.state_dict().items())
        assert records[path]["sha256"] == sha256(run / "given" / f"{role}.safetensors")
    result = json.loads((run / "result.json").read_text())
    assert result["teacher"]["sha256"] == records["teacher.checkpoint"]["sha256"]


def test_modules_of_the_caller_are_left_as_they_are(tmp_path: Path) -> None:
    modules = {"teacher": a_net(8).eval(), "student": a_net(4, 1).train()}
    before = {role: copy.deepcopy(module.state_dict()) for role, module in modules.items()}
    distill(SETTINGS, tmp_path / "run", **modules)
    for role, module in modules.items():
        assert all(torch.equal(value, before[role][name]) for name, value in module.state_dict().items())
        assert module.training == (role == "student")
        assert all(weight.requires_grad for weight in module.parameters())


def test_the_same_modules_given_again_go_on_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    reports = rounds(SETTINGS, tmp_path / "run", teacher=a_net(8), student=a_net(4, 1))
    while next(reports).round < 2:
        pass
    reports.close()
    again = list(rounds(SETTINGS, tmp_path / "run", teacher=a_net(8), student=a_net(4, 1)))
    assert [report.round for report in again if report.result is None] == [3, 4]
    assert (tmp_path / "run/student.safetensors").read_bytes() == (run / "student.safetensors").read_bytes()


@pytest.mark.parametrize("begun", ["finished", "unfinished"])
@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ((8, 7, nn.ReLU), (4, 1), "teacher that was given is not the one.*other weights.*given/teacher.safetensors"),
        ((8, 0, nn.Tanh), (4, 1), "teacher that was given is not the one.*the same weights and other logits"),
        ((8, 0, nn.ReLU), (4, 2), "student that was given is not the one.*other weights.*given/student.safetensors"),
    ],
)
def test_another_module_is_refused(
    run: Path, tmp_path: Path, begun: str, teacher: Any, student: Any, expected: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    if begun == "unfinished":
        (tmp_path / "run/result.json").unlink()
    with pytest.raises(UserError, match=expected):
        distill(
            SETTINGS, tmp_path / "run", teacher=a_net(teacher[0], *teacher[1:]), student=a_net(student[0], *student[1:])
        )


def test_a_finished_run_is_evaluated_with_its_modules(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    found = evaluate(run, teacher=a_net(8), student=a_net(4, 5))  # its network; the weights are the run's
    assert found["agreement"] == result["agreement"] and found["missing"] == []
    student, record = load_student(run, a_net(4, 5))
    weights = load_file(run / "student.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    assert record["network"] == "memory:Net" and not student.training
    on_digits = evaluate(run, given={"data.name": "digits"}, student=a_net(4))
    assert 0 <= on_digits["student"]["accuracy"] <= 1 and on_digits["teacher"] is None
    assert "has to be given again" in on_digits["missing"][0]


def test_a_module_of_other_code_is_refused_at_evaluation(run: Path) -> None:
    with pytest.raises(UserError, match="the student that was given has other logits"):
        load_student(run, a_net(4, 1, nn.Tanh))
    with pytest.raises(UserError, match=r"does not fit the student that was given: conv\.weight is"):
        load_student(run, a_net(5))


@pytest.mark.parametrize("words", [("evaluate", "run"), ("predict", "run", "x.png"), ("export", "run")])
def test_the_command_line_says_what_to_do(run: Path, tmp_path: Path, ddad: Ddad, words: tuple[str, ...]) -> None:
    shutil.copytree(run, tmp_path / "run")
    line = ddad(*words).complaint()
    assert "network 'memory:Net' was a module in memory" in line and "path/to/file.py:function" in line


def test_a_network_with_a_name_keeps_it_and_the_command_line_goes_on(
    tmp_path: Path, ddad: Ddad, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    reports = rounds(with_names("cnn8", "cnn4"), tmp_path / "run", warn=lines.append, teacher=cnn(8), student=cnn(4))
    while next(reports).round < 2:
        pass
    reports.close()
    assert not any("is not the module" in line for line in lines)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    said = ddad("distill", "--config", moved / "config.yaml", "--output", moved)
    assert said.code == 0, said
    config, _ = folder.read_config(moved)
    assert (config.teacher.network, config.student.network) == ("cnn8", "cnn4")
    again = moved.rename(tmp_path / "again")
    found = json.loads(ddad("evaluate", again, "--json").out)
    assert found["agreement"] == json.loads((again / "result.json").read_text())["agreement"] and not found["missing"]
    (again / "given/teacher.safetensors").unlink()
    assert "given/teacher.safetensors is not there any more" in ddad("evaluate", again).err


def test_a_name_of_another_network_is_not_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    distill(with_names("cnn8", "cnn4"), tmp_path / "run", lines.append, teacher=a_net(8), student=a_net(4))
    assert "teacher.network=cnn8 is not the module that was given, which is recorded as memory:Net" in lines
    config, _ = folder.read_config(tmp_path / "run")
    assert (config.teacher.network, config.student.network) == ("memory:Net", "memory:Net")


def test_a_configuration_without_its_module_is_refused(tmp_path: Path, ddad: Ddad) -> None:
    reports = rounds(with_names("cnn8", "cnn4"), tmp_path / "run", teacher=cnn(8))
    next(reports)
    reports.close()
    words = ("distill", "--config", tmp_path / "run/config.yaml", "--output", tmp_path / "other")
    assert "teacher.checkpoint=memory: the teacher is a module that is given from Python" in ddad(*words).complaint()
    assert not (tmp_path / "other").exists()


def test_a_pruned_student_of_a_module(tmp_path: Path) -> None:
    settings = with_names("", "pruned")
    settings["student"]["arguments"] = {"channels": 0.5}
    del settings["teacher"]["network"]
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    result = distill(settings, tmp_path / "run", teacher=teacher)
    assert result["student"]["parameters"] < result["teacher"]["parameters"]
    assert evaluate(tmp_path / "run", teacher=teacher)["agreement"] == result["agreement"]


class Compiled(nn.Module):
    """Holds a network as torch.compile's wrapper does, whose import takes seconds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_wrappers_come_off(tmp_path: Path) -> None:
    wrapped = Compiled(nn.DataParallel(a_net(8).double()))
    distill({**SETTINGS, "rounds": 1}, tmp_path / "run", teacher=wrapped, student=a_net(4))
    kept = load_file(tmp_path / "run/given/teacher.safetensors")
    assert kept.keys() == a_net(8).state_dict().keys() and kept["conv.weight"].dtype == torch.float32


def spoilt(key: str, value: float) -> Net:
    """A network with one value of its weights replaced."""
    net = a_net(8)
    net.state_dict()[key].flatten()[0] = value
    return net


class Masked(Net):
    """With a buffer of infinities, which is no fault."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mask", torch.full((2,), -torch.inf))


def test_a_buffer_may_hold_infinities(tmp_path: Path) -> None:
    distill({**SETTINGS, "rounds": 1}, tmp_path / "run", teacher=Masked(8), student=a_net(4))


@pytest.mark.parametrize(
    ("over", "modules", "expected"),
    [
        ({}, {"teacher": spoilt("conv.weight", torch.nan)}, r"\(Net\) is refused: conv.weight is NaN"),
        (
            {},
            {"teacher": spoilt("norm.running_var", -1.0)},
            r"refused: norm.running_var has a variance below 0 \(-",
        ),
        ({}, {"teacher": spoilt("norm.running_mean", torch.inf)}, "refused: norm.running_mean is NaN or infinite"),
        ({}, {"teacher": Net(8, classes=7)}, r"given \(Net\) answers with \[2, 7\], expected logits \[2, 10\]"),
        ({}, {"teacher": nn.Conv2d(3, 4, 3)}, r"given \(Conv2d\) cannot take images \[2, 1, 8, 8\]"),
        ({}, {"teacher": nn.Sequential(nn.Flatten(), nn.LazyLinear(10))}, "cannot be copied"),
        ({}, {"teacher": "cnn8"}, "teacher='cnn8': expected a torch.nn.Module"),
        ({"student": {"network": "pruned", "arguments": {"macs": 0.5}}}, {"student": a_net(4)}, "pruned: leave one"),
        ({"student": {"start": "teacher"}}, {"student": a_net(4)}, "start=teacher: leave one of them out"),
        ({"method": "supervised", "data": {"name": "digits"}}, {"student": a_net(4)}, "method=supervised has none"),
        ({}, {"student": None}, "student.network is not set"),
    ],
)
def test_what_is_refused(tmp_path: Path, over: dict[str, Any], modules: dict[str, Any], expected: str) -> None:
    given = {"teacher": a_net(8), "student": a_net(4), **modules}
    with pytest.raises(UserError, match=expected) as refused:
        distill({**SETTINGS, **over}, tmp_path / "run", **given)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_importing_the_package_is_quick() -> None:
    code = "import harness, sys; assert 'torch' not in sys.modules; from harness import distill; distill"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), timeout=120)
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        __import__("harness").distil  # noqa: B018
