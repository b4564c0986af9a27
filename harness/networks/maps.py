"""Layers at which the student's terms compare student and teacher, and outputs of these layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from harness.algorithm.turns import Answer
from harness.config import PRUNED, Config, ever, image_shape
from harness.errors import UserError
from harness.networks import layers
from harness.networks.layers import evaluating, observe_maps, pass_with_hooks

Size = tuple[int, int]


@dataclass(frozen=True)
class Compared:
    """Layers of a network whose outputs the student's terms compare with those of the other network."""

    maps: Sequence[nn.Module] = ()
    """Layers for attention transfer and hints."""
    blocks: Sequence[nn.Module] = ()
    """Blocks that are compared value by value."""


NOTHING = Compared()

MIN_POSITIONS = 2
"""Least positions of a batch for each channel of a student's layer; with so many, layers that have nothing in common
have hints of 1/2 already instead of 1."""


def compared(
    config: Config, teacher: nn.Module, student: nn.Module, inherited: Mapping[str, list[int]] = MappingProxyType({})
) -> tuple[Compared, Compared]:
    """The layers that the student's terms compare, of the teacher and of the student, pair by pair.

    `inherited`: by the path of a stage with fewer blocks, the teacher's block for each of the student's. Raises
    UserError if a term has a weight and the two networks have no layers that it can compare.
    """
    given = [name for name, weight in config.student.comparisons.items() if ever(weight)]
    if not given:
        return NOTHING, NOTHING
    of_maps = next((name for name in ("attention", "hints") if name in given), None)
    maps = shared(config, teacher, student, of_maps) if of_maps else ((), ())
    blocks = shared_blocks(config, teacher, student, inherited) if "features" in given else ((), ())
    return Compared(maps[0], blocks[0]), Compared(maps[1], blocks[1])


def answer(network: Callable[[Tensor], Tensor], x: Tensor, compared: Compared) -> Answer:
    """The network's logits for images x [B, C, H, W], with the outputs of the layers that are compared."""
    chosen = [*compared.maps, *compared.blocks]
    if not chosen:
        return Answer(network(x))
    with observe_maps(chosen) as found:
        logits = network(x)
    found = [output.to(logits.dtype) for output in found]  # they are bf16 in autocast, too coarse for sums
    return Answer(logits, maps=found[: len(compared.maps)], blocks=found[len(compared.maps) :])


