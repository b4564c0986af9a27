"""The frozen teacher as a function from images to answers, with what a method's terms need beside the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from harness.algorithm import moments
from harness.algorithm.terms import Answer
from harness.config import Config, ever
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.networks import layers


class Observed:
    """The frozen teacher as a function x -> Answer; it leaves no state behind."""

    def __init__(self, module: nn.Module, features: bool, moments: bool, layers: Sequence[nn.Module] = ()) -> None:
        """Which answers beside the logits are needed; `layers`: those whose outputs the student's terms compare."""
        self.module, self.features, self.moments, self.layers = module, features, moments, layers

    def __call__(self, x: Tensor) -> Answer:
        """x [B, C, H, W] -> Answer; maps in the student's turn, features and moments in the generator's."""
        with ExitStack() as stack:
            if not torch.is_grad_enabled():
                seen = stack.enter_context(layers.observe_maps(self.layers))
                return Answer(self.module(x), maps=seen)
            found = stack.enter_context(moments.observe(self.module)) if self.moments else []
            features = stack.enter_context(layers.observe_features(self.module)) if self.features else []
            return Answer(self.module(x), features[-1] if features else None, found)


class Compiled(Observed):
    """The same in one graph, moments and features inside it.

    What a graph is made of is fixed when it is made, so its hooks stay; they take nothing while gradients are off, as
    in the student's turn and in evaluations.
    """

    def __init__(
        self,
        module: nn.Module,
        features: bool,
        moments_wanted: bool,
        compiled: Callable[[Callable[[Tensor], Answer]], Callable[[Tensor], Answer]],
    ) -> None:
        super().__init__(module, features, moments_wanted)
        self._moments: list[moments.LayerMoments] = []
        self._features: list[Tensor] = []
        if moments_wanted:
            moments.watch(module, self._judge)
        if features:
            layers.head(module).register_forward_pre_hook(self._feel)
        self._graph = compiled(self._answer)

    def __call__(self, x: Tensor) -> Answer:
        """As the base class's."""
        answer = self._graph(x)
        self._moments, self._features = [], []  # not to hold on to what they were computed from
        return answer

    def _answer(self, x: Tensor) -> Answer:
        self._moments, self._features = [], []
        logits = self.module(x)
        return Answer(logits, self._features[-1] if self._features else None, self._moments)

    def _judge(self, layer: moments.NormLayer, x: Tensor) -> None:
        if torch.is_grad_enabled():
            self._moments.append(moments.layer_moments(layer, x))

    def _feel(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._features.append(inputs[0])


def observe(
    config: Config, runtime: Runtime, teacher: nn.Module, generates: bool, layers: Sequence[nn.Module]
) -> Observed:
    """The teacher, placed, with what the generator's terms need; UserError where it cannot be had."""
    judged = generates and ever(config.weights.batch_norm)
    if judged and not moments.has_batch_norm(teacher):
        raise UserError(
            f"teacher.network={config.teacher.network!r} has no batch norm with running statistics to judge "
            "images by: set weights.batch_norm=0, or bring a teacher that has"
        )
    features = generates and (ever(config.weights.activation) or ever(config.weights.contrastive))
    placed = runtime.place_teacher(teacher, judges=generates)
    if config.speed.compile:
        return Compiled(placed, features, judged, runtime.compiled)
    return Observed(placed, features=features, moments=judged, layers=layers)
