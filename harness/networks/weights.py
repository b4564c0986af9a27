"""Loads checkpoints into networks: finds the weights that fit, and refuses invalid values."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness import errors
from harness.errors import UserError
from harness.networks import checkpoints, layers
from harness.networks.checkpoints import first

USUAL = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the weights, beside the optimiser's state, other networks and averages."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that torch's own wrappers add, at any level: data parallel, compiled, sharded, checkpointed."""

STEPS_SEEN = "num_batches_tracked"
"""Batch norm's counter: no forward pass in eval mode needs it, and checkpoints of PyTorch 0.4 and before have none."""

PROFILED = ("total_ops", "total_params")
"""Buffers that the profiler thop leaves in every layer."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types whose values are the weights themselves; those of 8 bits and fewer need a scale."""


@dataclass(frozen=True)
class Candidate:
    """The tensors of one mapping in a file whose names begin alike: weights that may be the network's."""

    path: str
    """The keys that lead to the mapping and the beginning of the names, with dots; "." for the file's top."""
    tensors: dict[str, Tensor]
    """By the network's names; an unknown name is as in the file, without the prefix."""
    left_out: list[str]
    """Names in the mapping that begin otherwise, or that a profiler left."""
    usual: bool
    """Whether it is a mapping as a whole, to which `USUAL` keys alone lead."""
    missing: list[str]
    """Names of the network that it lacks."""
    unknown: list[str]
    """Its names that the network does not know."""

    @property
    def depth(self) -> int:
        """Parts of `path`."""
        return len(self.path.split(".")) if self.path != "." else 0


