"""A run as plain data: its fields, the strict parser, the checks of values, and its identity."""

from harness.config.convert import (
    BOOKKEEPING,
    bookkeeping,
    build,
    differences,
    flat,
    identity,
    is_bookkeeping,
    normalised,
    to_dict,
)
from harness.config.fields import Config, image_shape, sides
from harness.config.images import BatchSource, Data, Input, Inversion, Replay, Teach
from harness.config.networks import (
    FRESH,
    FROM_TEACHER,
    MEMORY,
    PRETRAINED,
    PRUNED,
    UNTRAINED,
    Generator,
    Optimizer,
    Student,
    Teacher,
)
from harness.config.operation import Checkpoint, Distributed, Speed, Tracking, Zero
from harness.config.weights import Weight, Weights, ever

__all__ = [
    "BOOKKEEPING", "FRESH", "FROM_TEACHER", "MEMORY", "PRETRAINED", "PRUNED", "UNTRAINED", "BatchSource", "Checkpoint",
    "Config", "Data", "Distributed", "Generator", "Input", "Inversion", "Optimizer", "Replay", "Speed", "Student",
    "Teach", "Teacher", "Tracking", "Weight", "Weights", "Zero", "bookkeeping", "build", "differences", "ever", "flat",
    "identity", "image_shape", "is_bookkeeping", "normalised", "sides", "to_dict",
]  # fmt: skip
