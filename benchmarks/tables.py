"""Rows as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Write a table: a column a key, the same in all rows, and a line a row."""
    if not rows:
        return "Nothing yet."
    heads = list(rows[0])
    assert all(list(row) == heads for row in rows), heads
    lines = [heads, ["---"] * len(heads), *[list(row.values()) for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
