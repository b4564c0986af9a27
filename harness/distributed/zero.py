"""DeepSpeed: moments, gradients and weights sharded over the processes (ZeRO), a stage for each network.

One Accelerator holds a named plugin a network, and every network has a DeepSpeed engine of its own. bf16 is autocast
over fp32 weights, as under the other strategies, so that checkpoints go from one to another unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs, convert_outputs_to_fp32
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.nn import functional as F

from harness.config import Config, Optimizer
from harness.distributed.engines import ReplicatedEngine, skips, total_norm, under, whole
from harness.distributed.processes import launched_world_size
from harness.errors import UserError
from harness.networks.layers import UNCAST

BUCKET = 2**24
"""Numbers reduced at a time. DeepSpeed allocates a buffer of this size for each network: by default 2 GB."""

PERSISTENT = 100_000
"""Under stage 3, parameters of fewer numbers stay whole on every process; DeepSpeed's default."""


def accelerator(config: Config) -> Accelerator:
    """The Accelerator through which DeepSpeed runs; joins the processes. UserError for what DeepSpeed cannot do."""
    _check(config)
    gpu = torch.cuda.is_available()
    if not gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is first imported
        _skip_shared_memory_op()
    world_size = launched_world_size()
    if "LOCAL_RANK" not in os.environ:
        _init_single_process("nccl" if gpu else "gloo")
    timeout = timedelta(seconds=config.distributed.timeout)
    with _own_environment():
        built = Accelerator(
            deepspeed_plugins={name: _plugin(config, name, world_size) for name in ("student", "generator")},
            gradient_accumulation_steps=config.micro_batches,
            kwargs_handlers=[InitProcessGroupKwargs(backend=None if gpu else "gloo", timeout=timeout)],
        )
    _set_reduction_timeout(timeout)
    return built


