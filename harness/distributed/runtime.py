"""The processes a run is spread over: device, rank, world size, and what they do to networks and sums."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch import distributed as dist

from harness.config import Config, Optimizer
from harness.distributed import speed, system, zero
from harness.distributed.batch_norm import synchronise
from harness.distributed.collectives import loss_sum
from harness.distributed.engines import Engine, ReplicatedEngine
from harness.distributed.roll import Roll
from harness.errors import Lost, UserError

Value = TypeVar("Value")

ROUNDS_BETWEEN_LOOKS = 10
"""On a GPU, rounds between two looks at whether a process wants to stop."""


class Runtime:
    """This process among those of the run."""

    def __init__(self, config: Config) -> None:
        """Joins the processes that a launcher started; UserError where they are not those that were asked for."""
        self.config = config
        _check(config, launched_world_size())
        self._zero = config.distributed.strategy == "deepspeed"
        # Accelerate keeps one process-wide state and refuses another precision: a second run starts afresh.
        AcceleratorState._reset_state(True)
        self.accelerator = zero.accelerator(config) if self._zero else _accelerator(config)
        if self.world_size != launched_world_size():
            raise UserError(
                f"the launcher started {launched_world_size()} processes, Accelerate found {self.world_size}: "
                "start them with torchrun, or as docs/distributed.md says"
            )
        speed.prepare(config, self.device, self.world_size)
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self._wish: str | None = None
        self._flag, self._asked = torch.zeros(()), 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """Index of this process; 0 writes files."""
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        """Number of processes W."""
        return int(self.accelerator.num_processes)

    @cached_property
    def roll(self) -> Roll | None:
        """Where the processes stand; None for a single one."""
        return Roll(self.rank, self.world_size) if self.world_size > 1 else None

    def place(self, module: nn.Module) -> nn.Module:
        """A network that is not trained, frozen, on this process's device."""
        arranged = self.arrange(module.requires_grad_(False).eval())
        if self._zero:
            return zero.autocast(arranged, self.device, self.config.precision)
        placed: nn.Module = self.accelerator.prepare_model(arranged, evaluation_mode=True)
        return placed

    @property
    def shards_teacher(self) -> bool:
        """Whether the frozen teacher is spread over the processes."""
        return self.config.distributed.shard_teacher and self.world_size > 1

    def place_teacher(self, module: nn.Module, judges: bool) -> nn.Module:
        """The teacher for training, as `place`, or in shards; these answer when all processes ask at once.

        `judges`: whether a generator's gradients flow through it.
        """
        if not self.shards_teacher:
            return self.place(module)
        from harness.distributed import fsdp

        if judges:
            fsdp.check_weights(self.config.weights)
        return fsdp.shard(self.accelerator, module.requires_grad_(False).eval(), self.dtype)

    def arrange(self, module: nn.Module) -> nn.Module:
        """A network on this process's device, in the run's precision and the memory format convolutions are fast in."""
        arranged: nn.Module = module.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        return arranged

    def seed(self, seed: int) -> None:
        """Starts torch's own draws anew, on the host and on this device.

        torch.manual_seed notes a call, with its stack, for each kind of device that is not in use: milliseconds a turn,
        and memory that grows.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def send(self, values: Tensor) -> Tensor:
        """A tensor of the host on the device; the host does not wait until it is there."""
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def engine(self, name: str, module: nn.Module, settings: Optimizer) -> Engine:
        """The engine of the network to be trained that is called `name`; every process has to ask for it."""
        if self.world_size > 1 and self.config.sync_batch_norm:
            synchronise(module)
        if self.config.distributed.strategy == "fsdp" and self.world_size > 1:
            from harness.distributed.fsdp import ShardedEngine

            return ShardedEngine(self.accelerator, module, self.dtype, settings, self.config.micro_batches)
        module = self.arrange(module)
        if self._zero:
            module = zero.autocast(module, self.device, self.config.precision)
            return zero.ZeroEngine(self.accelerator, name, module, settings, self.config.micro_batches)
        return ReplicatedEngine(self.accelerator, module, settings, self.config.micro_batches, self.compiled)

    def compiled(self, call: speed.Call) -> speed.Call:
        """A network, or a function of images, as `speed.compile` asks for it in the rounds."""
        return speed.compiled(call, self.config)

    def replica(self, module: nn.Module) -> nn.Module:
        """A network that every process holds whole and trains by itself (`batches.BatchEngine`)."""
        if self.world_size > 1 and self.config.sync_batch_norm:
            synchronise(module)
        return zero.autocast(self.arrange(module), self.device, self.config.precision)

    def reduce(self, sums: Tensor) -> Tensor:
        """Sums [N] over all processes, differentiably; with them goes whether any process wants to stop."""
        if self.world_size == 1:
            return sums
        flag = sums.new_full((1,), float(self._wish is not None))
        summed = loss_sum(torch.cat([sums, flag]))
        self._flag = summed[-1].detach()
        return summed[:-1]

    def stopping(self, wish: str | None) -> str | None:
        """After a round: why all processes stop here, or None. Of several, one's wish counts from the next round on."""
        if self.world_size == 1:
            return wish
        told, self._wish = self._wish, wish
        self._asked += 1
        if self._flag.is_cuda and self._asked % ROUNDS_BETWEEN_LOOKS:
            return None  # reading it waits for the device
        return next(filter(None, self.gather(told))) if self._flag else None

    def gather(self, value: Value) -> list[Value]:
        """What every process hands in, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], Value]) -> Value:
        """What `work` returns here; a mistake that any process finds in it is everyone's."""
        value, mistake = _attempt(work)
        for rank, found in enumerate(self.gather(mistake)):
            if found:
                raise UserError(found if rank == 0 else f"rank {rank}: {found}")
        return value  # type: ignore[return-value]  # it is there where no mistake is

    def first(self, work: Callable[[], Value]) -> Value:
        """What `work` returns on rank 0, where alone it is done; its mistake is everyone's too."""
        outcome = _attempt(work) if self.rank == 0 else (None, None)
        if self.world_size > 1:
            box = [outcome]
            dist.broadcast_object_list(box, src=0)
            outcome = box[0]
        value, mistake = outcome
        if mistake:
            raise UserError(mistake)
        return value  # type: ignore[return-value]  # as above

    def system(self) -> dict[str, float]:
        """What every node is doing, by "system/node<k>/NAME"."""
        node = system.node()
        samples = self.gather(None if node is None else (node, system.sample()))
        return {f"system/node{k}/{name}": value for k, found in filter(None, samples) for name, value in found.items()}

    def stand(self, round_index: int) -> None:
        """Notes where the others can see it that this process begins a round."""
        if self.roll:
            self.roll.stand(round_index)

    def blame(self, error: Exception) -> Exception:
        """The exception to end with where `error` came up: Lost where another process brought it about."""
        culprit = self.roll.last_words(error) if self.roll else None
        if culprit is None:
            return error
        return Lost(f"{culprit}; the last checkpoint is kept: the same command goes on from there")


