"""Replay: a bounded pool of generated batches with the teacher's logits, for later student turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness import task as tasks
from harness.algorithm.latents import mix, send, shard
from harness.algorithm.turns import Answer
from harness.config import Config, image_shape
from harness.distributed.runtime import Runtime
from harness.errors import UserError

MIN_BATCHES = 4
"""A pool of fewer batches gets a warning."""

PREFIX = "pool/"
"""Prefix of the names of its tensors in a checkpoint."""


class Pool:
    """The last generated batches: stored images and the teacher's logits.

    Batches are numbered by round and turn; batch n is in slot n modulo the capacity. Row i of a drawn batch comes from
    row i of a slot that is drawn from (seed, round, turn, i). So each process holds only its own rows, and the result
    does not depend on the number of processes.
    """

    def __init__(self, config: Config, runtime: Runtime, fresh: Sequence[int]) -> None:
        """`fresh`: the turns of a round whose batches are stored. Raises UserError if no batch fits the memory."""
        self.config, self.runtime, self.fresh = config, runtime, fresh
        self._kinds = _kinds(config, runtime.dtype)
        row = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self._kinds.values())
        self.batch_bytes = row * config.batch_size
        limit = config.replay.memory
        self.capacity = int(limit * 2**20 // self.batch_bytes)
        if not self.capacity:
            raise UserError(
                f"replay.memory={limit:g}: a batch of {config.batch_size} takes {self.batch_bytes / 2**20:.3g} MiB: "
                "set it to several times that" + (", or replay.share=0" if config.replay.share else "")
            )
        self.doubts: list[str] = []
        if self.capacity < MIN_BATCHES:
            wanted = MIN_BATCHES * math.ceil(self.batch_bytes / 2**20)
            self.doubts.append(
                f"replay.memory={limit:g}: the pool holds {self.capacity} batches of {config.batch_size}, so that "
                f"replayed images are the newest ones again: set it to {wanted} or more"
            )
        size = config.batch_size // config.micro_batches
        own = shard(size, runtime.rank, runtime.world_size)
        self._rows = [part * size + row for part in range(config.micro_batches) for row in own]
        self._columns = [range(part * len(own), (part + 1) * len(own)) for part in range(config.micro_batches)]
        device = runtime.device if config.replay.place == "device" else torch.device("cpu")
        self.filled = 0
        self._held = {
            name: torch.zeros(self.capacity, len(self._rows), *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in self._kinds.items()
        }

    def keep(self, round_index: int, turn_index: int, part: int, x: Tensor) -> Tensor:
        """Stores images [b, C, H, W] of a fresh turn; returns them after the round trip through the storage format."""
        stored = _pack(x, self.config.replay.storage)
        self._put(round_index, turn_index, part, stored)
        return _unpack(stored, x.dtype)

    def answered(self, round_index: int, turn_index: int, part: int, t: Answer) -> None:
        """Stores the teacher's logits for them."""
        self._put(round_index, turn_index, part, {"logits": t.logits})

    def draw(self, round_index: int, turn_index: int, part: int, use: str = "replay") -> tuple[Tensor, Answer]:
        """Images [b, C, H, W] and stored logits for a replayed turn; each `use` has draws of its own."""
        available = min(self._number(round_index, turn_index), self.capacity)
        source = torch.Generator().manual_seed(mix(self.config.seed, use, round_index, turn_index))
        drawn = torch.randint(available, (self.config.batch_size,), generator=source)
        columns = torch.tensor(self._columns[part])
        slots = drawn[torch.tensor(self._rows)[columns]]
        if self.config.replay.place == "device":
            slots, columns = send(slots, self.runtime.device), send(columns, self.runtime.device)
        found = {name: held[slots, columns].to(self.runtime.device) for name, held in self._held.items()}
        return _unpack(found, self.runtime.dtype), Answer(found["logits"])

    def sample(self, count: int, *keys: int | str) -> Tensor:
        """Images [count, C, H, W] of all processes, drawn with the keys as seed; all processes must call this."""
        source = torch.Generator().manual_seed(mix(self.config.seed, *keys))
        sizes = self.filled, self.config.batch_size
        slots, rows = (torch.randint(size, (count,), generator=source).tolist() for size in sizes)
        columns = {row: column for column, row in enumerate(self._rows)}
        own = [index for index, row in enumerate(rows) if row in columns]
        chosen = torch.tensor([slots[index] for index in own]), torch.tensor([columns[rows[index]] for index in own])
        held = {name: value[chosen[0].long(), chosen[1].long()].cpu() for name, value in self._held.items()}
        x = torch.empty(count, *image_shape(self.config), dtype=self.runtime.dtype)
        for indices, part in self.runtime.gather((own, held)):
            x[indices] = _unpack(part, self.runtime.dtype)
        return x.to(self.runtime.device)

    def tensors(self, done: int, turn_index: int = 0) -> dict[str, Tensor]:
        """The rows of all processes, for a checkpoint after `done` rounds and so many turns; all must call this."""
        filled = min(self._number(done, turn_index), self.capacity)
        parts = self.runtime.gather((self._rows, {name: held[:filled].cpu() for name, held in self._held.items()}))
        whole: dict[str, Tensor] = {}
        for name, (shape, dtype) in self._kinds.items():
            whole[PREFIX + name] = torch.empty(filled, self.config.batch_size, *shape, dtype=dtype)
            for rows, held in parts:
                whole[PREFIX + name][:, rows] = held[name]
        return whole

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads the result of `tensors`; the number of processes may differ."""
        for name, held in self._held.items():
            whole = tensors[PREFIX + name]
            self.filled = len(whole)
            held[: len(whole)] = whole[:, self._rows].to(held.device)

    def _number(self, round_index: int, turn_index: int) -> int:
        """Number of batches stored before a turn."""
        return round_index * len(self.fresh) + sum(turn < turn_index for turn in self.fresh)

    def _put(self, round_index: int, turn_index: int, part: int, values: Mapping[str, Tensor]) -> None:
        slot, columns = self._number(round_index, turn_index) % self.capacity, self._columns[part]
        self.filled = max(self.filled, slot + 1)
        for name, value in values.items():
            self._held[name][slot, columns.start : columns.stop] = value.to(self._held[name])


def images(tensors: Mapping[str, Tensor]) -> Tensor:
    """All images of a pool as a checkpoint holds it, [n, C, H, W] in fp32; `tensors` by name without PREFIX."""
    return _unpack(tensors, torch.float32).float().flatten(0, 1)


def _kinds(config: Config, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """(shape, dtype) of each tensor of a row, by name."""
    channels, height, width = image_shape(config)
    answer = {"logits": (tasks.load(config.task).answer_shape(config.classes, height, width), dtype)}
    if config.replay.storage == "fp16":
        return {"images": ((channels, height, width), torch.float16), **answer}
    range_of_channel = ((channels, 1, 1), dtype)
    images = ((channels, height, width), torch.uint8)
    return {"images": images, "low": range_of_channel, "step": range_of_channel, **answer}


def _pack(x: Tensor, storage: str) -> dict[str, Tensor]:
    """Encodes images [b, C, H, W]: as fp16, or as 256 steps between the extremes of each channel of an image."""
    if storage == "fp16":
        return {"images": x.half()}
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    step = (high - low) / 255
    levels = ((x - low) / torch.where(step > 0, step, 1)).round()
    return {"images": levels.to(torch.uint8), "low": low, "step": step}


def _unpack(stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Decodes the result of `_pack`."""
    if "low" not in stored:
        return stored["images"].to(dtype)
    return stored["low"] + stored["step"] * stored["images"].to(dtype)
