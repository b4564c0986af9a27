"""`hub:OWNER/NAME` names weights in a repository: fetched once, read as weights only, recorded by commit and hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from torch import Tensor

from harness import config, task
from harness.errors import UserError
from harness.networks import build, hub, roles, sources, start
from harness.run import folder
from harness.training.distill import distill, rounds
from tests.fake_hub import TOKEN, Hub, point, serving

NAME = "someone/a-teacher"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process's huggingface_hub is pointed to, and an empty cache."""
    with serving() as server:
        point(monkeypatch, server.url, tmp_path / "cache")
        yield server


def values(seed: int = 0) -> dict[str, Tensor]:
    """The weights of a network of another seed than the run's."""
    torch.manual_seed(seed)
    return dict(build.network(task.load("classification"), "cnn4", 10, 1).state_dict())


def stored(weights: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(weights)


def settings(checkpoint: str = f"hub:{NAME}", **student: Any) -> config.Config:
    return config.build(
        {
            "task": "classification",
            "classes": 10,
            "input": {"size": 8},
            "teacher": {"network": "cnn4", "checkpoint": checkpoint, "channels": "gray"},
            "student": {"network": "cnn4", **student},
        }
    )


def assert_holds(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    assert all(torch.equal(module.state_dict()[key], value) for key, value in weights.items())


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        sources.locate(text)
    message = str(caught.value)
    assert "\n" not in message and TOKEN not in message
    return message


def no_network(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """An endpoint at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point(monkeypatch, f"http://127.0.0.1:{port}", cache)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:a/b", hub.Reference("a/b", None, None)),
        ("hub:a/b@v1", hub.Reference("a/b", None, "v1")),
        ("hub:a/b/sub/x.pth@refs/pr/1", hub.Reference("a/b", "sub/x.pth", "refs/pr/1")),
    ],
)
def test_spellings(text: str, expected: hub.Reference) -> None:
    assert hub.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    ["hub:", "hub:a", "hub:a/", "hub:a b/c", "hub:a/b@", "hub:a/b//x", "hub:a/../x", "hub:a/b/../../etc", "hub:a/b--c"],
)
def test_a_name_that_is_none_is_refused_without_asking(there: Hub, text: str) -> None:
    assert text.removeprefix("hub:") in refusal(text) and not there.asked


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin", "other.safetensors"], "model.safetensors"),
        (["README.md", "student.safetensors", "student.onnx", "student.json"], "student.safetensors"),
        (["tf_model.h5", "pytorch_model.bin"], "pytorch_model.bin"),
        (["resnet20-12fca82f.th", "README.md"], "resnet20-12fca82f.th"),
    ],
)
def test_the_file_that_is_taken(there: Hub, names: list[str], taken: str) -> None:
    commit = there.add(NAME, dict.fromkeys(names, b""))
    assert hub.pin(hub.parse(f"hub:{NAME}")) == hub.Reference(NAME, taken, commit)


def test_several_files_are_named_and_none_is_said(there: Hub) -> None:
    there.add(NAME, {"a.pth": b"", "b.pt": b""})
    there.add("someone/empty", {"README.md": b""})
    assert f"hub:{NAME}/a.pth or hub:{NAME}/b.pt" in refusal(f"hub:{NAME}")
    assert "no file of weights" in refusal("hub:someone/empty")
    assert "did you mean 'a.pth'" in refusal(f"hub:{NAME}/a.pt")


def test_teacher_and_start_from_the_hub(there: Hub) -> None:
    theirs, own = values(1), values(2)
    commit = there.add(NAME, {"model.safetensors": stored(theirs)})
    there.add("someone/start", {"deep/own.safetensors": stored(own)})
    chosen = sources.pinned(settings(start="hub:someone/start"), {})
    assert chosen.teacher.checkpoint == f"hub:{NAME}/model.safetensors@{commit}"
    assert_holds(roles.teacher(chosen), theirs)
    assert_holds(start.begin(chosen, None, None).module, own)
    assert len(there.downloads()) == 2, "each file comes once"
    record = folder.file_records(chosen)["teacher.checkpoint"]
    assert {key: record[key] for key in ("repository", "file", "revision")} == {
        "repository": NAME, "file": "model.safetensors", "revision": commit,
    }  # fmt: skip
    assert record["size"] == len(stored(theirs)) and sources.recorded(record) == chosen.teacher.checkpoint


def test_shards_are_fetched_with_their_index(there: Hub) -> None:
    theirs = values(1)
    names = sorted(theirs)
    parts = {"a-1-of-2.safetensors": names[:3], "a-2-of-2.safetensors": names[3:]}
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    files = {part: stored({name: theirs[name] for name in held}) for part, held in parts.items()}
    there.add(
        NAME,
        {"sub/model.safetensors.index.json": json.dumps(index).encode()} | {f"sub/{k}": v for k, v in files.items()},
    )
    assert_holds(roles.teacher(settings(f"hub:{NAME}/sub/model.safetensors.index.json")), theirs)


def test_a_pickle_from_the_hub_runs_nothing(there: Hub, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    there.add(NAME, {"pytorch_model.bin": pickle.dumps({"weight": Evil()}, protocol=2)})
    with pytest.raises(UserError, match="is refused: it is a pickle that would run"):
        roles.teacher(settings())
    assert not (tmp_path / "ran").exists()


def test_a_resumed_run_keeps_its_commit_and_notices_another_file(there: Hub, tmp_path: Path) -> None:
    theirs = values(1)
    there.add(NAME, {"model.safetensors": stored(theirs)})
    run, chosen = tmp_path / "run", settings()
    run.mkdir()
    first = sources.pinned(chosen, folder.recorded(run))
    folder.open_run(run, chosen, pinned=first)
    there.add(NAME, {"model.safetensors": stored(values(2))})  # main has moved
    again = sources.pinned(chosen, folder.recorded(run))
    assert again == first
    folder.open_run(run, chosen, pinned=again)
    assert_holds(roles.teacher(again), theirs)
    assert sources.pinned(chosen, {}) != first, "another run begins with the present one"
    path = sources.locate(str(again.teacher.checkpoint)).resolve()
    path.chmod(0o644)
    path.write_bytes(stored(values(3)))
    with pytest.raises(UserError, match="is not the file this run began with"):
        folder.open_run(run, chosen, pinned=again)
    record = folder.recorded(run)["teacher.checkpoint"]
    assert "is not the file" in str(sources.change("teacher.checkpoint", record))


def test_a_stopped_run_goes_on_with_its_commit(there: Hub, tmp_path: Path, no_curves: None) -> None:
    there.add(NAME, {"model.safetensors": stored(values(1))})
    small = {"rounds": 3, "batch_size": 4, "pictures": False, "tracking": {"uri": "none"}, "generator": {"width": 4}}
    chosen = config.build(config.to_dict(settings()) | small | {"student_discrepancy": "l1"})
    *_, stopped = rounds(chosen, tmp_path / "run", lambda: "enough")
    assert stopped.stopped and stopped.round < 3
    there.add(NAME, {"model.safetensors": stored(values(2))})
    found = distill(chosen, tmp_path / "run")
    assert found["teacher"]["sha256"] == hashlib.sha256(stored(values(1))).hexdigest()
    assert len(there.downloads()) == 1


def test_without_a_network_the_cache_serves(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = values(1)
    there.add(NAME, {"model.safetensors": stored(theirs)})
    chosen = sources.pinned(settings(), {})
    no_network(monkeypatch, tmp_path / "cache")
    assert sources.pinned(settings(), {}) == chosen
    assert_holds(roles.teacher(settings()), theirs)
    no_network(monkeypatch, tmp_path / "other")
    for text in (f"hub:{NAME}", str(chosen.teacher.checkpoint)):
        message = refusal(text)
        assert "cannot be reached" in message and "local file" in message and str(tmp_path / "other") in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(f"hub:{NAME}")
    record = {"path": "gone", "sha256": "", "repository": NAME, "file": "model.safetensors", "revision": "a" * 40}
    assert "HF_HUB_OFFLINE is set" in str(sources.change("teacher.checkpoint", record))


def test_what_the_hub_answers_is_said(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add(NAME, {"model.safetensors": stored(values())}, private=True)
    for name in (NAME, "nobody/nothing"):
        assert "no such repository, or it is private" in refusal(f"hub:{name}") and "HF_TOKEN" in refusal(f"hub:{name}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert sources.locate(f"hub:{NAME}").exists()
    assert "no such revision" in refusal(f"hub:{NAME}@v9")
    assert "no such revision" in refusal(f"hub:{NAME}/model.safetensors@{'0' * 40}")


def test_weights_that_fit_are_still_chosen_by_entry(there: Hub, tmp_path: Path) -> None:
    both = {"state_dict": values(1), "state_dict_ema": values(2)}
    torch.save(both, tmp_path / "both.pth")
    there.add(NAME, {"both.pth": (tmp_path / "both.pth").read_bytes()})
    chosen = settings()
    chosen = dataclasses.replace(chosen, teacher=dataclasses.replace(chosen.teacher, entry="state_dict_ema"))
    assert_holds(roles.teacher(chosen), both["state_dict_ema"])
