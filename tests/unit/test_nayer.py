"""NAYER: noisy layers over class embeddings, what lasts of its generator, and the file of embeddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness import methods, resolve
from harness.algorithm.generators import Noisy
from harness.algorithm.latents import classes_in_turn, shard
from harness.config.parse import merge
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.networks import roles
from harness.networks.embeddings import SIZE, embeddings
from harness.run import folder
from harness.training.inversion import Inversion
from harness.training.machine import Machine
from tests.unit.test_baselines import build, play_round


def noisy(rows: range) -> Noisy:
    """Three noisy layers of 4 -> 3 for 7 rows of 3 classes, with a network that does nothing behind them."""
    torch.manual_seed(0)
    layers = Noisy(nn.Identity(), (4, 3), rows, 7, 3)
    layers.draw(torch.arange(36.0).view(3, 12))
    return layers


def test_each_k_rows_share_a_noisy_layer() -> None:
    whole, e = noisy(range(7)), torch.randn(7, 4)
    whole.bias.data += torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    normal = (e - e.mean(0)) / (e.var(0, unbiased=False) + 1e-5).sqrt()
    weight = torch.arange(36.0).view(3, 3, 4)
    expected = torch.stack([weight[row // 3] @ normal[row] + 1 + row // 3 for row in range(7)])
    torch.testing.assert_close(whole(e), expected, rtol=1e-4, atol=1e-4)
    whole.draw(torch.zeros(3, 12))
    assert not whole.weight.any() and not whole.bias.any()


def test_a_process_has_the_rows_of_its_own() -> None:
    e = torch.randn(7, 4)
    whole = noisy(range(7)).eval()
    parts = [noisy(rows).eval()(e[rows.start : rows.stop]) for rows in (shard(7, 0, 2), shard(7, 1, 2))]
    torch.testing.assert_close(torch.cat(parts), whole(e))


def test_images_of_a_noisy_layer_have_different_classes() -> None:
    whole = classes_in_turn(range(25), 10, 0, "classes", 3)
    for start in (0, 7, 15):
        assert len(set(whole[start : start + 10].tolist())) == 10
    parts = [classes_in_turn(shard(25, rank, 3), 10, 0, "classes", 3) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, classes_in_turn(range(25), 10, 0, "classes", 4))


def maker(over: dict[str, Any] | None = None) -> Inversion:
    built = build("nayer", over=merge({"batch_size": 20, "inversion": {"steps": 2}}, over or {}))
    assert built.inversion
    return built.inversion


def state(module: nn.Module | None) -> dict[str, Tensor]:
    assert module
    return {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names of what is equal."""
    return [name for name, value in one.items() if torch.equal(value, other[name])]


def test_a_batch_of_one_image_cannot_be_normalised() -> None:
    with pytest.raises(UserError, match="batch_size=4, micro_batches=4: the generator normalises class embeddings"):
        build("nayer", over={"batch_size": 4, "micro_batches": 4})


def test_noisy_layers_and_generator_learn_and_embeddings_do_not() -> None:
    built = build("nayer", over={"batch_size": 20, "inversion": {"steps": 2}})
    assert built.inversion and isinstance(built.inversion.generator, Noisy)
    made = built.inversion
    y = made._classes(0, 0, 0)
    assert y.bincount(minlength=10).tolist() == [2] * 10
    assert torch.equal(made.batch.start, embeddings(built.config)[y])
    made._begin(0, 0, 0)
    before, start = state(made.generator), made.batch.start.clone()
    assert before["weight"].shape == (2, 8, SIZE) and abs(before["weight"].std().item() - 1) < 0.02
    built.play(0, 0)
    assert not same(before, state(made.generator)) and torch.equal(start, made.batch.start)


def test_the_generator_goes_on_from_batch_to_batch_and_begins_anew_by_schedule() -> None:
    built = build("nayer", over={"batch_size": 20, "inversion": {"steps": 2}, "generator": {"restart": 2}})
    assert built.inversion and isinstance(built.inversion.generator, Noisy)
    made, ends, starts = built.inversion, [], []
    for index in range(3):
        made._begin(index, 0, 0)
        starts.append(state(made.generator))
        built.play(index, 0)
        ends.append(state(made.generator))
    assert set(same(starts[1], ends[0])) == starts[1].keys() - {"weight", "bias"}, "only the noisy layers are new"
    assert not same({"weight": starts[1]["weight"]}, starts[0])
    anew = state(roles.generator(built.config, 2))
    assert all(torch.equal(value, starts[2][f"generator.{name}"]) for name, value in anew.items())
    assert not torch.equal(starts[2]["generator.0.linear.weight"], starts[0]["generator.0.linear.weight"])
    assert torch.equal(starts[2]["norm.weight"], torch.ones(SIZE))


def test_the_published_settings() -> None:
    config = resolve.resolve("cifar100-wrn40_2-wrn16_2", None, {"method": "nayer", "variant": "cifar100"})
    assert (config.generator.restart, config.inversion.steps, config.generator.lr) == (20, 40, 4e-3)
    assert config.rounds * config.student_steps == 300 * 400
    assert config.rounds == 20 * 10 + 300 * 2 and config.adversarial_after * config.rounds == 20 * 10
    assert resolve.resolve("digits", None, {"method": "nayer", "variant": "cifar10"}).inversion.steps == 30


