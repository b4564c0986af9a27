"""Reads checkpoint files as weights only, whatever they are wrapped in, and loads them into networks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from harness import errors
from harness.errors import UserError
from harness.networks import layers

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the weights, beside the optimiser's state and the like."""

STEPS_SEEN = "num_batches_tracked"
"""Batch norm's counter: no forward pass in eval mode needs it, and checkpoints of PyTorch 0.4 and before have none."""


def load(module: nn.Module, path: Path, name: str) -> None:
    """Loads a checkpoint's weights, of any floating-point type, into `module`; `name` stands for it in messages.

    Takes .pt, .pth, .th (never executing what they hold) and .safetensors; unwraps `WRAPPERS`, and takes off prefixes
    that all keys share (`module.`, `_orig_mod.`, `model.` and the like) where the rest then fits.
    Raises UserError where the file cannot be read or does not fit; `module` is then unchanged.
    """
    expected: dict[str, Tensor] = module.state_dict()
    found = _without_prefix(_tensors(_read(path), path), expected)
    missing = [key for key in expected if key not in found and not key.endswith(STEPS_SEEN)]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        lacks = f"it lacks {_first(missing)}" if missing else ""
        more = f"it has {_first(unexpected)} that the network does not know" if unexpected else ""
        raise UserError(f"{path} does not fit {name}: {'; '.join(part for part in (lacks, more) if part)}")
    wrong = [key for key in found if found[key].shape != expected[key].shape]
    if wrong:
        raise UserError(_shape_message(module, path, name, wrong, found, expected))
    module.load_state_dict(found, strict=False)  # all but batch norm's counters was checked above


def _read(path: Path) -> object:
    """The content of a checkpoint file, on the CPU."""
    if path.suffix not in (".pt", ".pth", ".th", ".safetensors"):
        raise UserError(f"{path}: expected a checkpoint file .pt, .pth, .th or .safetensors")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # what it warns of is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers answer damage with errors of every kind
        text = str(error)
        names = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text)
        program = f"a pickle that would run {names[1]} when read" if names else "a TorchScript program"
        if names or "TorchScript" in text:
            advice = "whoever trusts it can save its weights anew with torch.save(network.state_dict(), FILE)"
            raise UserError(f"{path} is refused: it is {program}, not weights alone; {advice}") from None
        # torch wraps its reason in advice to read the file unsafely
        reason = re.sub(r"(?s).*WeightsUnpickler error:|Check the documentation.*", "", text)
        said = errors.one_line(reason) or "it ends too soon"
        raise UserError(f"{path} is damaged, or not a checkpoint: {type(error).__name__}: {said}") from None


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The weights by name, out of whatever they are wrapped in."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, expected weights by name (a state_dict)")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = _first([str(key) for key in content]) if content else "nothing"
        raise UserError(f"{path} holds no weights: it has {keys}; expected a state_dict, alone or under {WRAPPERS}")
    return tensors


def _without_prefix(tensors: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """`tensors` without the shared prefixes whose removal makes the most names fit."""
    candidates = [tensors]
    while True:
        names = list(candidates[-1])
        prefix = names[0].partition(".")[0] + "."
        if not all(name.startswith(prefix) and len(name) > len(prefix) for name in names):
            return max(candidates, key=lambda candidate: sum(name in expected for name in candidate))
        candidates.append({name.removeprefix(prefix): tensor for name, tensor in candidates[-1].items()})


def _first(keys: list[str]) -> str:
    """`3 keys ('a', 'b', ...)`."""
    shown = ", ".join(repr(key) for key in keys[:2]) + (", ..." if len(keys) > 2 else "")
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''} ({shown})"


def _shape_message(
    module: nn.Module, path: Path, name: str, wrong: list[str], found: dict[str, Tensor], expected: dict[str, Tensor]
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
