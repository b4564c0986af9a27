"""The frozen teacher: from images to logits and the other outputs that the terms of a method need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from harness.algorithm import moments
from harness.algorithm.turns import Answer
from harness.config import Config, ever, image_shape
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.networks.layers import evaluating, head, observe_features
from harness.networks.maps import NOTHING, Compared, answer


class Teacher:
    """The frozen teacher: images x [B, C, H, W] -> Answer. It keeps no state."""

    def __init__(
        self, module: nn.Module, classes: int, features: bool, moments: bool, compared: Compared = NOTHING
    ) -> None:
        """Outputs of `judge` besides logits; `compared`: the layers whose outputs the student's terms compare."""
        self.module, self.classes = module, classes
        self.features, self.moments, self.compared = features, moments, compared

    def answer(self, x: Tensor) -> Answer:
        """Outputs for a student's turn: logits, and the outputs of the layers that are compared."""
        return Answer(self.module(x)) if self.compared is NOTHING else answer(self.module, x, self.compared)

    def judge(self, x: Tensor) -> Answer:
        """Outputs for the generator's turn: logits, and the features and moments that its terms need."""
        with ExitStack() as stack:
            found = stack.enter_context(moments.observe(self.module)) if self.moments else []
            features = stack.enter_context(observe_features(self.module, self.classes)) if self.features else []
            logits = self.module(x)
            return Answer(logits, features[-1].to(logits.dtype) if features else None, found)


class CompiledTeacher(Teacher):
    """The same, compiled: one graph for `answer`, and one for `judge` with moments and features.

    The hooks of a compiled graph cannot change. So the hooks for `judge` remain, and collect only during `judge`.
    """

    def __init__(
        self,
        module: nn.Module,
        classes: int,
        features: bool,
        moments_wanted: bool,
        compiled: Callable[[Callable[[Tensor], Answer]], Callable[[Tensor], Answer]],
    ) -> None:
        super().__init__(module, classes, features, moments_wanted)
        self._judging = False
        self._moments: list[moments.LayerMoments] = []
        self._features: list[Tensor] = []
        if moments_wanted:
            moments.watch(module, self._take_moments)
        if features:
            head(module, classes).register_forward_pre_hook(self._take_features)
        self._graph = compiled(self._answer)

    def answer(self, x: Tensor) -> Answer:
        """See `Teacher`; without maps."""
        return self._graph(x)

    def judge(self, x: Tensor) -> Answer:
        """See `Teacher`."""
        self._judging = True
        try:
            return self._graph(x)
        finally:
            self._judging = False
            self._moments, self._features = [], []  # free the graph of their computation

    def _answer(self, x: Tensor) -> Answer:
        self._moments, self._features = [], []
        logits = self.module(x)
        features = self._features[-1].to(logits.dtype) if self._features else None  # bf16 is too coarse for sums
        return Answer(logits, features, self._moments)

    def _take_moments(self, layer: moments.NormLayer, x: Tensor) -> None:
        if self._judging:
            self._moments.append(moments.layer_moments(layer, x))

    def _take_features(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._judging:
            self._features.append(inputs[0])


def build(config: Config, runtime: Runtime, teacher: nn.Module, generates: bool, compared: Compared) -> Teacher:
    """The teacher on its device, with the hooks for the generator's terms; UserError if it lacks batch norm."""
    judged = generates and ever(config.weights.batch_norm)
    if judged and not _calls_batch_norm(teacher, config):
        raise UserError(
            f"teacher.network={config.teacher.network!r} has no batch norm with running statistics, "
            "which weights.batch_norm above 0 needs: set weights.batch_norm=0, or use another teacher"
        )
    features = generates and (ever(config.weights.activation) or ever(config.weights.contrastive))
    module = runtime.prepare_teacher(teacher, judges=generates)
    if config.speed.compile:
        return CompiledTeacher(module, config.classes, features, judged, runtime.compiled)
    return Teacher(module, config.classes, features, judged, compared)


def _calls_batch_norm(teacher: nn.Module, config: Config) -> bool:
    """Whether a forward pass goes through batch-norm layers with running statistics."""
    with evaluating([teacher]), moments.observe(teacher) as found:
        teacher(torch.zeros(2, *image_shape(config)))
    return bool(found)