def autocast(module: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """The network itself; in bf16 its forward runs in autocast and answers in fp32."""
    if precision == "bf16":
        setattr(module, UNCAST, module.forward)
        forward = torch.autocast(device.type, torch.bfloat16)(module.forward)
        module.forward = convert_outputs_to_fp32(forward)
    return module


class ZeroEngine(ReplicatedEngine):
    """DeepSpeed's engine: Engine. Stage 0 shards nothing, 1 moments, 2 gradients too, 3 weights too.

    From stage 1 on the torch optimiser inside holds flat tensors, this process's part of all parameters in fp32.
    """

    def __init__(
        self, accelerator: Accelerator, name: str, module: nn.Module, settings: Optimizer, micro_batches: int
    ) -> None:
        """`name` is the player's, and chooses the stage. UserError where a parameter has no axis."""
        self.trained = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
        if scalar := next((key for key, parameter in module.named_parameters() if parameter.dim() == 0), None):
            raise UserError(
                f"{name}.network: its parameter {scalar!r} is of shape [], which DeepSpeed does not take: "
                "make it of shape [1], or set distributed.strategy=ddp"
            )
        accelerator.state.select_deepspeed_plugin(name)
        self.stage = int(accelerator.state.deepspeed_plugin.zero_stage)
        module.to(memory_format=torch.contiguous_format)  # DeepSpeed takes parameters for flat arrays
        super().__init__(accelerator, module, settings, micro_batches)
        accelerator.deepspeed_engine_wrapped = None  # it drives one engine only, and would warn of the second

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward."""
        output: Tensor = self._wrapped(inputs)
        return output

    def backward(self, loss: Tensor) -> bool:
        """Adds the gradients of a micro-batch's share of the loss; True where the batch is complete."""
        self._wrapped.backward(loss)  # which divides it by the number of micro-batches
        complete: bool = self._wrapped.is_gradient_accumulation_boundary()
        if not complete:
            self._wrapped.step()  # no update: this is how it counts
        return complete

    def step(self, learning_rate: float, ended: Tensor) -> Tensor:
        """One update, clipped as the plugin says, unless `ended` is 1 or the gradient is not finite; returns its norm.

        From stage 1 on DeepSpeed computes the norm itself, and skips the update where the norm is not finite.
        """
        norm = total_norm(self.parameters) if self.stage == 0 else None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # At every stage the update itself is still torch's fused one, which reads torch.amp's hook.
        self.optimizer.found_inf = ended if norm is None else skips(ended, norm)  # type: ignore[attr-defined]
        self._wrapped.step()
        if norm is None:
            norm = torch.as_tensor(self._wrapped.get_global_grad_norm(), dtype=torch.float32, device=ended.device)
        return norm

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, unsharded, on the CPU; every process has to ask."""
        with self._gathered():
            return super().weights()

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state as "PARAMETER/STATE", likewise."""
        if self.stage == 0:
            return super().moments()
        from deepspeed.utils import safe_get_full_optimizer_state

        states = {key: value for flat in self._flats() for key, value in self.optimizer.state[flat].items()}
        with self._requiring_grad():
            return {
                f"{name}/{key}": whole(safe_get_full_optimizer_state(parameter, key) if value.dim() else value.clone())
                for name, parameter in self.trained.items()
                for key, value in states.items()
                if isinstance(value, Tensor)  # SGD without momentum leaves None
            }

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Takes over what `weights` and `moments` of any engine gave."""
        if self.stage == 0:
            super().load(weights, moments)
            return
        with self._gathered(change=True):
            self.module.load_state_dict(weights)
        self._prime(moments)
        with self._requiring_grad():
            for name, parameter in self.trained.items():
                self._fill(parameter, weights[name], None)
                for key, value in under(moments, f"{name}/").items():
                    if value.dim():
                        self._fill(parameter, value, key)

    def _prime(self, moments: Mapping[str, Tensor]) -> None:
        """Before its first update the optimiser has no state: makes room for the moments, and takes over scalars."""
        states = {key.rpartition("/")[2]: value for key, value in moments.items()}
        for flat in self._flats():
            state = self.optimizer.state[flat]
            for key, value in states.items():
                if value.dim() == 0:  # Adam's step counter, one for each parameter and the same in all of them
                    state[key] = value.to(flat.device, copy=True)
                elif key not in state:
                    state[key] = torch.zeros_like(flat)
        if states and self.stage < 3:
            self._wrapped.optimizer._lazy_init_hp_params_optimizer_state()  # its own step would do it afterwards

    def _fill(self, parameter: nn.Parameter, value: Tensor, state: str | None) -> None:
        """Writes this process's part of a parameter's fp32 weights, or of its state of that name."""
        from deepspeed import utils

        value = value.to(parameter.device)
        if self.stage < 3:
            if state is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, state)
            return
        # The accessors of full values refuse a parameter that does not divide evenly: it is padded with zeros here.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = F.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
        part = padded[dist.get_rank() * size :][:size]
        if state is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, state)

    def _flats(self) -> list[Tensor]:
        """What the torch optimiser holds instead of parameters; stage 3 hands it over only for the update."""
        inner = self._wrapped.optimizer
        flats: list[Tensor] = (
            inner.single_partition_of_fp32_groups if self.stage < 3 else inner.fp32_partitioned_groups_flat
        )
        return flats

    @contextmanager
    def _gathered(self, change: bool = False) -> Iterator[None]:
        """Inside, the weights are whole on every process; with `change`, what rank 0 makes of them is kept."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(self.module.parameters()), modifier_rank=0 if change else None):
            yield

    @contextmanager
    def _requiring_grad(self) -> Iterator[None]:
        """Inside, parameters require gradients: DeepSpeed reads and writes the state of no others."""
        before = {parameter: parameter.requires_grad for parameter in self.trained.values()}
        for parameter in before:
            parameter.requires_grad = True
        try:
            yield
        finally:
            for parameter, learning in before.items():
                parameter.requires_grad = learning


def _check(config: Config) -> None:
    """UserError for what DeepSpeed cannot do here."""
    if missing := [name for name in ("deepspeed", "transformers") if find_spec(name) is None]:
        names = " ".join(missing)  # Accelerate asks for the second
        raise UserError(f"distributed.strategy=deepspeed needs {names}, which cannot be found: pip install {names}")
    if config.precision == "fp64":
        raise UserError(
            "precision=fp64: DeepSpeed keeps weights and moments in fp32: "
            "set precision=fp32, or distributed.strategy=ddp"
        )
    if config.distributed.zero.offload and not torch.cuda.is_available():
        raise UserError(
            "distributed.zero.offload=true moves state from a GPU to the host's memory, and there is no GPU here: "
            "set distributed.zero.offload=false"
        )


@contextmanager
def _own_environment() -> Iterator[None]:
    """Inside, Accelerate finds neither variable, and what it sets there goes no further.

    The first turns DeepSpeed off; the second would turn it on in every later Accelerator of the process.
    """
    names = ("ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def _skip_shared_memory_op() -> None:
    """On a CPU, DeepSpeed would compile an all-reduce through shared memory, which only its inference calls."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def _init_single_process(backend: str) -> None:
    """Without a launcher: a process group of one and a local rank, which DeepSpeed cannot do without."""
    import deepspeed

    os.environ["LOCAL_RANK"] = "0"
    if not dist.is_initialized():
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)


def _set_reduction_timeout(timeout: timedelta) -> None:
    """Creates DeepSpeed's own process group with this timeout; DeepSpeed would take half an hour."""
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = dist.new_group(timeout=timeout)


def _plugin(config: Config, name: str, world_size: int) -> DeepSpeedPlugin:
    """What DeepSpeed is to do with the player of that name."""
    settings: Optimizer = getattr(config, name)
    # Over one process there is nothing to shard, and weights stay whole for whoever reads them.
    stage = min(getattr(config.distributed.zero, name), 3 if world_size > 1 else 2)
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": PERSISTENT,
    }
    if config.distributed.zero.offload and stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    described = {
        "train_micro_batch_size_per_gpu": max(1, config.batch_size // config.micro_batches // world_size),  # reports
        "gradient_accumulation_steps": config.micro_batches,
        "gradient_clipping": settings.clip,
        "zero_optimization": zero,
        "log_level": "error",  # it logs to standard output
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would have to be compiled; torch's fused one is as good
    }
    return DeepSpeedPlugin(hf_ds_config=described, zero3_init_flag=False)
