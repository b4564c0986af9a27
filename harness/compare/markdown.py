"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Sequence


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_text: int = 1) -> list[str]:
    """The lines of a table. The first `num_text` columns are aligned to the left, the others to the right.

    A `|` inside a cell is escaped.
    """
    first, *others = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *rows)]
    rule = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    return [first, "|" + "|".join(rule) + "|", *others]
