"""One row for every kind of checkpoint file: what is in it, and whether it loads, with which lines, or is refused how.

To add a kind, add a row to `LOADED` or to `REFUSED`.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.networks.weights import load

Weights = dict[str, Tensor]
Writer = Callable[[Path], Path]
NAME = "teacher.network=small"


class Kind(NamedTuple):
    """A kind of file."""

    write: Writer
    """Makes one in a folder, and returns its path."""
    says: str = ""
    """The line that is said, after the file's path; a pattern for what a refusal says."""
    entry: str | None = None
    """teacher.entry."""


def small() -> nn.Module:
    """Every sort of tensor a classifier has: weights, running statistics, a counter, indices, a mask."""
    network = nn.Sequential(
        OrderedDict(
            body=nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))), head=nn.Linear(4, 2)
        )
    )
    network.register_buffer("order", torch.arange(300))
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    return network


def weights(seed: int) -> Weights:
    """A state_dict of that network; each seed has its own."""
    source = torch.Generator().manual_seed(seed)
    found = {key: torch.rand(value.shape, generator=source) for key, value in small().state_dict().items()}
    fixed = {"order": torch.arange(300), "mask": torch.tensor([0.0, -torch.inf])}
    return {**found, **fixed, "body.norm.num_batches_tracked": torch.tensor(seed)}


GOOD, OTHER, THIRD = weights(1), weights(2), weights(3)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Weights:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def instead(key: str, value: Tensor) -> Weights:
    return {**GOOD, key: value}


def changed(key: str, value: float) -> Weights:
    """Good weights with one wrong number."""
    tensor = GOOD[key].clone()
    tensor.view(-1)[0] = value
    return instead(key, tensor)


def saved(content: object, name: str = "t.pth", **options: Any) -> Writer:
    """As torch.save writes it."""

    def write(folder: Path) -> Path:
        torch.save(content, folder / name, **options)
        return folder / name

    return write


def safe(content: Weights, name: str) -> Writer:
    """As safetensors writes it."""

    def write(folder: Path) -> Path:
        safetensors.torch.save_file(content, folder / name)
        return folder / name

    return write


def raw(content: bytes, name: str = "t.pth") -> Writer:
    """These bytes."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def sharded(change: Callable[[Path], object] = lambda folder: None, give: str = "", **shards: object) -> Writer:
    """Two shards and their index as Hugging Face's libraries write them; `shards` replaces files in the index."""
    names = list(GOOD)
    parts = {f"model-0000{place + 1}-of-00002.safetensors": names[place::2] for place in range(2)}

    def write(folder: Path) -> Path:
        places = {name: shards.get(name, part) for part, held in parts.items() for name in held}
        for part, held in parts.items():
            safetensors.torch.save_file({name: GOOD[name] for name in held}, folder / part)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
        change(folder)
        return folder / give if give else index

    return write


def quantised() -> Weights:
    with warnings.catch_warnings(action="ignore"):  # deprecated, such files are still about
        return instead("head.weight", torch.quantize_per_tensor(GOOD["head.weight"], 0.1, 0, torch.qint8))


def renamed(pattern: str, to: str) -> Weights:
    return {re.sub(pattern, to, key): value for key, value in GOOD.items()}


OLD: dict[str, Any] = {"_use_new_zipfile_serialization": False}
WIDE = OTHER | {"head.bias": torch.ones(3)}
NUMPY = [np.float64(91.7), np.float32, np.dtype("float32"), np.dtype([("x", "f8")]), np.arange(3), np.str_("a")]
LIGHTNING = {
    "state_dict": {
        **under("model", GOOD),
        "criterion.weight": torch.ones(2),
        "mean": torch.ones(3),
        "std": torch.ones(3),
    },
    "pytorch-lightning_version": "2.5.0",
    "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(4)}}}],
    "hyper_parameters": argparse.Namespace(lr=0.1, nested=argparse.Namespace(dtype=np.dtype("float32"))),
}

