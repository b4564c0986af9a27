"""The processes a run is spread over: device, rank, world size, and what they do to networks and sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch import distributed as dist

from harness.algorithm.turns import Reduce, unreduced
from harness.config import Config, Optimizer
from harness.distributed import processes, speed, system, zero
from harness.distributed.batch_norm import synchronise
from harness.distributed.collectives import loss_sum, total
from harness.distributed.engines import Engine, ReplicatedEngine
from harness.distributed.requests import Requests
from harness.distributed.status import Status
from harness.errors import Lost, UserError

Value = TypeVar("Value")


class Runtime:
    """This process among those of the run. `close` resets the switches of torch that `speed` asked for."""

    def __init__(self, config: Config) -> None:
        """Joins the processes that a launcher started; UserError where they are not those that were asked for."""
        self.config = config
        launched = processes.launched_world_size()
        processes.check(config, launched)
        self._zero = config.distributed.strategy == "deepspeed"
        # Accelerate keeps one process-wide state and refuses another precision: a second run starts afresh.
        AcceleratorState._reset_state(True)
        self.accelerator = zero.accelerator(config) if self._zero else processes.accelerator(config)
        self.device: torch.device = self.accelerator.device
        """Where this process computes."""
        self.rank = int(self.accelerator.process_index)
        """Index of this process; 0 writes files."""
        self.world_size = int(self.accelerator.num_processes)
        """Number of processes W."""
        if self.world_size != launched:
            raise UserError(
                f"the launcher started {launched} processes, Accelerate found {self.world_size}: "
                "start them with torchrun, or as docs/distributed.md says"
            )
        self.close = speed.switch(config, self.device, self.world_size)
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.requests = Requests(self.world_size)
        self.reduce: Reduce = unreduced if self.world_size == 1 else self._reduce
        """Sums [N] over all processes, differentiably; `requests` travel with them."""
        several, timeout = self.world_size > 1, config.distributed.timeout
        self.status = Status(self.rank, self.world_size, timeout) if several else None

    def prepare_frozen(self, module: nn.Module) -> nn.Module:
        """A network that is not trained, frozen, on this process's device."""
        arranged = self.arrange(module.requires_grad_(False).eval())
        if self._zero:
            return zero.autocast(arranged, self.device, self.config.precision)
        prepared: nn.Module = self.accelerator.prepare_model(arranged, evaluation_mode=True)
        return prepared

    @property
    def shards_teacher(self) -> bool:
        """Whether the frozen teacher is spread over the processes."""
        return self.config.distributed.shard_teacher and self.world_size > 1

    def prepare_teacher(self, module: nn.Module, judges: bool) -> nn.Module:
        """The teacher for training: as by `prepare_frozen`, or in shards, which all processes have to call together.

        `judges`: whether a generator's gradients flow through it.
        """
        if not self.shards_teacher:
            return self.prepare_frozen(module)
        from harness.distributed import fsdp

        if judges:
            fsdp.check_weights(self.config)
        return fsdp.shard(self.accelerator, module.requires_grad_(False).eval(), self.dtype)

    def arrange(self, module: nn.Module) -> nn.Module:
        """A network on this process's device, in the run's precision and the memory format convolutions are fast in."""
        arranged: nn.Module = module.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        return arranged

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

    def _reduce(self, sums: Tensor) -> Tensor:
        counts = self.requests.counts(sums)
        summed = loss_sum(torch.cat([sums, counts]))
        self.requests.receive(summed[-len(counts) :].detach())
        return summed[: -len(counts)]

    def total(self, values: Tensor) -> Tensor:
        """A tensor summed over all processes, without gradients."""
        return values if self.world_size == 1 else total(values)

    def gather(self, value: Value) -> list[Value]:
        """What every process hands in, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], Value]) -> Value:
        """What `work` returns on this process; a UserError that it raises on any process is raised on all of them."""
        value, mistake = _result_or_mistake(work)
        for rank, found in enumerate(self.gather(mistake)):
            if found:
                raise UserError(found if rank == 0 else f"rank {rank}: {found}")
        return value  # type: ignore[return-value]  # it is there where no mistake is

    def first(self, work: Callable[[], Value]) -> Value:
        """Does `work` on rank 0 alone and returns its result on all processes; a UserError is raised on all of them.

        The others wait for as long as rank 0 works, also beyond `distributed.timeout`.
        """
        value, mistake = self._broadcast(lambda: _result_or_mistake(work))
        if mistake:
            raise UserError(mistake)
        return value  # type: ignore[return-value]  # as above

    def on_first(self, work: Callable[[], Value]) -> Value | None:
        """Does `work` on rank 0 alone, as `first`; returns its result there and None on the others."""
        values: list[Value] = []
        self.first(lambda: values.append(work()))
        return values[0] if values else None

    def _broadcast(self, work: Callable[[], Value]) -> Value:
        """What `work` returns on rank 0, on all processes."""
        if self.status is None:
            return work()
        box: list[Any] = [None]
        if self.rank == 0:
            with self.status.working():
                box = [work()]
        else:
            self.status.wait()
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[no-any-return]

    def system(self) -> dict[str, float]:
        """The load of every node under MLflow's names: "system/NAME" of the only one, else "system/node<k>/NAME"."""
        node = system.node()
        samples = dict(filter(None, self.gather(None if node is None else (node, system.sample()))))
        prefixes = {k: f"system/node{k}/" if len(samples) > 1 else "system/" for k in samples}
        return {prefixes[k] + name: value for k, found in samples.items() for name, value in found.items()}

    def begin_round(self, round_index: int) -> None:
        """Reports to the other processes that this one begins a round."""
        if self.status:
            self.status.begin_round(round_index)

    def cause(self, error: Exception) -> Exception:
        """The exception to end with where `error` was raised: Lost where another process caused it."""
        culprit = self.status.end(error) if self.status else None
        if culprit is None:
            return error
        return Lost(f"{culprit}; the last checkpoint is kept: the same command goes on from there")


def leave() -> None:
    """The end of a run that went well: waits for the others and closes the connection to them."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _result_or_mistake(work: Callable[[], Value]) -> tuple[Value | None, str | None]:
    """(what `work` returns, None), or (None, the message of its UserError)."""
    try:
        return work(), None
    except UserError as error:
        return None, str(error)
