"""A student cut out of its teacher: what is kept, that it answers as it should, and what cannot be pruned."""

from __future__ import annotations

import copy
import json
import math
from functools import partial

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from harness import task
from harness.errors import UserError
from harness.networks import build, channels, cutting, layers, pruning
from harness.networks.cutting import Structure


def network(name: str, where: str = "classification", seed: int = 0) -> nn.Module:
    """A network of the libraries in eval mode, whose batch norms have statistics and gains of their own."""
    torch.manual_seed(seed)
    return shaken(build.network(task.load(where), name, 5, 3))


def shaken(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for values, low, high in ((layer.running_mean, -0.2, 0.2), (layer.running_var, 0.5, 2.0)):
                assert values is not None
                values.uniform_(low, high)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.uniform_(-0.5, 0.5)
    return module.eval()


def images(size: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def pruned(module: nn.Module, structure: Structure) -> nn.Module:
    student = copy.deepcopy(module)
    cutting.cut(student, structure)
    return student


def plan(module: nn.Module, x: Tensor, **arguments: float) -> Structure:
    return pruning.plan(module, arguments, x, "net")


def test_two_layers_cut_by_hand() -> None:
    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)))
    conv, norm, linear = net[0], net[1], net[4]
    for values in (conv.weight, norm.weight, linear.weight.view(5, 4, 36).transpose(0, 1)):
        values.data[[0, 2]] *= 0.01  # what matters least
    structure = plan(net, images(8), channels=0.5)
    kept = [1, 3]
    inputs = [*range(36, 72), *range(108, 144)]
    assert structure == {
        "kept": {"0": {"out": kept}, "1": {"out": kept}, "4": {"in": inputs}},
        "dropped": [],
    }
    student, x = pruned(net, structure), images(8)
    y = F.conv2d(x, conv.weight[kept], conv.bias[kept])
    y = F.batch_norm(y, norm.running_mean[kept], norm.running_var[kept], norm.weight[kept], norm.bias[kept])
    assert torch.equal(student(x), F.linear(y.relu().flatten(1), linear.weight[:, inputs], linear.bias))
    assert (student[0].out_channels, student[1].num_features, student[4].in_features) == (2, 2, 72)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    ("name", "where"),
    [("resnet20", "classification"), ("wrn16_2", "classification"), ("mobilenetv2", "classification"),
     ("unet8", "segmentation"), ("smp:DeepLabV3Plus/resnet18", "segmentation")],
)  # fmt: skip
def test_cut_is_what_torch_pruning_does(name: str, where: str) -> None:
    net, x = network(name, where), images(64 if "smp" in name else 32)
    groups = channels.find(net, x, name)
    other = copy.deepcopy(net).requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(other, (x,), lambda module, inputs: module(*inputs))
    for group in groups:
        layer = other.get_submodule(group.name)
        removed = sorted(set(range(group.size)) - group.kept(0.5))
        graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, removed).prune()
    student = pruned(net, channels.structure(net, groups, channels.even(0.5)))
    with torch.no_grad():
        assert torch.equal(student(x), other(x))
    torch.testing.assert_close(student.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "size"),
    [("torchvision:resnet18", 32), ("torchvision:mobilenet_v3_small", 32), ("timm:efficientnet_lite0", 32),
     ("torchvision:resnext50_32x4d", 32), ("torchvision:squeezenet1_1", 32)],
)  # fmt: skip
def test_what_is_removed_is_what_nobody_listens_to(name: str, size: int) -> None:
    net, x = network(name), images(size)
    structure = plan(net, x, channels=0.5)
    student = pruned(net, structure)
    with torch.no_grad():
        torch.testing.assert_close(student(x), cutting.masked(net, structure)(x), rtol=1e-4, atol=1e-4)
        assert student(x).shape == net(x).shape
    assert layers.num_parameters(student) < 0.6 * layers.num_parameters(net)


def test_the_residual_stream_and_the_logits_stay() -> None:
    net = network("resnet20")
    kept = plan(net, images(), channels=0.5)["kept"]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert {name: set(axes) for name, axes in kept.items()} == {
        f"{block}.{layer}": {axis}
        for block in blocks
        for layer, axis in (("conv1", "out"), ("bn1", "out"), ("conv2", "in"))
    }
    assert kept["layer1.0.conv1"]["out"] == kept["layer1.0.bn1"]["out"] == kept["layer1.0.conv2"]["in"]


