"""A teacher's checkpoint that holds several weights, or that is in several files, from the command to the score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import files, task
from tests.end_to_end.conftest import SMALL, TEACHER, Ddad

EVALUATE = ("evaluate", "--network", "cnn32", "--data", "digits", "--json", "--checkpoint")
DISTIL = ("distill", "digits", *SMALL, "--output", "run")


@pytest.fixture
def accuracy(workplace: Path, ddad: Ddad) -> float:
    """Of the taught teacher, whose weights are in `both.pth` as the average beside others of no use."""
    fresh = task.load("classification").network("cnn32", 10, 1).state_dict()
    torch.save({"state_dict": fresh, "state_dict_ema": load_file(TEACHER)}, "both.pth")
    found = json.loads(ddad(*EVALUATE, TEACHER).out)["accuracy"]
    assert found > 0.5
    return float(found)


def test_the_entry_of_a_network_to_evaluate(ddad: Ddad, accuracy: float) -> None:
    said = ddad(*EVALUATE, "both.pth")
    assert json.loads(said.out)["accuracy"] < 0.5
    lines = [
        "both.pth: took the weights under 'state_dict'; others that fit: --entry state_dict_ema",
        "both.pth: the batch-norm statistics are those of new layers, mean 0 and variance 1: was it trained?",
    ]
    assert said.err.splitlines() == lines
    chosen = ddad(*EVALUATE, "both.pth", "--entry", "state_dict_ema")
    assert json.loads(chosen.out)["accuracy"] == accuracy
    assert chosen.err == "both.pth: took the weights under 'state_dict_ema'\n"


def test_the_entry_of_a_teacher(ddad: Ddad, accuracy: float) -> None:
    said = ddad(*DISTIL, "teacher.checkpoint=both.pth")
    assert said.code == 0 and "others that fit: teacher.entry=state_dict_ema" in said.err
    assert json.loads(Path("run/result.json").read_text())["teacher"]["accuracy"] < 0.5
    chosen = ("teacher.checkpoint=both.pth", "teacher.entry=state_dict_ema")
    assert "teacher.entry is None there, 'state_dict_ema' here" in ddad(*DISTIL, *chosen).complaint()
    assert ddad(*DISTIL[:-1], "chosen", *chosen).code == 0
    assert json.loads(Path("chosen/result.json").read_text())["teacher"]["accuracy"] == accuracy
    scored = ddad("evaluate", "chosen", "--json")
    assert json.loads(scored.out)["teacher"]["accuracy"] == accuracy
    assert (
        "--entry goes with --network: a run has its own"
        in ddad("evaluate", "chosen", "--entry", "state_dict").complaint()
    )


def test_a_teacher_in_shards(ddad: Ddad, accuracy: float) -> None:
    weights, index = load_file(TEACHER), Path("model.safetensors.index.json")
    names = sorted(weights)
    shards = {f"model-0000{place + 1}-of-00002.safetensors": names[place::2] for place in range(2)}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, shard)
    index.write_text(json.dumps({"weight_map": {name: shard for shard, held in shards.items() for name in held}}))
    words = (*DISTIL, f"teacher.checkpoint={index}")
    assert ddad(*words).code == 0
    teacher = json.loads(Path("run/result.json").read_text())["teacher"]
    assert teacher["accuracy"] == accuracy and teacher["sha256"] == files.sha256(index, *map(Path, sorted(shards)))
    last = Path(max(shards))
    save_file({name: weights[name] + 1 for name in shards[last.name]}, last)
    said = ddad("evaluate", "run", "--json")
    assert json.loads(said.out)["teacher"] is None and "is not the file the run began with" in said.err
    last.unlink()
    said = ddad("evaluate", "run", "--json")
    assert said.code == 0 and f"{last} cannot be read: No such file" in said.err
    save_file({name: weights[name] + 1 for name in shards[last.name]}, last)
    Path("run/result.json").unlink()  # the run goes on
    assert "(teacher.checkpoint) is not the file this run began with" in ddad(*words).complaint()
