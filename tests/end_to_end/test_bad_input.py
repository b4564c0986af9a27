"""What bad input gets: one line on standard error, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness import task
from harness.errors import memory_wanted
from tests.end_to_end.conftest import DIGITS, OWN, TEACHER, UNTAUGHT, Ddad, contents, run_ddad, teacher_weights

PRUNED = ("student.network=pruned",)

WORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "no recipe": (("distill",), "no recipe was named.*ddad recipes"),
    "no recipe but values": (("distill", "rounds=3"), "no recipe was named"),
    "unknown recipe": (("distill", "digit"), "unknown recipe 'digit'; did you mean 'digits'"),
    "recipe like none": (("distill", "zzz"), "unknown recipe 'zzz'; known: .*cifar10-resnet34-resnet18.*digits"),
    "unknown path": ((*DIGITS, "studnet.lr=1"), r"unknown path 'studnet\.lr'; did you mean 'student\.lr'"),
    "unknown group": ((*DIGITS, "wieghts.tv=1"), r"unknown path 'wieghts\.tv'; did you mean 'weights\.tv'"),
    "path without value": ((*DIGITS, "rounds"), "'rounds': expected path=value"),
    "second recipe": ((*DIGITS, "classification"), "'classification': expected path=value"),
    "unknown option": ((*DIGITS, "--rounds"), "[Nn]o such option.*--rounds"),
    "unknown command": (("distil", "digits"), "No such command 'distil'"),
    "whole number": ((*DIGITS, "rounds=many"), "rounds='many': expected a whole number"),
    "half a number": ((*DIGITS, "rounds=2.5"), r"rounds=2\.5: expected a whole number"),
    "truth": ((*DIGITS, "pictures=maybe"), "pictures='maybe': expected true or false"),
    "number": ((*DIGITS, "student.lr=fast"), r"student\.lr='fast': expected a number"),
    "nothing": ((*DIGITS, "student.lr="), "there is no value after the =; null stands for none"),
    "group": ((*DIGITS, "student=cnn12"), "student='cnn12': expected a group of fields .*network"),
    "leaf as group": ((*DIGITS, "rounds.every=3"), "rounds=.*: expected a whole number"),
    "one of": ((*DIGITS, "discrepancy=l3"), "discrepancy='l3': expected one of l1, mse, kl, js"),
    "list": ((*DIGITS, "teacher.mean=0.3"), r"teacher\.mean=0\.3: expected a list of numbers, such as"),
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
    "nesterov": ((*DIGITS, "student.nesterov=true", "student.momentum=0"), "student.momentum=0.0: expected above 0"),
    "gamma": ((*DIGITS, "student.gamma=-1"), r"student\.gamma=-1\.0: expected"),
    "betas": ((*DIGITS, "generator.betas=[0.9]"), r"generator\.betas=\[0\.9\]: expected two numbers"),
    "milestones": ((*DIGITS, "student.milestones=[100]"), r"student\.milestones=\[100\.0\]: expected rising fractions"),
    "one class": ((*DIGITS, "classes=1"), "classes=1: expected the number of classes, at least 2"),
    "three sides": ((*DIGITS, "input.size=[8,8,8]"), r"input\.size=\[8, 8, 8\]: expected a side or \[height, width\]"),
    "three means": ((*DIGITS, "teacher.mean=[0,0,0]"), r"teacher\.mean=.*: expected 1 numbers for gray"),
    "means of 0 to 255": ((*DIGITS, "teacher.mean=[78]"), r"teacher\.mean=\[78\.0\]: .*from 0 to 1.*divide.*by 255"),
    "no deviation": ((*DIGITS, "teacher.std=[0]"), r"teacher\.std=\[0\.0\]: expected numbers above 0"),
    "no minutes": ((*DIGITS, "max_minutes=0"), r"max_minutes=0\.0: expected above 0"),
    "no checkpoints": ((*DIGITS, "checkpoint.keep=0"), r"checkpoint\.keep=0: expected at least 1"),
    "another schema": ((*DIGITS, "schema=99"), "schema 99, this version reads schema 1"),
    "unknown task": ((*DIGITS, "task=segmentatoin"), "task='segmentatoin': no such task"),
    "unknown method": ((*DIGITS, "method=dada"), "method='dada': no such method; did you mean .*'ddad'"),
    "unknown variant": ((*DIGITS, "variant=papr"), "variant='papr': ddad has no such variant; did you mean 'paper'"),
    "unknown student": ((*DIGITS, "student.network=cn12"), "unknown network 'cn12'; did you mean 'cnn12'"),
    "no student": ((*DIGITS, "student.network="), "there is no value after the ="),
    "no student's network": ((*OWN[:-1], *UNTAUGHT), r"student\.network is not set: name a network"),
    "student arguments": ((*DIGITS, "student.arguments.depth=3"), "'cnn12' takes no arguments, got depth=3"),
    "gray torchvision": ((*DIGITS, "student.network=torchvision:resnet18"), "takes 3 channels, these images have 1"),
    "unknown data": ((*DIGITS, "data.name=cifar11"), "data.name='cifar11': no such data set; did you mean 'cifar10'"),
    "other classes": ((*DIGITS, "classes=7"), "classes=7: data.name=digits has 10 classes; set classes=10"),
    "absent data": ((*DIGITS, "data.name=cifar10", "data.root=nowhere"), "not found in nowhere/cifar-10-batches-py"),
    "generator's size": ((*DIGITS, "input.size=10"), "upsample.*divisible by 4.*10"),
    "dcgan's size": ((*DIGITS, "generator.network=dcgan"), "dcgan.*divisible by 16.*8"),
    "nothing to raise": (
        (*DIGITS, "weights.adversarial=0", "weights.batch_norm=0"),
        "weights: all are 0 from round 0, ",
    ),
    "nothing at first": (
        (*DIGITS, "weights.adversarial=[[0,0],[1,1]]", "weights.batch_norm=0"),
        "weights: all are 0 from round 0, ",
    ),
    "no checkpoint": ((*OWN, "teacher.network=cnn8"), "teacher.checkpoint is not set"),
    "absent teacher": (
        (*OWN, "teacher.network=cnn8", "teacher.checkpoint=no.pt"),
        "no.pt cannot be read: No such file",
    ),
    "checkpoint's kind": (
        (*OWN, "teacher.network=cnn8", "teacher.checkpoint=."),
        "cannot be read: Is a directory; name the file",
    ),
    "no teacher": ((*OWN, "teacher.checkpoint=untrained"), r"teacher\.network is not set"),
    "no batch norm": (
        (*OWN, "teacher.network=torchvision:alexnet", "teacher.checkpoint=untrained", "input.size=64"),
        "alexnet.*has no batch norm.*set weights.batch_norm=0",
    ),
    "unknown timm": (
        (*OWN, "teacher.network=timm:resnett18", "teacher.checkpoint=untrained"),
        "unknown network 'timm:resnett18'; the nearest names are resnet18",
    ),
    "too small for the network": (
        (*OWN, *UNTAUGHT, "student.network=vgg16_bn"),
        r"student\.network=vgg16_bn cannot take images \[2, 3, 8, 8\], which follow from input\.size",
    ),
    "macs of the whole": ((*DIGITS, *PRUNED, "student.arguments.macs=1"), r"macs=1: expected the share .* in \(0, 1\)"),
    "no macs": ((*DIGITS, *PRUNED, "student.arguments.macs=0"), r"macs=0: expected the share that remains"),
    "macs as text": ((*DIGITS, *PRUNED, "student.arguments.macs=half"), "macs='half': expected the share"),
    "two shares": (
        (*DIGITS, *PRUNED, "student.arguments.macs=.5", "student.arguments.channels=.5"),
        "student.arguments: expected one of macs, parameters, channels, got macs and channels",
    ),
    "no share": (
        (*DIGITS, *PRUNED),
        "student.network=pruned: expected the share .* such as student.arguments.macs=0.5",
    ),
    "unknown share": (
        (*DIGITS, *PRUNED, "student.arguments.mac=.5"),
        r"mac: .* takes no such argument; did you mean 'macs'",
    ),
    "too small a share": (
        (*DIGITS, *PRUNED, "student.arguments.macs=.0001"),
        r"macs=0.0001: with one channel left .* remain",
    ),
    "no blocks to leave out": ((*DIGITS, *PRUNED, "student.arguments.blocks=.5"), "blocks=0.5: .* has 0 block"),
    "pruned from the teacher": (
        (*DIGITS, *PRUNED, "student.arguments.macs=.5", "student.start=teacher"),
        "student.start=teacher with student.network=pruned, .*: set one of them",
    ),
    "pruned without a teacher": (
        (*DIGITS, *PRUNED, "student.arguments.macs=.5", "method=supervised"),
        "student.network=pruned: method=supervised has no teacher",
    ),
    "start without a teacher": (
        (*DIGITS, "student.start=teacher", "method=supervised"),
        "student.start=teacher: method=supervised has no teacher",
    ),
    "pruned at another size": (
        (*OWN[:-1], "teacher.network=vgg16_bn", "teacher.checkpoint=untrained", *PRUNED, "student.arguments.macs=.5"),
        r"teacher\.network=vgg16_bn cannot take images \[2, 3, 8, 8\], which follow from input\.size",
    ),
    "a shuffled teacher": (
        (
            *OWN[:-1],
            "teacher.network=shufflenetv2",
            "teacher.checkpoint=untrained",
            *PRUNED,
            "student.arguments.macs=.5",
            "input.size=32",
        ),
        r"teacher\.network=shufflenetv2 cannot be traced for pruning \(ZeroDivisionError: .* name a smaller network",
    ),
    "start nowhere": (
        (*DIGITS, "student.start=techer"),
        "student.start='techer': there is no such file; expected fresh",
    ),
    "start of other shapes": (
        (*DIGITS, f"student.start={TEACHER}"),
        r"does not fit student\.network=cnn12: classifier\.weight is \[10, 64\] in the file, \[10, 24\]",
    ),
    "start with nothing in common": (
        (*OWN, "teacher.network=resnet20", "teacher.checkpoint=untrained", "student.start=teacher"),
        r"student\.start=teacher: .*cnn4 and .*resnet20 have no layer's weight in common: .*'features\.0.*'conv1",
    ),
    "blocks of a fresh student": (
        (*DIGITS, "student.blocks=[0,1]"),
        r"blocks=\[0, 1\]: expected null unless student.start",
    ),
    "teach nothing": (
        ("teach", *OWN[1:], "teacher.network=cnn8", "teacher.checkpoint=t.safetensors"),
        "data.name=none",
    ),
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
        "--data digit: no such data set; did you mean 'digits'",
    ),
    "evaluate other weights": (
        ("evaluate", "--network", "cnn12", "--checkpoint", str(TEACHER), "--data", "digits"),
        r"does not fit --network cnn12: classifier.weight is \[10, 64\] in the file, \[10, 24\] in the network",
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


def test_more_memory_than_there_is(workplace: Path, ddad: Ddad) -> None:
    before = contents(workplace)
    said = ddad(*DIGITS, "input.size=4000000")
    assert said.complaint().startswith("not enough memory for 178813.9 GiB more: a smaller batch_size, micro_batches=N")
    assert contents(workplace) == before


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has ..."), "20.50 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes"), "3.0 GiB"),
        (MemoryError(), ""),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_errors_of_memory(error: Exception, wanted: str | None) -> None:
    assert memory_wanted(error) == wanted


def test_mistake_shows_before_a_teacher_is_taught(workplace: Path, ddad: Ddad) -> None:
    shutil.rmtree(workplace / "teachers")
    for words in (["student.network=cn12"], ["generator.network=dcgan"], ["data.name=cifar10", "data.root=none"]):
        assert ddad(*DIGITS, *words).complaint()
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
        ("42\n", "given.yaml: .*object type: int"),
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


def own_forward(before: str) -> str:
    """A network whose forward pass does something to its images x first."""
    return (
        "class net(nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.bn, self.last = nn.BatchNorm2d(channels), nn.Linear(64 * channels, 10)\n"
        "    def forward(self, x):\n"
        f"        x = {before}\n"
        "        return self.last(self.bn(x).flatten(1))\n"
    )


NETWORKS: dict[str, tuple[str, str]] = {
    "unknown function": ("def nett(classes, channels): ...", "mine.py has no function 'net'; did you mean 'nett'"),
    "no module": ("def net(): return 3", "expected a torch.nn.Module, got int"),
    "argument": ("def net(depth): return nn.Linear(1, 1)", "missing a required argument: 'depth'; it is net"),
    "raises": ("def net(): raise OSError('my words')", "could not be built: OSError: my words"),
    "syntax": ("def net(:", "mine.py could not be imported: SyntaxError"),
    "exits": ("raise SystemExit(7)", "mine.py could not be imported: SystemExit"),
    "other classes": (
        (
            "def net(channels): return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),"
            " nn.Linear(108, 7))"
        ),
        r"\.network=mine\.py:net answers with \[2, 7\], expected logits \[2, 10\]",
    ),
    "other size": (
        "def net(channels): return nn.Sequential(nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(99, 10))",
        r"\.network=mine\.py:net cannot take images \[2, 3, 8, 8\]",
    ),
    "probabilities": (
        (
            "def net(channels): return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),"
            " nn.Linear(108, 10), nn.Softmax(1))"
        ),
        r"\.network=mine\.py:net answers with probabilities, expected logits: leave out its softmax",
    ),
    "dropout in eval mode": (
        own_forward("torch.dropout(x, .5, True)"),
        r"\.network=mine\.py:net answers differently to the same images each time",
    ),
    "statistics of the batch": (
        own_forward("x / x.std()"),
        r"\.network=mine\.py:net answers to an image by the others of its batch",
    ),
    "images written over": (own_forward("x.sub_(.5)"), r"\.network=mine\.py:net writes over the images it is given"),
    "detached images": (own_forward("x.detach()"), r"\.network=mine\.py:net: no gradient reaches the images"),
    "a step without a backward pass": (
        own_forward("(y := x * 2).sigmoid_().exp() + y.add_(1)"),
        r"\.network=mine\.py:net: its gradients cannot be computed: one of the variables needed for",
    ),
    "a tuple": (
        (
            "class net(nn.Module):\n"
            "    def __init__(self, channels):\n"
            "        super().__init__()\n"
            "        self.bn, self.last = nn.BatchNorm2d(channels), nn.Linear(64 * channels, 10)\n"
            "    def forward(self, x):\n"
            "        return self.last(self.bn(x).flatten(1)), x\n"
        ),
        r"\.network=mine\.py:net answers with a tuple, expected logits \[2, 10\]",
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


def test_own_network_with_frozen_weights_cannot_learn(workplace: Path, ddad: Ddad) -> None:
    body = "def net(channels): return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 10)).requires_grad_(False)"
    words = ("teacher.network=cnn8", "teacher.checkpoint=untrained", f"student.network={own_file(workplace, body)}")
    assert (
        "student.network=mine.py:net: no gradient reaches its weights: are they frozen?"
        in ddad(*OWN, *words).complaint()
    )


def test_own_network_that_answers_otherwise_in_training(workplace: Path, ddad: Ddad) -> None:
    body = own_forward("x").replace("return", "return (x, x) if self.training else")
    words = ("teacher.network=cnn8", "teacher.checkpoint=untrained", f"student.network={own_file(workplace, body)}")
    line = ddad(*OWN, *words).complaint()
    assert "mine.py:net answers in train mode with a tuple, expected logits [2, 10] as in evaluation" in line


def test_teacher_whose_batch_norm_is_never_called(workplace: Path, ddad: Ddad) -> None:
    body = own_forward("x").replace("self.bn(x)", "x")
    words = (f"teacher.network={own_file(workplace, body)}", "teacher.checkpoint=untrained", "student.network=cnn4")
    assert "mine.py:net' has no batch norm with running statistics" in ddad(*OWN, *words).complaint()


def test_own_network_file_is_absent(workplace: Path, ddad: Ddad) -> None:
    line = ddad(*DIGITS, "student.network=no/where.py:net").complaint()
    assert "no/where.py" in line and "No such file" in line


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_teacher_pickle_is_refused_and_not_run(workplace: Path, ddad: Ddad) -> None:
    trap = workplace / "exploded"
    torch.save({"state_dict": teacher_weights(), "extra": Bomb(trap)}, "evil.pth")
    line = ddad(*DIGITS, "teacher.checkpoint=evil.pth").complaint()
    assert "evil.pth is refused: it is a pickle that would run" in line and "mkdir" in line
    assert not trap.exists()
    torch.load("evil.pth", weights_only=False)
    assert trap.exists(), "the trap itself works"


def test_teacher_with_other_keys_or_shapes(workplace: Path, ddad: Ddad) -> None:
    weights = teacher_weights()
    first = next(key for key in weights if key.endswith("weight"))
    save_file(
        {("renamed." + key if key == first else key): value for key, value in weights.items()}, "keys.safetensors"
    )
    line = ddad(*DIGITS, "teacher.checkpoint=keys.safetensors").complaint()
    assert f"it lacks 1 key ('{first}')" in line and f"it has 1 key ('renamed.{first}')" in line
    save_file({**weights, first: torch.zeros(5, 5)}, "shape.safetensors")
    line = ddad(*DIGITS, "teacher.checkpoint=shape.safetensors").complaint()
    assert f"{first} is [5, 5] in the file, {list(weights[first].shape)} in the network" in line
    torch.save(nn.Linear(2, 2), "module.pt")
    assert "module.pt is refused" in ddad(*DIGITS, "teacher.checkpoint=module.pt").complaint()
    torch.save({"epoch": 3}, "empty.pt")
    assert "empty.pt holds no weights" in ddad(*DIGITS, "teacher.checkpoint=empty.pt").complaint()
    heads = task.load("classification").network("cnn32", 7, 1).state_dict()
    torch.save(heads, "seven.pt")
    assert "the checkpoint has 7 classes, classes=10" in ddad(*DIGITS, "teacher.checkpoint=seven.pt").complaint()
    assert not (workplace / "runs").exists()


def test_teacher_file_is_damaged(workplace: Path, ddad: Ddad) -> None:
    noise = random.Random(0).randbytes(1000)
    for name, content in {
        "torn.safetensors": TEACHER.read_bytes()[:-1000],
        "noise.pt": noise,
        "noise.safetensors": noise,
        "empty.pt": b"",
        "empty.safetensors": b"",
    }.items():
        Path(name).write_bytes(content)
        assert f"{name} is damaged, or not a checkpoint" in ddad(*DIGITS, f"teacher.checkpoint={name}").complaint()
    assert not (workplace / "runs").exists()
