"""The page of cells: the table, and each family's own account of itself, as Markdown.

``jaxrnn cells --out docs/cells.md`` writes it; nothing on it is written twice.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

from jaxrnn.annotations import checked
from jaxrnn.cells import CELLS, CellEntry
from jaxrnn.report.document import Report

CELLS_HEADER = ("cell", "equations", "S", "parameters", "FLOPs", "Jacobian", "parallel", "paper")


@checked
def cell_rows(in_features: int, hidden_features: int) -> list[tuple[str, ...]]:
    """Return the table of cells with F features and H units, a row a cell under `CELLS_HEADER`."""
    return [_row(entry, in_features, hidden_features) for entry in CELLS.values()]


def _row(entry: CellEntry, in_features: int, hidden_features: int) -> tuple[str, ...]:
    cost = entry.cost(in_features, hidden_features)
    sizes = (f"{count:,}" for count in (cost.state, cost.parameters, cost.flops))
    parallel = "yes" if entry.parallel else "no"
    return (entry.name, entry.equations, *sizes, entry.jacobian, parallel, entry.paper)


@checked
def cells_page(in_features: int, hidden_features: int) -> str:
    """Return the page of cells as Markdown: the table, then equations, paper and weakness by family."""
    page = Report("Cells")
    page.paragraph(
        f"For F = {in_features} and H = {hidden_features}, input features and units: S numbers in the whole "
        "carry, parameters, and floating-point operations of one step of one sequence as XLA counts them. "
        "The step Jacobian is constant, or depends on the input alone, or on the state too. What is "
        "parallel in time runs under `jaxrnn.Associative()`. `jaxrnn cells` prints this table for any "
        "size, and writes this page with `--out`."
    )
    page.table(
        CELLS_HEADER,
        [(f"`{name}`", *rest) for name, *rest in cell_rows(in_features, hidden_features)],
    )
    families: dict[Any, list[str]] = {}
    for entry in CELLS.values():
        maker = entry.make.func if isinstance(entry.make, functools.partial) else entry.make
        families.setdefault(sys.modules[maker.__module__], []).append(entry.name)
    for module, names in families.items():
        page.heading(", ".join(f"`{name}`" for name in names))
        page.paragraph(inspect.cleandoc(module.__doc__ or ""))
    return page.text