def serialise(module: nn.Module) -> bytes:
    """All parameters and buffers by name, as safetensors; tensors that share memory are stored once for each name."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()})


def load(
    module: nn.Module,
    path: Path,
    name: str,
    entry: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    option: str = "teacher.entry=",
) -> None:
    """Loads a checkpoint's weights, of any floating-point type, into `module`; `name` stands for it in messages.

    Of the weights in the file, those are taken that fit the network by names and shapes, without the prefixes of
    wrappers. Where several fit, the `USUAL` one is taken, else none. `entry`, the dotted path that `option` sets,
    chooses among them. `say` gets a line about the weights that were taken if the file has others, and about
    those left out. Raises UserError if the file cannot be read, does not fit, or holds invalid values; `module` is then
    unchanged.
    """
    expected: dict[str, Tensor] = module.state_dict()
    found = _candidates(checkpoints.read(path), expected)
    if entry is not None:
        found = _within(entry, found, path, option)
    found = _distinct(found)
    fitting = [each for each in found if not (each.missing or each.unknown or _wrong_shapes(each, expected))]
    if not fitting:
        raise UserError(_misfit(module, path, name, found, expected, option))
    chosen = _choose(fitting, path, name, option)
    others = [each.path for each in fitting if each is not chosen]
    if not chosen.usual or chosen.left_out or others:
        say(_account(chosen, others, path, option))
    for key, value in chosen.tensors.items():
        if wrong := problem(key, value, expected[key]):
            raise UserError(f"{path} is refused: {key} {wrong}")
    for names in _shared(module):
        given = [key for key in names if key in chosen.tensors]
        if any(not torch.equal(chosen.tensors[key], chosen.tensors[given[0]]) for key in given):
            raise UserError(
                f"{path} is refused: {' and '.join(given)} are one tensor in {name}, but have other values there"
            )
    if _unused(chosen.tensors):
        say(f"{path}: the batch-norm statistics are those of new layers, mean 0 and variance 1: was it trained?")
    module.load_state_dict(chosen.tensors, strict=False)  # all but batch norm's counters was checked above


def _shared(module: nn.Module) -> list[list[str]]:
    """The names of each parameter or buffer that a network has under several."""
    names: dict[int, list[str]] = defaultdict(list)
    for kind in (module.named_parameters, module.named_buffers):
        for key, tensor in kind(remove_duplicate=False):
            names[id(tensor)].append(key)
    return [each for each in names.values() if len(each) > 1]


def _candidates(entries: checkpoints.Entries, expected: Mapping[str, Tensor]) -> list[Candidate]:
    """Of every mapping: all its names, and those behind each prefix that leads to half of the network's or more.

    The usual ones come first, then those nearer to the top.
    """
    plain = {_plain(key): key for key in expected}
    if len(plain) < len(expected):  # the network itself tells names apart by a wrapper's
        plain = {}

    def known(rest: str) -> str | None:
        return rest if rest in expected else plain.get(_plain(rest))

    required = {key for key in expected if not key.endswith(STEPS_SEEN)}
    found: list[Candidate] = []
    for keys, tensors in entries.items():
        leads: dict[str, set[str]] = defaultdict(set)
        for name in tensors:
            cuts = [0, *(match.end() for match in re.finditer(r"\.", name))]
            for cut in cuts:
                if (key := known(name[cut:])) in required:
                    leads[name[:cut]].add(str(key))
        prefixes = ["", *(prefix for prefix, led in leads.items() if prefix and 2 * len(led) >= len(required))]
        here = {prefix: _candidate(keys, tensors, prefix, known, expected) for prefix in prefixes}
        whole = [prefix for prefix, each in here.items() if not each.missing and not each.unknown]
        found += here.values()
        for prefix in prefixes:  # the names in front of which others stand that are whole, such as an average's
            if aside := tuple(other for other in whole if other != prefix and other.startswith(prefix)):
                each = _candidate(keys, tensors, prefix, known, expected, aside)
                found += [each] if not each.missing and not each.unknown else []
    return sorted(found, key=lambda each: (not each.usual, each.depth))


def _candidate(
    keys: tuple[str, ...],
    tensors: Mapping[str, Tensor],
    prefix: str,
    known: Callable[[str], str | None],
    expected: Mapping[str, Tensor],
    aside: tuple[str, ...] = (),
) -> Candidate:
    """The tensors of a mapping whose names begin with `prefix`, and with none of `aside`.

    `known` gives the network's name for the rest of one.
    """
    inside = {name: name[len(prefix) :] for name in tensors if name.startswith(prefix) and not name.startswith(aside)}
    outside = len(tensors) - len(inside)
    inside = {name: rest for name, rest in inside.items() if known(rest) or rest.rpartition(".")[2] not in PROFILED}
    taken: dict[str, Tensor] = {}
    unknown = []
    for name, rest in sorted(inside.items(), key=lambda pair: pair[1] not in expected):  # a name as it is goes first
        key = known(rest)
        if key is None or key in taken:
            unknown.append(_plain(rest) if key is None else rest)
        else:
            taken[key] = tensors[name]
    path = ".".join(part for part in (*keys, prefix.removesuffix(".")) if part)
    return Candidate(
        path="".join(letter if letter.isprintable() else "?" for letter in path) or ".",
        tensors=taken,
        left_out=[name for name in tensors if name not in inside],
        usual=set(keys) <= set(USUAL) and not outside,
        missing=[key for key in expected if key not in taken and not key.endswith(STEPS_SEEN)],
        unknown=unknown,
    )


def _plain(name: str) -> str:
    """A name without what torch's wrappers added to it, at any level."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """The first of those that hold the same tensors, as one with a wrapper's prefix and one without do."""
    kept: dict[tuple[bool, frozenset[int]], Candidate] = {}
    for each in found:
        kept.setdefault((bool(each.unknown), frozenset(map(id, each.tensors.values()))), each)
    return list(kept.values())


def _within(entry: str, found: list[Candidate], path: Path, option: str) -> list[Candidate]:
    """The candidates at or under a dotted path."""
    within = [each for each in found if f"{each.path}.".startswith(f"{entry}.")]
    if not within:
        known = errors.nearest(entry, {each.path for each in found if each.tensors} or {found[0].path})
        raise UserError(f"{option}{entry}: {path} has no such weights{known}")
    return within


def _choose(fitting: list[Candidate], path: Path, name: str, option: str) -> Candidate:
    """The one that fits; of several the usual one that is nearest to the top; UserError where that is not one."""
    usual = [each for each in fitting if each.usual and each.depth == fitting[0].depth]
    if len(fitting) == 1 or len(usual) == 1:
        return fitting[0]
    paths = _options([each.path for each in fitting], option)
    raise UserError(f"{path} holds several weights that fit {name}: choose with {paths}")


def _account(chosen: Candidate, others: list[str], path: Path, option: str) -> str:
    """One line about which weights of a file were taken."""
    line = f"{path}: took the weights " + ("at its top" if chosen.path == "." else f"under {chosen.path!r}")
    if chosen.left_out:
        line += f", left out {first(chosen.left_out)}"
    return line + (f"; others that fit: {_options(others, option)}" if others else "")


def _options(paths: list[str], option: str) -> str:
    """`teacher.entry=a or teacher.entry=b`."""
    return " or ".join(f"{option}{path}" for path in paths[:4]) + (" or ..." if len(paths) > 4 else "")


def problem(key: str, value: Tensor, own: Tensor) -> str | None:
    """What is wrong with a tensor for the network's `own` one of the same shape, and what to do; None: nothing."""
    if value.is_meta:
        return "has no values, it was saved on the device meta: save the weights of a network that has its own"
    if value.layout != torch.strided:
        return "is sparse: save it as tensor.to_dense()"
    if value.is_quantized or (own.is_floating_point() and value.dtype not in FLOATS):
        kind = "integers" if not (value.dtype.is_floating_point or value.dtype.is_complex) else "numbers"
        return (
            f"holds {kind} of type {_type(value)} without their scale, the network has {_type(own)}: "
            "give the floating-point weights from before it was quantised"
        )
    converted = value.to(own.dtype)
    if not own.is_floating_point():
        averaged = key.endswith(STEPS_SEEN) and bool(value.isfinite().all())
        same = averaged or torch.equal(converted.to(value.dtype), value)
        return None if same else f"holds {_type(value)} values that are not {_type(own)}: save it as the network has it"
    # A mask may hold infinities, but then the network has the same ones.
    bad = int((~converted.isfinite() & (converted != own)).sum())
    if bad:
        where = f"{bad} of its {value.numel()} values" if value.numel() > 1 else "its value"
        return f"is NaN or infinite in {where}: give a checkpoint from before the training diverged"
    if key.rpartition(".")[2] == "running_var" and bool((converted < 0).any()):
        return f"has a variance below 0 ({converted.min():.3g}): the weights are damaged or changed, get them again"
    return None


