"""FSDP2: a trained network, its gradients and its optimiser's state in shards, one on each process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from harness.config import Config, Optimizer, ever
from harness.distributed.collectives import from_first, total
from harness.distributed.engines import build_optimizer, skips, total_norm, under, update, whole
from harness.errors import UserError, one_line
from harness.methods.terms import weight_changes, weights_of


class ShardedEngine:
    """Engine over shards. The bare network gathers its weights by itself wherever it is called."""

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, dtype: torch.dtype, settings: Optimizer, micro_batches: int
    ) -> None:
        self.module, self.settings, self.micro_batches = shard(accelerator, module, dtype), settings, micro_batches
        self.frozen_forward: Callable[[Tensor], Tensor] = self.module
        self.parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        # Over this process's shards alone, as plain tensors: torch's own hook for skipping an update on the device
        # (`found_inf`) does not mix with DTensors.
        self._shards = [nn.Parameter(_shard_of(parameter)) for parameter in self.parameters]
        self.optimizer = build_optimizer(self._shards, settings)
        self._parts_done = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward."""
        output: Tensor = self.module(inputs)
        return output

    def backward(self, loss: Tensor) -> bool:
        """Adds the gradients of a micro-batch's share of the loss; True where the batch is complete.

        Gradients of all but the last micro-batch stay on this process, whole.
        """
        self._parts_done = (self._parts_done + 1) % self.micro_batches
        complete = self._parts_done == 0
        if self.micro_batches > 1:
            assert isinstance(self.module, FSDPModule)
            self.module.set_requires_gradient_sync(complete)
            loss = loss / self.micro_batches
        loss.backward()
        return complete

    def step(self, learning_rate: float, ended: Tensor) -> Tensor:
        """One update, unless `ended` is 1 or the gradient is not finite; returns the norm over all shards."""
        for part, parameter in zip(self._shards, self.parameters, strict=True):
            part.data = _shard_of(parameter)  # FSDP may have moved it when the network first ran
            part.grad = None if parameter.grad is None else _shard_of(parameter.grad)
            parameter.grad = None
        norm = total(total_norm(self._shards).square()).sqrt()
        if self.settings.clip > 0:
            nn.utils.clip_grads_with_norm_(self._shards, self.settings.clip, norm)
        update(self.optimizer, learning_rate, skips(ended, norm))
        return norm

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, unsharded, on the CPU; the same on every process."""
        return {name: whole(_gathered(value)) for name, value in self.module.state_dict().items()}

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state as "PARAMETER/STATE", likewise."""
        return {
            f"{name}/{key}": whole(value if value.dim() == 0 else _gathered(_joined(value, parameter)))
            for name, parameter, part in self._named()
            for key, value in self.optimizer.state.get(part, {}).items()
            if isinstance(value, Tensor)  # SGD without momentum leaves None
        }

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Takes over what `weights` and `moments` of any engine gave."""
        own = self.module.state_dict()
        self.module.load_state_dict({name: _cut(value, own.get(name)) for name, value in weights.items()})
        for name, parameter, part in self._named():
            if state := under(moments, f"{name}/"):
                self.optimizer.state[part] = {key: self._moment(value, parameter) for key, value in state.items()}

    def _moment(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """This process's part of a moment, or all of Adam's step counter, which has no axis."""
        return value.to(parameter.device) if value.dim() == 0 else _shard_of(_cut(value, parameter)).clone()

    def _named(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """(name, parameter, this process's shard) of everything that learns, in one order on all processes."""
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for parameter, part in zip(self.parameters, self._shards, strict=True):
            yield names[parameter], parameter, part


def shard(accelerator: Accelerator, module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network, its parameters in shards on the processes' devices; UserError where FSDP cannot shard it.

    It is gathered block by block and given up again after each, so that one block is whole at a time, with the
    parameters outside of blocks. Every process has to call it at the same time, and to send a gradient back through
    its output where it asks for any: that is what gathers a block again.
    """
    # FSDP takes contiguous parameters only, and moves a block's to the device as it shards it. Accelerate adds autocast
    # where the precision asks for it, as it does for the other engines.
    module = module.to(dtype).to(memory_format=torch.contiguous_format)
    module = accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    try:
        for part in [*_blocks(module), module]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"distributed.strategy=fsdp cannot shard {type(module).__name__} ({one_line(error)}): "
            "set distributed.strategy=ddp"
        ) from None
    return module


def check_weights(config: Config) -> None:
    """Raises UserError unless in every round the generator's loss depends on a sharded teacher's logits.

    Then gradients pass through all of its blocks; one that they enter from its middle would not be gathered.
    """
    weights = config.weights
    if ever(weights.contrastive):
        raise UserError(
            f"distributed.shard_teacher=true cannot have weights.contrastive={weights.contrastive}, a loss over the "
            "teacher's features alone: set one of the two to false, or to 0"
        )
    if config.generator.warmup and not _over_logits(config, -1):
        raise UserError(
            f"distributed.shard_teacher=true needs a loss over the teacher's logits, generator.warmup="
            f"{config.generator.warmup} has none: set weights.one_hot or weights.class_balance above 0, or "
            "generator.warmup=0"
        )
    for start in weight_changes(config):
        if not _over_logits(config, math.ceil(start)):
            raise UserError(
                f"distributed.shard_teacher=true needs a loss over the teacher's logits, from round {start:g} there is "
                "none: set weights.adversarial, weights.one_hot or weights.class_balance above 0"
            )


def _over_logits(config: Config, round_index: int) -> bool:
    """Whether a term over the teacher's logits counts in a round."""
    weights = weights_of(config, round_index)
    return any(weights[name] for name in ("adversarial", "one_hot", "class_balance", "sample_entropy", "target"))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered by itself: children that have layers of their own; single layers go with the whole.

    Finer shards would be more and smaller messages, coarser ones more memory.
    """
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):  # may be iterated over, and never called
            yield from _blocks(child)
        elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child


def _shard_of(value: Tensor) -> Tensor:
    """What of a sharded tensor is on this process, sharing its memory."""
    assert isinstance(value, DTensor)
    with torch.no_grad():
        return value.to_local()


def _joined(part: Tensor, like: Tensor) -> DTensor:
    """The tensor that is sharded as `like` is and of which this process holds `part`."""
    assert isinstance(like, DTensor)
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def _cut(value: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor that all processes hold, sharded as `like` is; as it was where `like` is not sharded."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _gathered(value: Tensor) -> Tensor:
    """A tensor of the state as a whole: of a sharded one all parts, of a buffer what rank 0 has."""
    return value.full_tensor() if isinstance(value, DTensor) else from_first(value)
