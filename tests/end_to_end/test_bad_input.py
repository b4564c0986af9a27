"""What bad input gets: one line on standard error, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from harness import distill, resolve, task
from harness.errors import UserError
from tests.end_to_end.conftest import TEACHER, Ddad, contents, only, sha256, started, wait
from tests.helpers import run_ddad

SMALL = ("rounds=2", "batch_size=16", "tracking.uri=none", "pictures=false")

DIGITS = ("distill", "digits", *SMALL)

OWN = ("distill", "classification", *SMALL, "classes=10", "input.size=8", "student.network=cnn4")
"""Still without a teacher."""

WORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "no recipe": (("distill",), "no recipe was named.*ddad recipes"),
    "no recipe but values": (("distill", "rounds=3"), "no recipe was named"),
    "unknown recipe": (("distill", "digit"), "unknown recipe 'digit'; did you mean 'digits'"),
    "recipe like none": (("distill", "zzz"), "unknown recipe 'zzz'; known: .*cifar10-resnet34-resnet18.*digits"),
    "unknown path": ((*DIGITS, "studnet.lr=1"), r"unknown path 'studnet\.lr'; did you mean 'student\.lr'"),
    "unknown group": ((*DIGITS, "wieghts.tv=1"), r"unknown path 'wieghts'.*weights"),
    "path without value": ((*DIGITS, "rounds"), "'rounds': expected path=value"),
    "second recipe": ((*DIGITS, "classification"), "'classification': expected path=value"),
    "unknown option": ((*DIGITS, "--rounds"), "[Nn]o such option.*--rounds"),
    "unknown command": (("distil", "digits"), "No such command 'distil'"),
    "whole number": ((*DIGITS, "rounds=many"), "rounds='many': expected a whole number"),
    "half a number": ((*DIGITS, "rounds=2.5"), r"rounds=2\.5: expected a whole number"),
    "truth": ((*DIGITS, "pictures=maybe"), "pictures='maybe': expected true or false"),
    "number": ((*DIGITS, "student.lr=fast"), r"student\.lr='fast': expected a number"),
    "nothing": ((*DIGITS, "student.lr="), r"student\.lr=.*: expected a number"),
    "group": ((*DIGITS, "student=cnn12"), "student='cnn12': expected a group of fields .*network"),
    "leaf as group": ((*DIGITS, "rounds.every=3"), "rounds=.*: expected a whole number"),
    "one of": ((*DIGITS, "discrepancy=l3"), "discrepancy='l3': expected one of l1, mse, kl, js"),
    "list": ((*DIGITS, "teacher.mean=0.3"), r"teacher\.mean=0\.3: expected a list of a number"),
    "weight": ((*DIGITS, "weights.tv=much"), r"weights\.tv='much': expected a number or a list"),
    "strategy": ((*DIGITS, "distributed.strategy=warp"), "distributed.strategy='warp': expected one of single"),
    "broken yaml": ((*DIGITS, "teacher.mean=[1,"), "'teacher.mean=\\[1,': the value is not valid YAML"),
    "no rounds": ((*DIGITS, "rounds=0"), "rounds=0: expected at least 1"),
    "no batch": ((*DIGITS, "batch_size=0"), "batch_size=0: expected at least 1"),
    "negative seed": ((*DIGITS, "seed=-1"), "seed=-1: expected at least 0"),
    "negative rate": ((*DIGITS, "student.lr=-0.1"), r"student\.lr=-0\.1: expected a number above 0"),
    "no number": ((*DIGITS, "generator.lr=.nan"), r"generator\.lr=nan: expected a number above 0"),
    "endless": ((*DIGITS, "student.lr=.inf"), r"student\.lr=inf: expected a number above 0"),
    "negative weight": ((*DIGITS, "weights.tv=-1"), r"weights\.tv=-1\.0: expected a number of at least 0"),
    "late schedule": ((*DIGITS, "weights.tv=[[5,1]]"), r"weights\.tv=.*rounds rising from 0"),
    "torn schedule": ((*DIGITS, "weights.tv=[[0]]"), r"weights\.tv=.*a list of \[round, value\]"),
    "temperature": ((*DIGITS, "temperature=0"), r"temperature=0\.0: expected a number above 0"),
    "momentum": ((*DIGITS, "student.momentum=1"), r"student\.momentum=1\.0: expected a number in \[0, 1\)"),
    "gamma": ((*DIGITS, "student.gamma=-1"), r"student\.gamma=-1\.0: expected"),
    "betas": ((*DIGITS, "generator.betas=[0.9]"), r"generator\.betas=\[0\.9\]: expected two numbers"),
    "milestones": ((*DIGITS, "student.milestones=[100]"), r"student\.milestones=\[100\.0\]: expected rising fractions"),
    "one class": ((*DIGITS, "classes=1"), "classes=1: expected the number of classes, at least 2"),
    "three sides": ((*DIGITS, "input.size=[8,8,8]"), r"input\.size=\[8, 8, 8\]: expected a side or \[height, width\]"),
    "three means": ((*DIGITS, "teacher.mean=[0,0,0]"), r"teacher\.mean=.*: expected 1 numbers for gray"),
    "no deviation": ((*DIGITS, "teacher.std=[0]"), r"teacher\.std=\[0\.0\]: expected numbers above 0"),
    "no minutes": ((*DIGITS, "max_minutes=0"), r"max_minutes=0\.0: expected above 0"),
    "no checkpoints": ((*DIGITS, "checkpoint.keep=0"), r"checkpoint\.keep=0: expected at least 1"),
    "another schema": ((*DIGITS, "schema=99"), "schema 99, this version reads schema 1"),
    "unknown task": ((*DIGITS, "task=segmentatoin"), "task='segmentatoin': no such task"),
    "unknown method": ((*DIGITS, "method=dada"), "method='dada': no such method; did you mean 'ddad'"),
    "unknown variant": ((*DIGITS, "variant=papr"), "variant='papr': ddad has no such variant; did you mean 'paper'"),
    "unknown student": ((*DIGITS, "student.network=cn12"), "unknown network 'cn12'; did you mean 'cnn12'"),
    "no student": ((*DIGITS, "student.network="), r"student\.network"),
    "student arguments": ((*DIGITS, "student.arguments.depth=3"), "'cnn12' takes no arguments, got depth=3"),
    "gray torchvision": ((*DIGITS, "student.network=torchvision:resnet18"), "takes 3 channels, these images have 1"),
    "unknown data": ((*DIGITS, "data.name=cifar11"), "data.name='cifar11': no such data set; did you mean 'cifar10'"),
    "other classes": ((*DIGITS, "classes=7"), "classes=7: data.name=digits has 10 classes"),
    "absent data": ((*DIGITS, "data.name=cifar10", "data.root=nowhere"), "not found in nowhere/cifar-10-batches-py"),
    "generator's size": ((*DIGITS, "input.size=10"), "upsample.*divisible by 4.*10"),
    "dcgan's size": ((*DIGITS, "generator.network=dcgan"), "dcgan.*divisible by 16.*8"),
    "nothing to raise": ((*DIGITS, "weights.adversarial=0", "weights.batch_norm=0"), r"weights.*0"),
    "nothing at first": (
        (*DIGITS, "weights.adversarial=[[0,0],[1,1]]", "weights.batch_norm=0"),
        r"weights.*round 0",
    ),
    "no checkpoint": ((*OWN, "teacher.network=cnn8"), "teacher.checkpoint is not set"),
    "absent teacher": (
        (*OWN, "teacher.network=cnn8", "teacher.checkpoint=no.pt"),
        "no.pt cannot be read: No such file",
    ),
    "checkpoint's kind": (
        (*OWN, "teacher.network=cnn8", "teacher.checkpoint=t.h5"),
        "t.h5: expected a checkpoint file",
    ),
    "no teacher": ((*OWN, "teacher.checkpoint=untrained"), r"teacher\.network"),
    "no batch norm": (
        (*OWN, "teacher.network=torchvision:alexnet", "teacher.checkpoint=untrained", "input.size=64"),
        "alexnet.*has no batch norm.*set weights.batch_norm=0",
    ),
    "unknown timm": (
        (*OWN, "teacher.network=timm:resnett18", "teacher.checkpoint=untrained"),
        "unknown network 'timm:resnett18'; the nearest names are resnet18",
    ),
    "too small for the network": (
        (*OWN, "teacher.network=cnn8", "teacher.checkpoint=untrained", "student.network=vgg16_bn"),
        r"student\.network.*vgg16_bn.*8 ?x ?8",
    ),
    "teach nothing": (("teach", "classification", "teacher.checkpoint=t.safetensors", "classes=2"), "data.name=none"),
    "teach into a pickle": (("teach", "digits", "teacher.checkpoint=t.pt"), "t.pt.*safetensors"),
    "teach in large batches": (
        ("teach", "digits", "teach.batch_size=5000", "teacher.checkpoint=t.safetensors"),
        "5000",
    ),
    "evaluate nothing": (("evaluate",), "a run folder, or --network"),
    "evaluate nowhere": (("evaluate", "nowhere"), "nowhere is not a run folder"),
    "evaluate a network": (("evaluate", "--network", "cnn12"), "--network goes with --checkpoint and --data"),
    "evaluate unknown data": (
        ("evaluate", "--network", "cnn32", "--checkpoint", str(TEACHER), "--data", "digit"),
        "--data digit: no such data set; known: .*digits",
    ),
    "evaluate other weights": (
        ("evaluate", "--network", "cnn12", "--checkpoint", str(TEACHER), "--data", "digits"),
        r"digits-cnn32.safetensors does not fit --network cnn12: \S+ is \[32.* in the file, \[12",
    ),
    "export nowhere": (("export", "nowhere"), "nowhere is not a run folder"),
    "predict nowhere": (("predict", "nowhere", "image.png"), "nowhere is not a run folder"),
    "no store to show": (("ui",), "no MLflow store at .*mlflow.db"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words(workplace: Path, ddad: Ddad, case: str) -> None:
    words, expected = WORDS[case]
    before = contents(workplace)
    assert re.search(expected, ddad(*words).complaint())
    assert contents(workplace) == before


@pytest.mark.parametrize("words", [("studnet.lr=1",), ("student.network=cn12",)])
def test_process_says_one_line(workplace: Path, words: tuple[str, ...]) -> None:
    before = contents(workplace)
    done = run_ddad(*DIGITS, *words, cwd=workplace)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("ddad: unknown ")
    assert contents(workplace) == before


def test_mistake_shows_before_a_teacher_is_taught(workplace: Path, ddad: Ddad) -> None:
    shutil.rmtree(workplace / "teachers")
    for words in (["student.network=cn12"], ["generator.network=dcgan"], ["--output", "/proc/run"]):
        said = ddad(*DIGITS, *words)
        assert said.code == 2
        assert said.err.startswith("ddad: ") and said.err.count("\n") == 1
        assert contents(workplace) == {}


# Files of configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such file"),
        ("rounds: [1, 2\n", "not a readable YAML file"),
        ("rounds: 3\n\tbatch: 4\n", "not a readable YAML file"),
        (b"\xff\xfe\x00\x80", "not a readable YAML file"),
        ("- rounds\n- 3\n", "expected fields of a configuration, found list"),
        ("42\n", "expected fields of a configuration"),
        ("rounds: ${nothing}\n", "nothing"),
        ("", "no recipe was named"),
        ("rounds: 3\n", "no recipe was named"),
        ("recipe: digist\n", "unknown recipe 'digist'; did you mean 'digits'"),
        ("recipe: digits\nrouns: 3\n", "unknown path 'rouns'; did you mean 'rounds'"),
        ("recipe: digits\nschema: 0\n", "schema 0, this version reads schema 1"),
        ("recipe: digits\nschema: '1'\n", "schema '1', this version reads schema 1"),
        ("recipe: digits\nstudent: {lr: {a: 1}}\n", r"student\.lr=.*: expected a number"),
        ("recipe: digits\n3: 4\n", "unknown path '3'"),
    ],
)
def test_config_file(workplace: Path, ddad: Ddad, content: str | bytes | None, expected: str) -> None:
    file = workplace / "given.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = contents(workplace)
    assert re.search(expected, ddad("distill", "--config", file).complaint())
    assert contents(workplace) == before


def test_config_file_is_a_folder(workplace: Path, ddad: Ddad) -> None:
    assert "Is a directory" in ddad("distill", "--config", workplace).complaint()


def test_recipe_beside_a_resolved_config_of_another(workplace: Path, ddad: Ddad) -> None:
    Path("r.yaml").write_text(ddad(*DIGITS, "--dry-run").out.partition("\nrun folder")[0])
    line = ddad("distill", "classification", "--config", "r.yaml").complaint()
    assert "'classification' was given with a resolved configuration of recipe 'digits'" in line
    line = ddad("distill", "--config", "r.yaml", "method=dfad").complaint()
    assert "method='dfad' cannot change a resolved configuration" in line


# Checkpoints of teachers and networks of users ------------------------------------------------------------------------


def own_file(place: Path, body: str) -> str:
    (place / "mine.py").write_text(f"import torch\nfrom torch import nn\n{body}\n")
    return "mine.py:net"


NETWORKS: dict[str, tuple[str, str]] = {
    "unknown function": ("def nett(classes, channels): ...", "mine.py has no function 'net'; did you mean 'nett'"),
    "no module": ("def net(): return 3", "expected a torch.nn.Module, got int"),
    "argument": ("def net(depth): return nn.Linear(1, 1)", "missing a required argument: 'depth'; it is net"),
    "raises": ("def net(): raise OSError('my words')", "could not be built: OSError: my words"),
    "syntax": ("def net(:", "mine.py could not be imported: SyntaxError"),
    "exits": ("raise SystemExit(7)", "mine.py could not be imported: SystemExit"),
    "other classes": (
        "def net(channels): return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),"
        " nn.Linear(108, 7))",
        r"mine\.py:net.*\[2, 7\].*(\[2, 10\]|classes=10)",
    ),
    "other size": (
        "def net(channels): return nn.Sequential(nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(99, 10))",
        r"mine\.py:net.*(8 ?x ?8|\[2, [13], 8, 8\])",
    ),
    "a tuple": (
        "class net(nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.bn, self.last = nn.BatchNorm2d(channels), nn.Linear(64 * channels, 10)\n"
        "    def forward(self, x):\n"
        "        return self.last(self.bn(x).flatten(1)), x\n",
        r"mine\.py:net.*tuple",
    ),
}


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("case", NETWORKS)
def test_own_network_file(workplace: Path, ddad: Ddad, case: str, role: str) -> None:
    body, expected = NETWORKS[case]
    words = {"teacher.network": "cnn8", "student.network": "cnn4", "teacher.checkpoint": "untrained"}
    words[f"{role}.network"] = own_file(workplace, body)
    before = contents(workplace)
    line = ddad(*OWN, *(f"{path}={value}" for path, value in words.items())).complaint()
    assert re.search(expected, line)
    assert {path for path in contents(workplace) if "__pycache__" not in path} == before.keys()


def test_own_network_file_is_absent(workplace: Path, ddad: Ddad) -> None:
    line = ddad(*DIGITS, "student.network=no/where.py:net").complaint()
    assert "no/where.py" in line and "No such file" in line


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def teacher_weights() -> dict[str, torch.Tensor]:
    return load_file(TEACHER)


def test_teacher_pickle_is_refused_and_not_run(workplace: Path, ddad: Ddad) -> None:
    trap = workplace / "exploded"
    torch.save({"state_dict": teacher_weights(), "extra": Bomb(trap)}, "evil.pth")
    line = ddad(*DIGITS, "teacher.checkpoint=evil.pth").complaint()
    assert "evil.pth is refused: it is a pickle that would run" in line and "mkdir" in line
    assert not trap.exists()
    with pytest.raises(IsADirectoryError):  # that the trap works
        torch.load("evil.pth", weights_only=False)
        trap.read_bytes()


def test_teacher_with_other_keys_or_shapes(workplace: Path, ddad: Ddad) -> None:
    weights = teacher_weights()
    first, *_, last = weights
    save_file(
        {("renamed." + key if key == first else key): value for key, value in weights.items()}, "keys.safetensors"
    )
    line = ddad(*DIGITS, "teacher.checkpoint=keys.safetensors").complaint()
    assert f"it lacks 1 key ('{first}')" in line and f"it has 1 key ('renamed.{first}')" in line
    save_file({**weights, first: torch.zeros(5, 5)}, "shape.safetensors")
    line = ddad(*DIGITS, "teacher.checkpoint=shape.safetensors").complaint()
    assert f"{first} is [5, 5] in the file, {list(weights[first].shape)} in the network" in line
    line = ddad(*DIGITS, "teacher.network=resnet20").complaint() if False else ""
    torch.save(nn.Linear(2, 2), "module.pt")
    assert "module.pt is refused" in ddad(*DIGITS, "teacher.checkpoint=module.pt").complaint()
    torch.save({"epoch": 3}, "empty.pt")
    assert "empty.pt holds no weights" in ddad(*DIGITS, "teacher.checkpoint=empty.pt").complaint()
    heads = task.load("classification").network("cnn32", 7, 1).state_dict()
    torch.save(heads, "seven.pt")
    assert "the checkpoint has 7 classes, classes=10" in ddad(*DIGITS, "teacher.checkpoint=seven.pt").complaint()
    assert not (workplace / "runs").exists()


def test_teacher_file_is_damaged(workplace: Path, ddad: Ddad) -> None:
    for name, content in {
        "torn.safetensors": TEACHER.read_bytes()[:-1000],
        "noise.pt": os.urandom(1000),
        "noise.safetensors": os.urandom(1000),
        "empty.pt": b"",
        "empty.safetensors": b"",
    }.items():
        Path(name).write_bytes(content)
        assert f"{name} is damaged, or not a checkpoint" in ddad(*DIGITS, f"teacher.checkpoint={name}").complaint()
    assert not (workplace / "runs").exists()


# Run folders ----------------------------------------------------------------------------------------------------------


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
        words = (*OWN, "teacher.network=cnn8", "teacher.checkpoint=untrained")
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
    for damage in (whole[:-1], b"", os.urandom(500), whole[:8] + b"x" + whole[9:]):
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


def test_evaluating_a_run_that_is_not_finished(workplace: Path, ddad: Ddad, begun: Path) -> None:
    for words in (("evaluate", begun), ("export", begun), ("predict", begun, "image.png")):
        assert "is unfinished" in ddad(*words).complaint()


def test_teacher_of_the_run_was_replaced(workplace: Path, ddad: Ddad, begun: Path) -> None:
    save_file({key: value + 1 for key, value in teacher_weights().items()}, TEACHER)
    before = contents(workplace)
    line = ddad(*DIGITS).complaint()
    assert "(teacher.checkpoint) is not the file this run began with" in line
    assert contents(workplace) == before


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
    log = disk / "run" / "metrics.jsonl"
    with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
    with log.open("a") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(" " * 512)
            file.flush()
    with pytest.raises(UserError, match="No space left on device"):
        for _ in reports:
            pass
    assert not list(disk.rglob("*.tmp*"))
    (disk / "filler").unlink()
    enlarge(disk)
    words = ("distill", "--config", disk / "run" / "config.yaml", "--output", disk / "run")
    assert ddad(*words).code == 0
    assert (disk / "run" / "result.json").exists()
