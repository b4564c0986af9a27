"""The frozen teacher as a function from images to answers, with what a method's terms need beside the logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from harness import moments, networks
from harness.config import Config, ever
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.terms import Answer


class Observed:
    """The frozen teacher as a function x -> Answer; it leaves no state behind."""

    def __init__(self, module: nn.Module, features: bool, moments: bool, layers: Sequence[nn.Module] = ()) -> None:
        """Which answers beside the logits are needed; `layers`: those whose outputs the student's terms compare."""
        self.module, self.features, self.moments, self.layers = module, features, moments, layers

    def __call__(self, x: Tensor) -> Answer:
        """x [B, C, H, W] -> Answer; maps in the student's turn, features and moments in the generator's."""
        with ExitStack() as stack:
            if not torch.is_grad_enabled():
                seen = stack.enter_context(networks.observe_maps(self.layers))
                return Answer(self.module(x), maps=seen)
            found = stack.enter_context(moments.observe(self.module)) if self.moments else []
            features = stack.enter_context(networks.observe_features(self.module)) if self.features else []
            return Answer(self.module(x), features[-1] if features else None, found)


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
    return Observed(placed, features=features, moments=judged, layers=layers)
