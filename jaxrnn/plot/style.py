"""One style for all figures: colours that colour-blind readers can distinguish, lines that print well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes

from jaxrnn import checks

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's palette, in order of decreasing contrast."""

TIME = "viridis"
"""Colour map of time and of lag: uniform in lightness, so it is readable in grey."""

_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 150,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the package's figure style inside a ``with`` block."""
    with plt.rc_context(_STYLE):
        yield
        interactive = matplotlib.is_interactive()
    # In Jupyter the first figure switches the interactive mode on, and leaving the context would switch
    # it off, so later figures would not be shown.
    matplotlib.interactive(interactive)


def least_span(ax: Axes, span: float) -> None:
    """Widen the vertical axis to at least a span, so that rounding errors do not look like a result."""
    low, high = ax.get_ylim()
    if high - low < span:
        middle = (low + high) / 2
        ax.set_ylim(middle - span / 2, middle + span / 2)


def one_of(argument: str, index: Any, values: Any, axis: int) -> Any:
    """Return one entry of an axis of an array; refuse an index out of range."""
    checks.within(argument, index, 0, values.shape[axis] - 1, ", counted from 0")
    return np.take(values, index, axis=axis)


def axes_or_new(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure in the package's style."""
    if ax is not None:
        return ax
    with house_style():
        _, new = plt.subplots(figsize=(5, 3.6))
    return new