def _unused(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are batch-norm statistics, and all are as a layer begins."""
    means, variances = (
        [value for key, value in tensors.items() if key.rpartition(".")[2] == kind]
        for kind in ("running_mean", "running_var")
    )
    return bool(means) and not any(map(torch.any, means)) and all(bool((value == 1).all()) for value in variances)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _wrong_shapes(candidate: Candidate, expected: Mapping[str, Tensor]) -> list[str]:
    return [key for key, value in candidate.tensors.items() if value.shape != expected[key].shape]


def _misfit(
    module: nn.Module, path: Path, name: str, found: list[Candidate], expected: Mapping[str, Tensor], option: str
) -> str:
    """One line about why the weights that come nearest do not fit, and what else the file holds."""
    part = re.search(r"-(\d+)-of-(\d+)$", path.stem)
    if part and int(part[2]) > 1:
        return f"{path} is one of {int(part[2])} shards of a checkpoint: give the file ending in .index.json beside it"
    best = max(found, key=lambda each: len(each.tensors))
    if any(key.rpartition(".")[2] == "zero_point" for key in best.unknown):
        return f"{path} is of a quantised network: give the floating-point weights from before it was quantised"
    wrong = _wrong_shapes(best, expected)
    if best.missing or best.unknown:
        lacks = f"it lacks {first(best.missing)}" if best.missing else ""
        more = f"it has {first(best.unknown)} that the network does not know" if best.unknown else ""
        line = f"{path} does not fit {name}: {'; '.join(part for part in (lacks, more) if part)}"
    else:
        line = _shape_message(module, path, name, wrong, best.tensors, expected)
    others = [each.path for each in found if each is not best and each.tensors]
    return line + (f"; this is {best.path!r}, others: {_options(others, option)}" if others else "")


def _shape_message(
    module: nn.Module,
    path: Path,
    name: str,
    wrong: list[str],
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> str:
    """One line about weights of another shape; another number of classes is named as such."""
    last, key = layers.head_name(module), wrong[0]
    theirs, ours = list(found[key].shape), list(expected[key].shape)
    axis = 1 if isinstance(layers.head(module), nn.ConvTranspose2d) and key.endswith("weight") else 0
    only_head = all(other.rpartition(".")[0] == last for other in wrong)
    if only_head and theirs[:axis] + theirs[axis + 1 :] == ours[:axis] + ours[axis + 1 :]:
        problem = f"the checkpoint has {theirs[axis]} classes, classes={ours[axis]}"
        return f"{path} does not fit {name}: {problem}: set classes={theirs[axis]} or give another checkpoint"
    others = f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
    return f"{path} does not fit {name}: {key} is {theirs} in the file, {ours} in the network{others}"