@pytest.mark.parametrize(("method", "source"), [("nayer", "noisy"), ("fast", "meta"), ("cmi", "fresh")])
def test_ddad_makes_its_batches_like_the_method_whose_source_and_settings_it_has(method: str, source: str) -> None:
    built = build(method)
    inversion = dataclasses.replace(built.config.inversion, source=source)
    config = dataclasses.replace(built.config, method="ddad", inversion=inversion)
    other = Machine(config, Runtime(config), methods.METHODS["ddad"].turns(config), roles.teacher(config))
    assert [play_round(built, index) for index in range(2)] == [play_round(other, index) for index in range(2)]


def with_file(path: Path, classes: int = 10) -> Tensor:
    over = {"method": "nayer", "classes": classes, "generator": {"embeddings": str(path)}}
    return embeddings(resolve.resolve("digits", None, over))


def test_embeddings_are_a_function_of_the_seed_or_come_from_a_file(tmp_path: Path) -> None:
    one, again, other = (
        embeddings(resolve.resolve("digits", None, {"method": "nayer", "seed": seed})) for seed in (0, 0, 1)
    )
    assert one.shape == (10, SIZE) and torch.equal(one, again) and not torch.equal(one, other)
    values = torch.randn(10, 6, dtype=torch.float64)
    torch.save(values, tmp_path / "plain.pt")
    torch.save({"embeddings": values, "names": ["a"]}, tmp_path / "named.pt")
    save_file({"x": values}, tmp_path / "values.safetensors")
    for name in ("plain.pt", "named.pt", "values.safetensors"):
        assert torch.equal(with_file(tmp_path / name), values.float())
    made = maker({"generator": {"embeddings": str(tmp_path / "plain.pt")}})
    assert made.batch.start.shape == (20, 6)


def test_a_run_records_the_file_of_its_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    over = {"method": "nayer", "teacher": {"checkpoint": "untrained"}, "generator": {"embeddings": str(path)}}
    config = resolve.resolve("digits", None, over)
    torch.save(torch.randn(10, 6), path)
    (tmp_path / "run").mkdir()
    folder.open_run(tmp_path / "run", config)
    torch.save(torch.randn(10, 6), path)
    with pytest.raises(UserError, match=r"\(generator.embeddings\) is not the file this run began with"):
        folder.open_run(tmp_path / "run", config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.randn(9, 4), r"holds \[9, 4\], expected numbers \[10, E\], a row for each class"),
        (torch.randn(10), r"holds \[10\], expected"),
        (torch.ones(10, 4, dtype=torch.long), "holds strided int64 on cpu, expected strided floating-point"),
        (torch.full((10, 4), float("nan")), "holds values that are NaN or infinite"),
        (torch.ones(10, 4), "holds the same row for two classes"),
        ({"a": torch.randn(10, 4), "b": torch.randn(10, 4)}, "holds 2 tensors, expected one"),
        ([1, 2], "holds 0 tensors, expected one"),
    ],
)
def test_a_file_of_other_content_is_refused_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "e.pt")
    with pytest.raises(UserError, match=message) as error:
        with_file(tmp_path / "e.pt")
    assert "\n" not in str(error.value) and "generator.embeddings=" in str(error.value)


@pytest.mark.parametrize(
    ("method", "over", "message"),
    [
        ("ddad", {"generator": {"embeddings": "e.pt"}}, "embeddings=e.pt: method=ddad draws latents, not class "),
        ("fast", {"generator": {"embeddings": "e.pt"}}, "embeddings=e.pt: method=fast has no class embeddings"),
        ("fast", {"generator": {"class_distance": 4.0}}, "class_distance=4: method=fast draws latents without centres"),
        ("ddad", {"generator": {"class_distance": 4.0}}, "class_distance=4: method=ddad has weights.target=0, so no i"),
        ("nayer", {"inversion": {"source": "meta"}}, "source=meta: method=nayer has a source of its own: set null"),
        (
            "dfad",
            {"inversion": {"source": "noisy"}},
            "source=noisy: method=dfad makes no batch by many steps: set",
        ),
        ("kd", {"inversion": {"source": "noisy"}}, "source=noisy: method=kd generates no images: set null"),
        ("cmi", {"generator": {"restart": 3}}, "restart=3: method=cmi has no generator that lasts: set 0"),
        ("nayer", {"inversion": {"latent_lr": 0.1}}, "latent_lr=0.1: method=nayer has no latents that learn: set null"),
        (
            "deepinversion",
            {"inversion": {"latent_lr": 0.1}},
            "method=deepinversion has no latents that learn: set null",
        ),
        ("cmi", {"weights": {"contrastive": [[0, 0.0], [3, 0.8]]}}, "expected values above 0, or 0 in all rounds"),
        ("nayer", {"student": {"schedule": "multistep"}}, "expected fractions of the run, for student.schedule=multi"),
        ("nayer", {"generator_steps": 2}, "generator_steps=2: method=nayer has no generator for the whole run: set 1"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(method: str, over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(method, over=over)
