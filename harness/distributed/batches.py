"""The engine of a batch of images that is made by many steps: what belongs to an image stays on its process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from harness.config import Optimizer
from harness.distributed.collectives import total
from harness.distributed.engines import build_optimizer, like, skips, step, total_norm, under, update, whole


class BatchEngine:
    """Engine of a batch: parameters `own` of this process's images, if they learn, and those that all images share.

    Loss sums hand back W times the gradient (`collectives`). That of a shared parameter is the mean over the W
    processes; that of an image's own parameters is complete on its process, and is divided by W.

    `lasting` holds the modules that keep their state from batch to batch; a checkpoint contains only these. `head` is
    trained in every step. `life` is the part of `generator` with which the next batch continues. `start` holds the
    weights with which a `generator` that begins anew in each batch begins; they are updated once a batch, by the sum of
    the gradients of all its steps (first-order MAML, arXiv 1703.03400).
    """

    def __init__(
        self, module: nn.Module, own: nn.Parameter, settings: Optimizer, latent_lr: float | None, world_size: int,
        lasting: nn.ModuleDict, generator: nn.Module | None,
    ) -> None:  # fmt: skip
        self.module, self.settings, self.latent_lr = module, settings, latent_lr
        self.own = [own] if own.requires_grad else []
        self.world_size, self.lasting = world_size, lasting
        self.frozen_forward: Callable[[Tensor], Tensor] = module
        self.shared = list(generator.parameters()) if generator else []
        self._head, self._start = (
            list(lasting[name].parameters()) if name in lasting else [] for name in ("head", "start")
        )
        self._kept = [build_optimizer(part, settings) if part else None for part in (self._head, self._start)]
        self._ended = self._own_square = torch.zeros((), device=own.device)
        self.begin()

    def begin(self) -> None:
        """A new batch: its optimiser knows nothing of the one before."""
        groups = [{"params": part} for part in (self.own, self.shared) if part]
        self.optimizer = build_optimizer(groups, self.settings)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward."""
        output: Tensor = self.module(inputs)
        return output

    def backward(self, loss: Tensor) -> bool:
        """The gradients of a step; every step is complete."""
        loss.backward()
        self._own_square = torch.zeros_like(self._own_square)
        for own in self.own:
            assert own.grad is not None
            if self.world_size > 1:
                own.grad.div_(self.world_size)
            self._own_square = own.grad.square().sum()
        if self.world_size > 1:
            grads = [parameter.grad for parameter in (*self.shared, *self._head) if parameter.grad is not None]
            sums = total(torch.cat([self._own_square.view(1), *(grad.flatten() for grad in grads)]))
            self._own_square, means = sums[0], sums[1:] / self.world_size
            for grad, mean in zip(grads, means.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
        for start, parameter in zip(self._start, self.shared, strict=False):  # where nothing lasts there is no start
            assert parameter.grad is not None
            start.grad = parameter.grad.clone() if start.grad is None else start.grad.add_(parameter.grad)
        return True

    def step(self, learning_rate: float, ended: Tensor) -> Tensor:
        """One update, unless `ended` is 1 or the gradient is not finite; returns the norm over all images as well."""
        learning = (*self.shared, *self._head)
        norm = (self._own_square + total_norm(learning).square()).sqrt()
        if self.settings.clip > 0:
            nn.utils.clip_grads_with_norm_((*self.own, *learning), self.settings.clip, norm)
        self._ended = skips(ended, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.latent_lr is not None:
            self.optimizer.param_groups[0]["lr"] = self.latent_lr
        step(self.optimizer, self._ended)
        if self._kept[0]:
            update(self._kept[0], learning_rate, self._ended)
        return norm

    def finish(self, learning_rate: float) -> None:
        """The batch is made: what the next one starts from learns."""
        if self._kept[1]:
            update(self._kept[1], learning_rate, self._ended)

    def weights(self) -> dict[str, Tensor]:
        """What lasts, by name, on the CPU: the same on every process."""
        return {name: whole(value) for name, value in self.lasting.state_dict().items()}

    def moments(self) -> dict[str, Tensor]:
        """The state of its optimisers as "PARAMETER/STATE", likewise."""
        return {
            f"{name}/{key}": whole(value)
            for name, parameter in self.lasting.named_parameters()
            for optimizer in filter(None, self._kept)
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Takes over what `weights` and `moments` gave; what an unfinished batch has added is dropped."""
        self.lasting.load_state_dict(weights)
        for optimizer in filter(None, self._kept):
            optimizer.state.clear()
            optimizer.zero_grad()
        parts = dict(zip((*self._head, *self._start), self._optimizers(), strict=True))
        for name, parameter in self.lasting.named_parameters():
            if state := under(moments, f"{name}/"):
                parts[parameter].state[parameter] = {key: like(parameter, value) for key, value in state.items()}

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """That of each parameter of the head and of the start."""
        pairs = zip(self._kept, (self._head, self._start), strict=True)
        return [optimizer for optimizer, part in pairs if optimizer for _ in part]