LOADED = {
    "state_dict": Kind(saved(GOOD)),
    "before PyTorch 1.6": Kind(saved(GOOD, **OLD)),
    "the ImageNet example's": Kind(saved({"epoch": 90, "state_dict": under("module", GOOD)}, "model_best.pth.tar")),
    "the same before PyTorch 1.6": Kind(saved({"state_dict": under("module", GOOD)}, "t.pth.tar", **OLD)),
    ".bin": Kind(saved(GOOD, "pytorch_model.bin")),
    "no suffix": Kind(saved(GOOD, "weights")),
    "safetensors without suffix": Kind(safe(GOOD, "weights")),
    "safetensors that is named .pt": Kind(safe(GOOD, "weights.pt")),
    "a pickle that is named .safetensors": Kind(saved(GOOD, "weights.safetensors")),
    "Lightning's": Kind(
        saved(LIGHTNING, "last.ckpt"),
        ": took the weights under 'state_dict.model', left out 3 keys ('criterion.weight', 'mean', ...)",
    ),
    "DDP around compiled": Kind(saved(under("module._orig_mod", GOOD))),
    "compiled inside": Kind(saved(renamed("^body", "body._orig_mod"))),
    "compiled inside, DDP within": Kind(saved(under("net", renamed(r"\.norm", ".module._orig_mod.norm")))),
    "FSDP": Kind(saved(renamed("^body", "_fsdp_wrapped_module.body._checkpoint_wrapped_module"))),
    "timm's": Kind(
        saved({"state_dict": GOOD, "state_dict_ema": OTHER}),
        ": took the weights under 'state_dict'; others that fit: teacher.entry=state_dict_ema",
    ),
    "timm's, the average": Kind(
        saved({"state_dict": OTHER, "state_dict_ema": GOOD}),
        ": took the weights under 'state_dict_ema'",
        "state_dict_ema",
    ),
    "model and model_ema": Kind(
        saved({"model_ema": OTHER, "model": GOOD}),
        ": took the weights under 'model'; others that fit: teacher.entry=model_ema",
    ),
    "an average beside the weights at the top": Kind(
        saved({**GOOD, "ema": OTHER}), ": took the weights at its top; others that fit: teacher.entry=ema"
    ),
    "an average beside other shapes": Kind(saved({"model": WIDE, "ema": GOOD}), ": took the weights under 'ema'"),
    "state_dict_ema": Kind(saved({"state_dict_ema": GOOD}), ": took the weights under 'state_dict_ema'"),
    "weights": Kind(saved({"weights": GOOD}), ": took the weights under 'weights'"),
    "student": Kind(saved({"student": GOOD, "epoch": 3}), ": took the weights under 'student'"),
    "network.encoder": Kind(saved({"network": {"encoder": GOOD}}), ": took the weights under 'network.encoder'"),
    "the same weights twice": Kind(saved({"ema": GOOD, "model": GOOD})),
    "a prefix beside other keys": Kind(
        saved({**under("model", GOOD), "criterion.weight": torch.ones(2)}),
        ": took the weights under 'model', left out 1 key ('criterion.weight')",
    ),
    "a teacher beside a part of its student": Kind(
        saved({**under("teacher", GOOD), "student.head.bias": torch.ones(2)}),
        ": took the weights under 'teacher', left out 1 key ('student.head.bias')",
    ),
    "a teacher beside its student, chosen": Kind(
        saved({"state_dict": {**under("teacher", GOOD), **under("student", OTHER)}}),
        ": took the weights under 'state_dict.teacher', left out 11 keys ('student.order', 'student.mask', ...)",
        "state_dict.teacher",
    ),
    "names without a prefix beside an average's": Kind(
        saved({**GOOD, **under("ema", OTHER)}),
        ": took the weights at its top, left out 11 keys ('ema.order', 'ema.mask', ...)",
        ".",
    ),
    "a profiler's": Kind(
        saved({**GOOD, "total_ops": torch.ones(1), "body.conv.total_params": torch.ones(1)}),
        ": took the weights at its top, left out 2 keys ('total_ops', 'body.conv.total_params')",
    ),
    "numpy's scalars, dtypes and arrays": Kind(saved({"model": GOOD, "best": NUMPY})),
    "argparse.Namespace": Kind(saved({"model": GOOD, "args": argparse.Namespace(lr=0.1)})),
    "Hugging Face's shards": Kind(sharded()),
    "a shard that holds all": Kind(safe(GOOD, "model-00001-of-00001.safetensors")),
    "indices as half": Kind(saved(instead("order", GOOD["order"].half()))),
    "a counter as an average": Kind(saved(instead("body.norm.num_batches_tracked", torch.tensor(1.75)))),
}