def shared(
    config: Config, teacher: nn.Module, student: nn.Module, field: str
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Layers of the teacher, and one for each of the student whose output has the same height and width.

    Raises UserError, which names the `field` of the term, if the two have no size in common.
    """
    x = torch.zeros(2, *image_shape(config))
    own, other = (last_by_size(network, x, config.classes) for network in (student, teacher))
    sizes = [size for size in other if size in own]
    if not sizes:
        raise _nothing_shared(config, field, "size of feature maps")
    return [other[size] for size in sizes], [own[size] for size in sizes]


def shared_blocks(
    config: Config, teacher: nn.Module, student: nn.Module, inherited: Mapping[str, list[int]] = MappingProxyType({})
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Blocks of the teacher, and those of the student of the same stage and shape of output, in order.

    A block is a numbered part, such as `layer2.0`, that has layers of its own; those of one parent are a stage. Raises
    UserError if no blocks match.
    """
    x = torch.zeros(2, *image_shape(config))
    own, other = block_shapes(student, x), block_shapes(teacher, x)
    theirs, names = _stages(other), dict[str, str]()
    for stage, blocks in _stages(own).items():
        among = theirs.get(stage, [])
        kept = None
        if config.student.network == PRUNED:
            kept = [among.index(name) for name in blocks]
        elif stage in inherited:  # by the numbers of all its parts, also of those that are no blocks
            kept = [among.index(f"{stage}.{inherited[stage][int(name.rpartition('.')[2])]}") for name in blocks]
        pairs = zip(blocks, _corresponding(blocks, among, kept), strict=True)
        names |= {name: partner for name, partner in pairs if partner is not None and own[name] == other[partner]}
    if not names:
        raise _nothing_shared(config, "features", "block of equal stage and shape")
    return [teacher.get_submodule(name) for name in names.values()], [student.get_submodule(name) for name in names]


def _stages(blocks: Iterable[str]) -> dict[str, list[str]]:
    """The names of blocks by their stage, in order."""
    found: dict[str, list[str]] = {}
    for name in blocks:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _corresponding(own: list[str], theirs: list[str], kept: list[int] | None) -> list[str | None]:
    """The teacher's block with which each block of a student's stage is compared, or None.

    `kept`: which of the teacher's blocks the student's are. Each does the work of the teacher's blocks up to the next
    kept one, and is compared with the last of these; new blocks do even shares of it.
    """
    if kept is not None:
        ends = [*kept[1:], len(theirs)]
    else:
        ends = [(index + 1) * len(theirs) // len(own) for index in range(len(own))]
    return [theirs[end - 1] if end > before else None for before, end in zip([0, *ends], ends, strict=False)]


def block_shapes(module: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of each block's output for images x, without the batch, by the block's name."""
    found: dict[str, tuple[int, ...]] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                found[name] = tuple(output.shape[1:])

        return note

    blocks = [
        (name, layer)
        for name, layer in module.named_modules()
        if name.rpartition(".")[2].isdigit() and any(True for _ in layer.children())
    ]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in blocks]
    pass_with_hooks(module, x, handles)
    return found


def _nothing_shared(config: Config, path: str, what: str) -> UserError:
    return UserError(
        f"student.{path}={getattr(config.student, path)}: teacher.network={config.teacher.network!r} and "
        f"student.network={config.student.network!r} have no {what} in common: set student.{path}=0"
    )


def doubt(config: Config, student: nn.Module, compared: Compared) -> list[str]:
    """A line where hints can tell little: a student's layer has nearly as many channels as a batch has positions."""
    if not ever(config.student.hints):
        return []
    with evaluating([student]), observe_maps(compared.maps) as found:
        student(torch.zeros(2, *image_shape(config)))
    size = config.batch_size // config.micro_batches
    for _, channels, height, width in (output.shape for output in found):
        count = size * height * width
        if count < MIN_POSITIONS * channels:
            line = (
                f"student.hints: a layer of the student has {channels} channels, and {size} images have only {count} "
                f"positions of {height}x{width}, so that it nearly determines the teacher's whatever it is: a larger "
                "batch_size tells more"
            )
            return [line]
    return []


def last_by_size(module: nn.Module, x: Tensor, classes: int | None = None) -> dict[Size, nn.Module]:
    """The last layer with an output of each (height, width) above 1x1, in the order in which the sizes occur.

    Blocks count as layers. Not counted: the head, modules that contain it, layers after it, layers called repeatedly.
    `classes` as for `layers.head`.
    """
    head = layers.head_name(module, classes)
    found: dict[Size, list[nn.Module]] = {}
    calls: dict[nn.Module, int] = {}

    def hook(layer: nn.Module, inputs: object, output: object) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        if isinstance(output, Tensor) and output.dim() == 4 and not calls.get(module.get_submodule(head)):
            height, width = output.shape[2:]
            found.setdefault((height, width), []).append(layer)

    handles = [layer.register_forward_hook(hook) for name, layer in module.named_modules() if not _holds(name, head)]
    handles.append(module.get_submodule(head).register_forward_hook(hook))
    pass_with_hooks(module, x, handles)
    once = {size: [layer for layer in found[size] if calls[layer] == 1] for size in found if max(size) > 1}
    return {size: outputs[-1] for size, outputs in once.items() if outputs}


def _holds(name: str, head: str) -> bool:
    """Whether the module of that name is the head or contains it."""
    return not name or name == head or head.startswith(f"{name}.")
