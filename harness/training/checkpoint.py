"""Atomic save and resume. One unsharded file: parameters, buffers and optimiser moments by parameter name.

round-00000240.safetensors                 after 240 rounds; round-00000240.turn-00003.safetensors: and 3 turns
<player>/model/<parameter or buffer>
<player>/optimizer/<parameter>/<state>
<player>/average/<parameter or buffer>     where a run averages weights
<other>/<name>                             where a run has more to keep than its players: `pool`, and `turns`, the
                                           losses of a round that is not over
metadata "state": JSON, what else a resumed run needs (round, turn, updates, seconds so far ...)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor

from harness import files
from harness.distributed.engines import under
from harness.errors import Diverged, UserError
from harness.training.players import Player

First = Callable[[Callable[[], Any]], Any]
"""first(work) does the work on rank 0 and returns its result on every process."""


def _call(work: Callable[[], Any]) -> Any:
    """`first` of a single process."""
    return work()


def store(
    folder: Path,
    players: Mapping[str, Player],
    state: Mapping[str, Any],
    keep: int,
    first: First = _call,
    others: Mapping[str, Tensor] = {},
) -> None:
    """Saves the state after `round` rounds and `turn` turns of the next, then drops all but the last `keep` files.

    `others`: what is to be kept beside the players, by full name. `first(work)` does the work on rank 0; every process
    has to call. Raises Diverged, saving nothing, where a weight is not finite; UserError where the disk is full.
    """
    tensors = {key: tensor for player in players.values() for key, tensor in _tensors(player).items()}
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Diverged(f"{key} is not finite")
    tensors = _apart(tensors | dict(others))
    updates = {name: player.updates for name, player in players.items()}
    record = json.dumps({**state, "updates": updates}, sort_keys=True)

    def write() -> None:
        files.write(
            folder / f"{_name(state['round'], state.get('turn', 0))}.safetensors", save(tensors, {"state": record})
        )
        for old in every(folder)[:-keep]:
            old.unlink()

    first(write)


def restore(
    folder: Path,
    players: Mapping[str, Player],
    first: First = _call,
    take: Callable[[Mapping[str, Tensor]], None] = lambda tensors: None,
) -> dict[str, Any] | None:
    """Puts the last checkpoint's content into the players and returns its state; None where there is none.

    `first` as in `store`: what rank 0 reads, all get. `take` is called with all tensors of the checkpoint, for what
    `store` was given as `others`. UserError where the file is damaged or holds other networks.
    """
    found: tuple[Path, dict[str, Any], dict[str, Tensor]] | None = first(lambda: _read(folder))
    if found is None:
        return None
    path, state, tensors = found
    for name, player in players.items():
        weights, own = under(tensors, f"{name}/model/"), player.engine.weights()
        wrong = sorted(weights.keys() ^ own.keys()) or [key for key in own if own[key].shape != weights[key].shape]
        if wrong:
            raise UserError(
                f"checkpoint {path} belongs to another {name}: it does not fit at {', '.join(wrong[:3])}; "
                "give another --output"
            )
        player.engine.load(weights, under(tensors, f"{name}/optimizer/"))
        if player.average:
            player.average.load(under(tensors, f"{name}/average/"))
        player.updates = state["updates"][name]
    take(tensors)
    return state


def every(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, oldest first."""
    return sorted(folder.glob("round-*.safetensors"))


def part(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of one file whose names begin with `prefix`, without it; UserError where the file is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dictionary
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}): delete it to use the one before") from None


def _read(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]] | None:
    found = every(folder)
    if not found:
        return None
    path = found[-1]
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
            state["round"], {**state["updates"]}  # they have to be there
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}): delete it to resume from the one before, if there is one"
        ) from None
    return path, state, tensors


def _name(done: int, turn: int) -> str:
    """The name of a checkpoint's file; by name they are in the order in which they were written."""
    return f"round-{done:08d}" + (f".turn-{turn:05d}" if turn else "")


def _tensors(player: Player) -> dict[str, Tensor]:
    """Everything a player needs to go on, by name."""
    weights = {f"{player.name}/model/{name}": value for name, value in player.engine.weights().items()}
    moments = {f"{player.name}/optimizer/{name}": value for name, value in player.engine.moments().items()}
    average = player.average.tensors() if player.average else {}
    return weights | moments | {f"{player.name}/average/{name}": value for name, value in average.items()}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own: safetensors refuses parameters that a network has under two names."""
    seen: set[int] = set()
    found = {}
    for key, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return found