class Odd(nn.Module):
    """Every layer that can be cut, none of them as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.instance = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)
        self.prelu, self.single = nn.PReLU(12), nn.PReLU()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 12).view(1, 12, 1, 1))
        self.grouped = nn.Conv2d(12, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(2, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.grouped_up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.single(self.prelu(self.instance(self.depthwise(self.stem(x))))) * self.gain
        x = self.up(self.norm(self.grouped(x)).relu())
        logits: Tensor = self.head(self.grouped_up(x).relu().mean((2, 3)))
        return logits


def test_every_kind_of_layer() -> None:
    torch.manual_seed(0)
    net, x = Odd().eval(), images(8)
    structure = plan(net, x, channels=0.5)
    kept = structure["kept"]
    assert kept["gain"] == {"1": kept["stem"]["out"]} and kept["depthwise"] == kept["prelu"] == kept["instance"]
    assert {name: {axis: len(indices) for axis, indices in axes.items()} for name, axes in kept.items()} == {
        "stem": {"out": 8}, "depthwise": {"out": 8}, "instance": {"out": 8}, "prelu": {"out": 8}, "gain": {"1": 8},
        "grouped": {"in": 8, "out": 8}, "norm": {"out": 8}, "up": {"in": 8, "out": 4}, "grouped_up": {"in": 4},
    }  # fmt: skip
    student, whole = pruned(net, structure), cutting.masked(net, structure)
    student.norm, whole.norm = nn.Identity(), nn.Identity()  # it sees how many channels there are
    with torch.no_grad():
        torch.testing.assert_close(student(x), whole(x), rtol=1e-5, atol=1e-6)
    student.train()(x).sum().backward()
    assert all(parameter.grad is not None for name, parameter in student.named_parameters())


class Gated(nn.Module):
    """Squeeze and excitation: two layers make what is multiplied channel by channel."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        gate = self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.last(y + gate if self.joined else y * gate).mean((2, 3))


def test_a_product_is_a_gate_and_a_sum_the_stream() -> None:
    kept = plan(Gated(joined=False).eval(), images(8), channels=0.5)["kept"]
    assert kept["first"]["out"] == kept["gate"]["out"] == kept["gate"]["in"] == kept["last"]["in"]
    with pytest.raises(UserError, match=r"^net cannot be pruned: it has no layer inside a block, .* student\.network$"):
        plan(Gated(joined=True).eval(), images(8), channels=0.5)


