"""An export folder is ready for a model hub: a card, nothing of this machine in it, and one commit with all of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import constants

from harness import config, files, resolve, task
from harness.cli import app
from harness.commands import card, export, loading, push
from harness.commands.session import run_command
from harness.errors import UserError
from harness.networks import build, own_file, preprocessing, roles, sources
from harness.run import folder
from harness.run.student import load_student, write_student
from tests.fake_hub import TOKEN, Hub, point, serving

NETWORK = """
from torch import nn


def small(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""

NAME = "someone/a-student"


def made(place: Path, student: str, data: str) -> Path:
    """A finished run, given as `ddad distill` with paths and a password of this machine in it."""
    torch.manual_seed(0)
    teacher = build.network(task.load("classification"), "cnn4", 10, 1)
    (place / "secret").mkdir()
    (place / "secret/net.py").write_text(NETWORK)
    weights, run = place / "secret/teacher.safetensors", place / "run"
    weights.write_bytes(safetensors.torch.save(teacher.state_dict()))
    words = [
        "teacher.network=cnn4", f"teacher.checkpoint={weights}", "teacher.channels=gray", "teacher.std=[0.5]",
        f"student.network={student}", "classes=10", "input.size=8", "rounds=1", "batch_size=4",
        f"data.name={data}", f"data.root={place}", "tracking.uri=http://host:5000",
    ]  # fmt: skip
    settings = resolve.resolve("classification", None, resolve.read_overrides(words))
    uri = "http://me:password@host:5000"  # what a run was given before such a URI was refused
    settings = dataclasses.replace(settings, tracking=dataclasses.replace(settings.tracking, uri=uri))
    run.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{place}/bin/ddad", "distill", "classification", *words, "--output", str(run)])
        folder.open_run(run, settings)
    source = own_file.source_file(student)
    about = {
        "task": "classification",
        "network": student,
        "arguments": {},
        "classes": 10,
        "class_names": [str(index) for index in range(10)],
        "preprocessing": dataclasses.asdict(preprocessing.preprocessing(settings)),
        "source": files.file_record(source) if source else None,
    }
    write_student(run, roles.student(settings), about)
    figures = {"parameters": 900, "macs": 21000, "accuracy": None if data == "none" else 0.625}
    result = {
        "teacher": {"network": "cnn4", "sha256": files.sha256(weights), **figures},
        "student": {"network": student, **figures},
        "agreement": 0.75,
        "agreement_on": "generated" if data == "none" else "test",
        "student_updates": 5,
        "wall_seconds": 5.0,
        "data_free": True,
    }
    folder.write_result(run, result)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on the digits with a built-in student, and one without data with a student of the user's own."""
    places = {kind: tmp_path_factory.mktemp(kind) for kind in ("scored", "own")}
    return {
        "scored": made(places["scored"], "cnn4", "digits"),
        "own": made(places["own"], f"{places['own']}/secret/net.py:small", "none"),
    }


@pytest.fixture
def scored(finished: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished["scored"], tmp_path / "scored"))


