"""The processes that a launcher started: whether they are those that were asked for, and how they join."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from harness.config import Config
from harness.errors import UserError


def launched_world_size() -> int:
    """Processes that the launcher says it started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(config: Config, found: int) -> None:
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


def accelerator(config: Config) -> Accelerator:
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