class Mixed(nn.Module):
    """A block that can be pruned behind one whose channels are shuffled, or looked at as a whole."""

    def __init__(self, how: str, sound: bool) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2 if how == "shuffled" else 1)
        last = [nn.Conv2d(8, 8, 1), nn.ReLU()] if sound else []
        self.body = nn.Sequential(*last)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        if self.how == "shuffled":
            y = y.view(len(y), 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
        elif self.how == "averaged":
            y = y - y.mean(1, keepdim=True)
        elif self.how == "cut off":
            y = y.detach()
        y = self.second(y).relu()
        return self.head(y.flip(1) if self.how == "flipped" else self.body(y)).mean((2, 3))


@pytest.mark.parametrize("how", ["averaged", "cut off", "shuffled"])
def test_what_the_tracer_misreads_stays_whole(how: str) -> None:
    torch.manual_seed(0)
    net = Mixed(how, sound=True).eval()
    kept = plan(net, images(12), channels=0.5)["kept"]
    assert set(kept) <= {"second", "body.0", "head"} and "body.0" in kept


def test_a_network_that_cannot_be_followed_is_refused_by_the_operation() -> None:
    torch.manual_seed(0)
    net = Mixed("flipped", sound=False)
    net.first = nn.Identity()
    net.second = nn.Conv2d(3, 8, 3)
    with pytest.raises(UserError) as caught:
        plan(net.eval(), images(8), channels=0.5)
    assert str(caught.value) == (
        "net cannot be pruned: the tracer does not follow its channels through FlipBackward0, ReluBackward0 "
        "(layer 'second': without these channels its other outputs change): name a smaller network as "
        "student.network"
    )


class Blind(nn.Module):
    """No gradient comes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.layers(x).mean((2, 3))
        return logits


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (
            Blind(),
            r"^net cannot be traced for pruning \(ValueError: its output has no gradient, as under torch",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "^net cannot be pruned: it has no layer inside a block, "),
    ],
    ids=["no gradient", "only a head"],
)
def test_what_has_nothing_to_prune_is_refused_in_one_line(net: nn.Module, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        plan(net.eval(), images(8), macs=0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["macs", "parameters"])
def test_the_share_is_the_largest_below_what_was_asked_for(what: str) -> None:
    net, x = network("resnet20"), images()

    def share(structure: Structure) -> float:
        student = pruned(net, structure)
        measure = {"macs": lambda module: layers.macs(module, x[:1]), "parameters": layers.num_parameters}[what]
        return measure(student) / measure(net)

    structure = plan(net, x, **{what: 0.4})
    groups = channels.find(net, x, "net")
    spread = {"macs": partial(channels.wider_where_smaller, groups), "parameters": channels.even}[what]
    steps = {share(channels.structure(net, groups, spread(step / 256))) for step in range(20, 120)}
    assert min(steps) < 0.4 < max(steps) and share(structure) == max(step for step in steps if step <= 0.4)
    assert structure == plan(net, x, **{what: 0.4})
    with pytest.raises(
        UserError, match=rf"^student\.arguments\.{what}=0\.01: .* 0\.0\d+ of the teacher's {what} remain"
    ):
        plan(net, x, **{what: 0.01})


def test_half_the_multiply_adds_leave_twice_the_share_where_the_side_is_half() -> None:
    net, x = network("resnet20"), images()
    kept = plan(net, x, macs=0.5)["kept"]
    counts = [{len(kept[f"layer{stage}.{block}.conv1"]["out"]) for block in range(3)} for stage in (1, 2, 3)]
    (first,), (second,), (third,) = counts
    assert 48 < third < 64
    assert (first, second) == pytest.approx((16 * third / 64 / 4, 32 * third / 64 / 2), abs=1)
    assert 0.45 < layers.macs(pruned(net, plan(net, x, macs=0.5)), x[:1]) / layers.macs(net, x[:1]) <= 0.5
    whole = pruned(net, plan(net, x, macs=0.999))
    assert layers.num_parameters(whole) > 0.98 * layers.num_parameters(net)


def test_a_segmentation_network_keeps_the_same_share_everywhere() -> None:
    net, x = network("unet16", "segmentation"), images(32)
    groups = channels.find(net, x, "net")
    assert len({group.side for group in groups}) > 1
    kept = plan(net, x, macs=0.5)["kept"]
    shares = [len(kept[group.name]["out"]) / group.size for group in groups]
    assert max(shares) - min(shares) < 1 / 8


def test_layers_of_one_side_keep_the_same_share() -> None:
    net, x = network("timm:vit_tiny_patch16_224"), images(224)
    groups = channels.find(net, x, "net")
    assert {group.side for group in groups} == {math.sqrt(197)}
    kept = plan(net, x, macs=0.8)["kept"]
    assert len({len(axes["out"]) for axes in kept.values() if "out" in axes}) == 1


def test_macs_are_those_of_the_formula() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(),
        nn.Linear(4 * 49, 5),
    )  # fmt: skip
    expected = 64 * 8 * 3 * 9 + 36 * 8 * 2 * 9 + 36 * 8 * 4 * 4 + 4 * 49 * 5
    assert layers.macs(net, images(8, 3)) == expected


@pytest.mark.parametrize(
    ("name", "where", "expected"),
    [
        ("resnet20", "classification", "layer1.0 layer1.1 layer1.2 layer2.1 layer2.2 layer3.1 layer3.2"),
        ("wrn16_2", "classification", "layer1.layer.1 layer2.layer.1 layer3.layer.1"),
        ("vgg11_bn", "classification", ""),
        ("torchvision:mobilenet_v3_small", "classification",
         "features.3 features.5 features.6 features.8 features.10 features.11"),
        ("timm:vit_tiny_patch16_224", "classification", " ".join(f"blocks.{number}" for number in range(12))),
        ("smp:Unet/resnet18", "segmentation",
         "encoder.layer1.0 encoder.layer1.1 encoder.layer2.1 encoder.layer3.1 encoder.layer4.1"),
    ],
)  # fmt: skip
def test_blocks_that_can_be_left_out(name: str, where: str, expected: str) -> None:
    size = 224 if "224" in name else 64
    assert pruning.droppable(network(name, where), images(size)) == expected.split()


def test_the_blocks_that_are_missed_least_go_first() -> None:
    net, x = network("resnet20"), images(count=4)
    for name, gain in (("layer1.1", 0.0), ("layer3.2", 1e-3), ("layer2.1", 1e-2)):
        norm = net.get_submodule(name).bn2
        norm.weight.data.mul_(gain), norm.bias.data.mul_(gain)
    assert plan(net, x, blocks=0.6) == {"kept": {}, "dropped": ["layer1.1", "layer2.1", "layer3.2"]}
    structure = plan(net, x, blocks=0.6, macs=0.5)
    student = pruned(net, structure)
    assert structure["dropped"] == ["layer1.1", "layer2.1", "layer3.2"] and "layer1.1.conv1" not in structure["kept"]
    assert 0.45 < layers.macs(student, x) / layers.macs(net, x) <= 0.5
    with pytest.raises(UserError, match=r"blocks=0\.5: net has 0 block\(s\) that can be left out"):
        plan(network("vgg11_bn"), x, blocks=0.5)


def test_the_shape_is_rebuilt_from_plain_data() -> None:
    net, x = network("resnet20"), images()
    structure = plan(net, x, macs=0.5, blocks=0.6)
    student = pruned(net, structure)
    rebuilt = network("resnet20", seed=1)
    cutting.cut(rebuilt, json.loads(json.dumps(structure)))
    rebuilt.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(x), student(x))


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ({"kept": {"layer9": {"out": [0]}}, "dropped": []}, "^layer 'layer9' does not fit the pruned structure: "),
        ({"kept": {"conv1": {"out": [0, 16]}}, "dropped": []}, "'conv1' .*axis 'out' has 16 channels"),
        ({"kept": {"conv1": {"out": [1, 0]}}, "dropped": []}, "'conv1' .*rising"),
        ({"kept": {"conv1": {"out": ["a"]}}, "dropped": []}, "^layer 'conv1' does not fit"),
        ({"kept": {}, "dropped": ["layer1.7"]}, "^block 'layer1.7' does not fit"),
        ({"kept": {}}, "^a pruned structure holds what is kept and what is dropped$"),
    ],
)
def test_a_structure_of_another_network(structure: Structure, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        cutting.cut(network("resnet20"), structure)