@pytest.fixture
def own(finished: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished["own"], tmp_path / "own"))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as server:
        point(monkeypatch, server.url, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def exported(run: Path, *formats: str) -> Path:
    for form in formats or ("safetensors",):
        export.export(run, form)
    found = card.write(run, lambda line: None)
    assert found is not None
    return found


def front(text: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_a_card_says_what_the_student_is(scored: Path) -> None:
    target = exported(scored, "safetensors", "torch.export")
    text, result = (target / "README.md").read_text(), json.loads((scored / "result.json").read_text())
    assert front(text) == {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["ddad", "knowledge-distillation", "data-free"],
        "metrics": ["accuracy"],
    }
    assert "# license: fill in" in text
    assert f"`cnn4`, weights `teacher.safetensors`, SHA-256 `{result['teacher']['sha256']}`" in text
    assert "`ddad`, variant `paper`, recipe `classification`, seed 0" in text and "1 rounds" in text
    for role in ("teacher", "student"):
        assert f"| {role} | {result[role]['accuracy']:.4f} |" in text
    assert f"agree on {result['agreement']:.1%} of the test images" in text
    assert "[B, 1, 8, 8], channels gray" in text and "values are in 0..2" in text
    assert (
        "9: 9" in text
        and "`student.pt2`, " in text
        and "`student.safetensors`, " in text
        and "`student.onnx`, " not in text
    )


def test_a_card_says_what_sizes_a_file_takes(scored: Path) -> None:
    target = exported(scored)
    (target / "student.int8.onnx").write_bytes(b"8" * 4096)
    (target / "student.int8.onnx.json").write_text(json.dumps({"input": {"sizes": "any height and width"}}))
    card.write(scored, lambda line: None)
    text = (target / "README.md").read_text()
    assert "`student.int8.onnx`, 4 KB; takes any height and width:" in text and "onnxruntime" in text


def test_without_data_it_says_so(own: Path) -> None:
    text = (exported(own) / "README.md").read_text()
    assert "metrics" not in front(text) and "not scored on data" in text and "generated images" in text
    assert "`net.py`, which is not among these files" in text


@pytest.mark.parametrize("kind", ["scored", "own"])
def test_nothing_of_this_machine_is_in_the_folder(
    kind: str, finished: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    target = exported(run)
    names = ["README.md", "student.json", "student.safetensors", "student.safetensors.json"]
    assert sorted(path.name for path in target.iterdir()) == names
    for path in target.iterdir():
        content = path.read_bytes().decode("latin-1")
        for told in (str(run.parent), str(finished[kind].parent), "password", "secret"):
            assert told not in content, path
    command = next(line for line in (target / "README.md").read_text().splitlines() if "Command" in line)
    assert "teacher.checkpoint=teacher.safetensors" in command and "rounds=1" in command and "tracking" not in command


def test_the_folder_rebuilds_the_student(scored: Path, own: Path) -> None:
    for run in (scored, own):
        target = exported(run)
        if run == own:
            with pytest.raises(UserError, match=r"net\.py"):
                load_student(target)
            (target / "net.py").write_text(NETWORK)
        module, record = load_student(target)
        original, _ = load_student(run)
        x = torch.randn(2, 1, 8, 8)
        assert torch.equal(module(x), original(x)) and record["classes"] == 10


def test_what_an_interrupted_export_left_is_in_no_card_and_void_is_named(scored: Path) -> None:
    (scored / "environment.json").unlink()
    target = exported(scored)
    (target / ".student.onnx.4242.tmp.onnx").write_bytes(b"half")
    record = json.loads((scored / "student.json").read_text())
    (scored / "student.json").write_text(json.dumps({**record, "class_names": record["class_names"][:-1]}))
    (target / "README.md").unlink()
    card.write(scored, lambda line: None)
    text = (target / "README.md").read_text()
    assert "4242" not in text and "8: 8, 9: void, none of the others" in text and "- Command" not in text


def test_an_edited_card_is_kept_and_said(scored: Path) -> None:
    path, said = exported(scored) / "README.md", list[str]()
    before = path.read_text()
    card.write(scored, said.append)
    assert path.read_text() == before and not said
    path.write_text(before.replace("# license: fill in", "license: mit # was: fill in"))
    card.write(scored, said.append)
    assert "license: mit" in path.read_text() and len(said) == 1 and "is kept" in said[0]
    path.write_text("mine")
    card.write(scored, said.append)
    assert path.read_text() == "mine"
    path.unlink()
    card.write(scored, said.append)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/net.py:small", "net.py:small"),
        ("--config=/home/me/mine.yaml", "--config=mine.yaml"),
        ("x=[/a/b.png, ~/c/d.png]", "x=[b.png, d.png]"),
        ("http://me:pass@host/x/y", "http://host/x/y"),
        ("timm:resnet18.a1_in1k and a/b", "timm:resnet18.a1_in1k and a/b"),
        (
            {"class_names": ["cat / dog", "/x/y"], "other": ["/x/y", 3]},
            {"class_names": ["cat / dog", "/x/y"], "other": ["y", 3]},
        ),
    ],
)
def test_paths_and_passwords_are_cut(value: object, shown: object) -> None:
    assert card.public(value) == shown


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("timm:test_resnet", {}),
        ("torchvision:squeezenet1_1", {}),
        ("torchvision:lraspp_mobilenet_v3_large", {}),
        ("smp:Unet/tu-test_resnet", {"encoder_depth": 3, "decoder_channels": [8, 4, 4]}),
    ],
)
def test_the_lines_that_load_a_librarys_network_work(
    network: str, arguments: dict[str, object], tmp_path: Path
) -> None:
    kind = "segmentation" if network.startswith(("smp", "torchvision:lraspp")) else "classification"
    module = build.network(task.load(kind), network, 5, 3, arguments).eval()
    record = {"network": network, "classes": 5, "arguments": arguments, "preprocessing": {"mean": [0.0] * 3}}
    Path("student.json").write_text(json.dumps(record))
    safetensors.torch.save_file(module.state_dict(), "student.safetensors")
    block = loading.snippet("student.safetensors", record)
    assert block is not None
    x = torch.randn(2, 3, 64, 64)
    names = {"x": x}
    exec(compile(block.removeprefix("```python\n").removesuffix("```"), "card", "exec"), names)  # noqa: S102
    logits = names["logits"]
    assert torch.equal(logits["out"] if isinstance(logits, dict) else logits, module(x))