REFUSED = {
    "NaN": Kind(saved(changed("head.weight", torch.nan)), "head.weight is NaN or infinite in 1 of its 8 values: give"),
    "a mask that is not the network's": Kind(saved(changed("mask", torch.nan)), "mask is NaN or infinite in 1 of its"),
    "an infinite running variance": Kind(
        saved(changed("body.norm.running_var", torch.inf)), "body.norm.running_var is NaN or infinite in 1 of its 4"
    ),
    "a negative running variance": Kind(
        saved(changed("body.norm.running_var", -3)), r"body.norm.running_var has a variance below 0 \(-3\): the weights"
    ),
    "too large for single precision": Kind(
        saved(instead("head.bias", torch.tensor([1e39, 0], dtype=torch.float64))), "head.bias is NaN or infinite"
    ),
    "int8": Kind(
        saved({key: value.to(torch.int8) for key, value in GOOD.items()}),
        "holds integers of type int8 without their scale, the network has float32: give the floating-point weights",
    ),
    "bool": Kind(saved(instead("head.bias", torch.tensor([True, False]))), "head.bias holds integers of type bool"),
    "8-bit floats": Kind(
        saved(instead("head.bias", torch.ones(2).to(torch.float8_e4m3fn))), "holds numbers of type float8_e4m3fn"
    ),
    "complex": Kind(saved(instead("head.bias", torch.ones(2) * 1j)), "head.bias holds numbers of type complex64"),
    "quantised": Kind(saved(quantised()), "head.weight holds integers of type qint8"),
    "a quantised network's": Kind(
        saved({**quantised(), "head.scale": torch.tensor(0.1), "head.zero_point": torch.tensor(0)}),
        "is of a quantised network: give the floating-point weights",
    ),
    "no values": Kind(saved({key: value.to("meta") for key, value in GOOD.items()}), "has no values.* meta: save"),
    "sparse": Kind(saved(instead("head.weight", GOOD["head.weight"].to_sparse())), r"save it as tensor.to_dense\(\)"),
    "indices with fractions": Kind(
        saved(instead("order", torch.arange(300) + 0.5)), "order holds float32 values that are not int64"
    ),
    "two averages": Kind(
        saved({"ema_a": GOOD, "ema_b": OTHER}),
        f"holds several weights that fit {NAME}: choose with teacher.entry=ema_a or teacher.entry=ema_b$",
    ),
    "two usual ones": Kind(
        saved({"model": GOOD, "net": OTHER}), "several weights .* teacher.entry=model or teacher.entry=net$"
    ),
    "a teacher beside its student": Kind(
        saved({"state_dict": {**under("teacher", GOOD), **under("student", OTHER)}}),
        "several weights .* teacher.entry=state_dict.teacher or teacher.entry=state_dict.student$",
    ),
    "a model beside its average": Kind(
        saved({**under("model", GOOD), **under("model_ema", OTHER)}),
        "several weights .* teacher.entry=model or teacher.entry=model_ema$",
    ),
    "with a wrapper's prefix and without": Kind(
        saved({**under("_orig_mod", GOOD), **under("module", OTHER)}),
        "several weights .* teacher.entry=_orig_mod or teacher.entry=module$",
    ),
    "an average's prefix beside names without one": Kind(
        saved({**GOOD, **under("ema", OTHER)}), "several weights .* teacher.entry=. or teacher.entry=ema$"
    ),
    "five of them": Kind(
        saved({letter: weights(place) for place, letter in enumerate("abcde")}), "or teacher.entry=d or ...$"
    ),
    "an entry that is not there": Kind(
        saved({"model": GOOD, "model_ema": OTHER}),
        "=model_em: .* no such weights; did you mean 'model_ema'",
        "model_em",
    ),
    "an entry of a file without any": Kind(saved(GOOD), r"teacher.entry=ema: .* no such weights; known: \.$", "ema"),
    "an entry that does not fit": Kind(saved({"model": GOOD, "ema": WIDE}), "3 classes, classes=2: set", "ema"),
    "nothing that fits": Kind(
        saved({"state_dict": GOOD | {"x": torch.ones(1)}, "ema": OTHER | {"y": torch.ones(1)}}),
        r"it has 1 key \('x'\) .* does not know; this is 'state_dict', others: teacher.entry=ema$",
    ),
    "an unprintable entry": Kind(saved({"a\n\x1b": GOOD, "b": OTHER}), r"teacher.entry=a\?\? or teacher.entry=b$"),
    "arrays": Kind(saved({key: value.numpy() for key, value in GOOD.items()}), "tensors by name, not numpy's arrays"),
    "a whole network": Kind(saved(small()), "a pickle that would run torch.nn.modules.container.Sequential"),
    "a shard": Kind(
        sharded(give="model-00002-of-00002.safetensors"), "is one of 2 shards .* the file ending in .index.json beside"
    ),
    "an index without a shard": Kind(
        sharded(lambda folder: (folder / "model-00002-of-00002.safetensors").unlink()),
        "model-00002-of-00002.safetensors cannot be read: No such file",
    ),
    "an index of other shards": Kind(
        sharded(order="model-00001-of-00002.safetensors", mask="model-00001-of-00002.safetensors"),
        "model-00001-of-00002.safetensors lacks '.*', which .* says is in it: download both again",
    ),
    "an index that leads elsewhere": Kind(
        sharded(mask="../secret"), r"names the file '\.\./secret': expected files be"
    ),
    "an index that leads to the root": Kind(sharded(mask="/etc/passwd"), "names the file '/etc/passwd': expected"),
    "an index that leads to Windows' root": Kind(sharded(mask="C:\\b"), "names the file .*: expected files beside it"),
    "an index that leads up": Kind(sharded(mask=".."), "names the file '..': expected files beside it"),
    "an index of numbers": Kind(sharded(mask=3), "is not the index of a checkpoint in parts"),
    "other JSON": Kind(raw(b'{"hidden_size": 3}', "config.json"), "is not the index of a checkpoint in parts"),
    "damaged JSON": Kind(raw(b"[" * 100000, "config.json"), "is not the index of a checkpoint in parts"),
    "a Git LFS pointer": Kind(
        raw(b"version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer: .* lfs pull"
    ),
    "a web page": Kind(raw(b"<!DOCTYPE html>"), "a web page or XML: download"),
    "gzip": Kind(raw(b"\x1f\x8b\x08" + bytes(50), "t.pth.tar.gz"), "packed with gzip: unpack it"),
    "a tar archive": Kind(raw(bytes(257) + b"ustar" + bytes(250), "t.tar"), "a tar archive: unpack it and name"),
    "Keras'": Kind(raw(b"\x89HDF\r\n\x1a\n", "t.h5"), "an HDF5 file, such as Keras writes: convert"),
}


@pytest.mark.parametrize("kind", LOADED)
def test_loaded(kind: str, tmp_path: Path) -> None:
    write, line, entry = LOADED[kind]
    path, module, said = write(tmp_path), small(), list[str]()
    load(module, path, NAME, entry, said.append)
    found = module.state_dict()
    for key in GOOD:
        assert key.endswith("tracked") or torch.equal(found[key], GOOD[key]), key
    assert said == ([f"{path}{line}"] if line else [])


def test_a_tensor_of_two_names_has_one_value(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    weights = {key: value + 1 for key, value in module.state_dict().items()}
    torch.save(weights, tmp_path / "tied.pth")
    load(module, tmp_path / "tied.pth", NAME)
    torch.save(weights | {"1.weight": weights["1.weight"] + 1}, tmp_path / "untied.pth")
    with pytest.raises(UserError, match=r"0\.weight and 1\.weight are one tensor in teacher\.network=small"):
        load(module, tmp_path / "untied.pth", NAME)


def test_batch_norm_that_saw_no_image_is_said(tmp_path: Path) -> None:
    path, said = saved(small().state_dict())(tmp_path), list[str]()
    load(small(), path, NAME, None, said.append)
    assert said == [
        f"{path}: the batch-norm statistics are those of new layers, mean 0 and variance 1: was it trained?"
    ]


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, tmp_path: Path) -> None:
    write, expected, entry = REFUSED[kind]
    path, module = write(tmp_path), small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load(module, path, NAME, entry)
    message = str(caught.value)
    assert re.search(expected, message) and str(tmp_path) in message and message.isprintable()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
