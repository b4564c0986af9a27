"""Atomic save and resume. One unsharded file: parameters, buffers and optimiser moments by parameter name.

round-00000240.safetensors
<player>/model/<parameter or buffer>
<player>/optimizer/<parameter>/<state>
metadata "state": JSON, what else a resumed run needs (round, updates, seconds so far ...)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from harness import files
from harness.errors import Diverged, UserError
from harness.players import Player


def store(folder: Path, players: Mapping[str, Player], state: Mapping[str, Any], keep: int) -> None:
    """Saves the state after `state["round"]` rounds, then drops all but the last `keep` checkpoints.

    Raises Diverged, saving nothing, where a weight is not finite; UserError where the disk is full.
    """
    tensors = {key: tensor for player in players.values() for key, tensor in _tensors(player).items()}
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Diverged(f"{key} is not finite")
    updates = {name: player.updates for name, player in players.items()}
    record = json.dumps({**state, "updates": updates}, sort_keys=True)
    files.write(folder / f"round-{state['round']:08d}.safetensors", save(tensors, {"state": record}))
    for old in _all(folder)[:-keep]:
        old.unlink()


def restore(folder: Path, players: Mapping[str, Player]) -> dict[str, Any] | None:
    """Puts the last checkpoint's content into the players and returns its state; None where there is none.

    Raises UserError where the file is damaged or holds other networks.
    """
    found = _all(folder)
    if not found:
        return None
    path = found[-1]
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}): delete it to resume from the one before, if there is one"
        ) from None
    for player in players.values():
        _load(player, tensors, path)
        player.updates = state["updates"][player.name]
    return state


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"))


def _tensors(player: Player) -> dict[str, Tensor]:
    """Everything a player needs to go on, by name."""
    tensors = {f"{player.name}/model/{key}": value for key, value in player.module.state_dict().items()}
    for name, parameter in player.module.named_parameters():
        for key, value in player.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # SGD without momentum leaves None
                tensors[f"{player.name}/optimizer/{name}/{key}"] = value
    return {key: value.detach().contiguous().cpu() for key, value in tensors.items()}


def _load(player: Player, tensors: Mapping[str, Tensor], path: Path) -> None:
    prefix = f"{player.name}/model/"
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    own = player.module.state_dict()
    wrong = sorted(weights.keys() ^ own.keys()) or [key for key in own if own[key].shape != weights[key].shape]
    if wrong:
        raise UserError(
            f"checkpoint {path} belongs to another {player.name}: it does not fit at {', '.join(wrong[:3])}; "
            "give another --output"
        )
    player.module.load_state_dict(weights)
    for name, parameter in player.module.named_parameters():
        start = f"{player.name}/optimizer/{name}/"
        state = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        if state:
            player.optimizer.state[parameter] = {key: _like(parameter, value) for key, value in state.items()}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment on its parameter's device and in its memory format: fused optimisers walk both as one flat array."""
    if value.shape != parameter.shape:  # Adam's step counter
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
