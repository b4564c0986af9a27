"""Each method: the turns of a round, the terms of each turn, its named variants."""

from harness.methods.rounds import INVERTED, Turn
from harness.methods.table import METHODS, Method, find

__all__ = ["INVERTED", "METHODS", "Method", "Turn", "find"]
