"""An int8 file: chosen on images held apart, the same bytes each time, or refused in a line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from harness.commands import onnx_file, quantise
from harness.commands.calibration import Kind, Use, mixture
from harness.errors import UserError

SHAPE = (3, 8, 8)


def write_network(path: Path, layers: int = 3, wide: float = 1.0) -> Path:
    """Convolutions with ReLU, a mean over positions, 5 classes; the filters of the first differ by `wide` in size."""
    source = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    nodes, channels, last = [], 3, onnx_file.INPUT
    for index in range(layers):
        weight = source.normal(0, 0.3, (6, channels, 3, 3))
        if not index:
            weight *= np.geomspace(1, wide, 6)[:, None, None, None]
        values[f"w{index}"] = weight.astype(np.float32)
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        channels, last = 6, f"r{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"] if layers else [onnx_file.OUTPUT], "flatten"))
    if layers:
        values["last"] = source.normal(0, 1, (6, 5)).astype(np.float32)
        nodes.append(helper.make_node("Gemm", ["flat", "last"], [onnx_file.OUTPUT], "gemm"))
    batch = helper.make_tensor_value_info(onnx_file.INPUT, TensorProto.FLOAT, ["batch", *SHAPE])
    answer = helper.make_tensor_value_info(onnx_file.OUTPUT, TensorProto.FLOAT, ["batch", 5 if layers else 3])
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "network", [batch], [answer], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def noise(scale: float, seed: int) -> Kind:
    """Normal noise of that deviation, other for each use."""

    def kind(use: Use, count: int) -> Tensor:
        source = torch.Generator().manual_seed(2 * seed + (use == "held"))
        return scale * torch.randn(count, *SHAPE, generator=source)

    return kind


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "IMAGES", 32)


def answers(path: Path, x: Tensor) -> Tensor:
    return onnx_file.runner(onnx_file.session(path))(x)


def test_the_choice_suits_every_kind_of_image(tmp_path: Path) -> None:
    plain = write_network(tmp_path / "plain.onnx")
    kinds = {"faint": noise(0.1, 1), "strong": noise(2.0, 2)}
    choice = quantise.quantise(plain, tmp_path / "int8.onnx", kinds, SHAPE)
    assert choice.images == 32
    tried = choice.candidates
    assert {each.images for each in tried} == {"faint", "strong", "mixture"}
    assert {each.ranges for each in tried} == {*quantise.PERCENTILES, quantise.ENTROPY}
    assert {each.fp32 for each in tried} == {"none", "first", "last", "first+last"} and len(tried) == 3 * 4 + 3
    assert choice.chosen in tried and choice.chosen.worst_kl == min(each.worst_kl for each in tried)
    assert choice.chosen.images != "faint", "its ranges cut the activations of strong images"
    cut = [each for each in tried if each.images == "faint"]
    assert min(each.kl["strong"] for each in cut) > 10 * choice.chosen.kl["strong"]

    x = 2.0 * torch.randn(64, *SHAPE)
    expected, found = answers(plain, x), answers(tmp_path / "int8.onnx", x)
    share = (expected.argmax(1) == found.argmax(1)).float().mean()
    assert share >= 0.9, "images that it has not seen"
    recorded = choice.record()
    assert recorded["chosen"]["worst_agreement"] == min(choice.chosen.agreement.values())
    assert len(recorded["candidates"]) == len(tried)


def test_figures_are_those_of_the_file(tmp_path: Path) -> None:
    plain = write_network(tmp_path / "plain.onnx")
    kinds = {"noise": noise(1.0, 1)}
    choice = quantise.quantise(plain, tmp_path / "int8.onnx", kinds, SHAPE)
    x = kinds["noise"]("held", 32)
    p, q = (answers(path, x).softmax(1) for path in (plain, tmp_path / "int8.onnx"))
    assert choice.chosen.agreement["noise"] == (p.argmax(1) == q.argmax(1)).float().mean()
    assert choice.chosen.kl["noise"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-3, abs=1e-6)


def test_weights_have_7_bits_by_channel_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    plain = write_network(tmp_path / "plain.onnx", wide=1000.0)
    for name in ("one.onnx", "two.onnx"):
        quantise.quantise(plain, tmp_path / name, {"noise": noise(1.0, 1)}, SHAPE)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    held = {value.name: numpy_helper.to_array(value) for value in onnx.load(tmp_path / "one.onnx").graph.initializer}
    assert held["w1_quantized"].dtype == np.int8 and held["w1_scale"].shape == (6,)
    weights = np.abs([held[f"w{index}_quantized"].astype(int).ravel() for index in (1, 2)])
    assert 32 < weights.max() <= 64, "two products of 7 and 8 bits fit in 16 bits, on every processor"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "plain.onnx", "two.onnx"]


def test_what_the_quantiser_cannot_do_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = write_network(tmp_path / "plain.onnx")
    kinds: dict[str, Kind] = {"broken": lambda use, count: torch.full((count, *SHAPE), math.nan)}
    with pytest.raises(
        UserError, match=r"the student cannot be quantised to int8 .*: export it without --int8"
    ) as caught:
        quantise.quantise(plain, tmp_path / "int8.onnx", kinds, SHAPE)
    assert "\n" not in str(caught.value)
    bare = write_network(tmp_path / "bare.onnx", layers=0)
    with pytest.raises(UserError, match=r"has none of the layers that int8 is for \(Conv, "):
        quantise.quantise(bare, tmp_path / "int8.onnx", {"noise": noise(1.0, 1)}, SHAPE)
    assert not (tmp_path / "int8.onnx").exists()
    assert capfd.readouterr().out == ""


def same(value: float) -> Kind:
    """Images of one value."""
    return lambda use, count: torch.full((count, 1), value)


def test_a_mixture_has_every_kind_from_its_first_batch_on() -> None:
    kinds = {str(value): same(value) for value in (1.0, 2.0, 3.0)}
    assert mixture(kinds, "calibration", 7).flatten().tolist() == [1, 2, 3, 1, 2, 3, 1]