def test_push_is_one_commit_with_all_files(scored: Path, there: Hub) -> None:
    target = exported(scored)
    url = push.push(target, NAME, public=False)
    repository = there.repositories[NAME]
    assert url.endswith(repository.main) and len(repository.commits) == 2, "an empty repository, then one commit"
    assert repository.commits[repository.main] == {path.name: path.read_bytes() for path in target.iterdir()}
    assert repository.private and [each["visibility"] for each in there.created] == ["private"]
    assert TOKEN not in url
    (target / "README.md").write_text("mine")
    push.push(target, NAME, public=False)
    assert repository.commits[repository.main]["README.md"] == b"mine"
    (target / "README.md").unlink()
    push.push(exported(scored), "someone/shown", public=True)
    assert not there.repositories["someone/shown"].private
    with pytest.raises(UserError, match="public already"):
        push.push(target, "someone/shown", public=False)


def test_what_was_pushed_is_a_teacher_and_a_start(scored: Path, there: Hub) -> None:
    push.push(exported(scored), NAME, public=False)
    chosen = sources.pinned(
        config.build(
            {
                "task": "classification", "classes": 10, "input": {"size": 8},
                "teacher": {"network": "cnn4", "checkpoint": f"hub:{NAME}", "channels": "gray"},
            }
        ), {},
    )  # fmt: skip
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(roles.teacher(chosen).eval()(x), load_student(scored)[0](x))


def refused(target: Path, name: str = NAME) -> str:
    with pytest.raises(UserError) as caught:
        push.push(target, name, public=False)
    message = str(caught.value)
    assert "\n" not in message and TOKEN not in message
    return message


def test_refusals_upload_nothing(scored: Path, there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = exported(scored)
    for name in ("student", "a/b/c", "some one/x", "a/b--c"):
        assert "no repository's name" in refused(target, name)
    assert not there.asked
    there.fails[f"/api/models/{NAME}/commit/main"] = 403
    assert "does not allow it (403)" in refused(target)
    assert there.repositories[NAME].commits[there.repositories[NAME].main] == {}
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "HF_TOKEN" in refused(target)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(there.asked)
    assert "there is no token" in refused(target) and len(there.asked) == asked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()[1]
    point(monkeypatch, f"http://127.0.0.1:{nobody}", tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "cannot be reached" in refused(target) and "in the cache" not in refused(target)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it" in refused(target)


def test_the_command(
    scored: Path, there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ddad(*words: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: app([str(word) for word in words], standalone_mode=False))
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    code, out, err = ddad("export", scored, "--hub", NAME, "--json")
    assert code == 0 and json.loads(out)["hub"].endswith(there.repositories[NAME].main), err
    assert err == f"uploaded: {json.loads(out)['hub']}\n"
    for words in (["--hub", "x"], ["--public"], ["--hub", NAME, "--output", "x.safetensors"]):
        code, out, err = ddad("export", scored, *words)
        assert (code, out) == (2, "") and err.startswith("ddad: ") and err.count("\n") == 1