def launched_world_size() -> int:
    """Processes that the launcher says it started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave() -> None:
    """The end of a run that went well: waits for the others and closes the connection to them."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _accelerator(config: Config) -> Accelerator:
    """The Accelerator of one process, or of DDP; joins the processes."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.distributed.timeout)),
            # Buffers are equal already. Without find_unused_parameters DDP changes the order of its sums after the
            # first backward, and a resumed run of 3 or more processes would not be equal to the bit.
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True),
        ],
    )


def _check(config: Config, found: int) -> None:
    """UserError unless `found` processes are what the configuration asks for."""
    wanted, least = config.distributed.world_size, config.distributed.min_world_size
    if wanted is not None and not (least or wanted) <= found <= wanted:
        asked = f"{wanted} processes" if least is None else f"{least} to {wanted} processes"
        raise UserError(
            f"distributed.world_size={wanted}: this run was asked for on {asked} and finds {found}: start it with a "
            "launcher, such as `ddad launch --nproc N`, or change distributed.world_size"
        )
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if found > 1 and config.distributed.strategy == "single":
        raise UserError(
            f"distributed.strategy=single runs on one process, the launcher started {found}: "
            "set distributed.strategy=ddp, or start ddad without a launcher"
        )
    if config.distributed.shard_teacher and config.distributed.strategy != "fsdp":
        raise UserError(
            f"distributed.shard_teacher=true needs distributed.strategy=fsdp, not {config.distributed.strategy}: "
            "set that, or distributed.shard_teacher=false"
        )
    if config.batch_size // config.micro_batches < found:
        raise UserError(
            f"batch_size={config.batch_size} in {config.micro_batches} micro-batch(es) leaves none for some of "
            f"{found} processes: set batch_size to at least {found * config.micro_batches}"
        )
    if found > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={found} without {', '.join(missing)} in the environment: start the processes with a launcher, "
            "such as `ddad launch --nproc N`, or unset WORLD_SIZE"
        )


def _attempt(work: Callable[[], Value]) -> tuple[Value | None, str | None]:
    try:
        return work(), None
    except UserError as error:
        return None, str(error)
