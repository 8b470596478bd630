"""The figure of a claim, drawn from the panels that its evidence holds."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxrnn.claims.evidence import Evidence, Line, Panel
from jaxrnn.plot.style import house_style

_WIDTH, _HEIGHT = 5.0, 3.7  # inches of a panel
_ACROSS = 2  # panels side by side: three are too small to read on a page
_MOST_TICKS = 8  # values on a logarithmic axis that are each named
_LEVEL_LETTERS = 44  # of all names of an axis together, which still stand level side by side
_LINES_BESIDE = 6  # entries of a legend from which it stands outside the axes
_FORMS = {"line": ("-", ""), "points": ("", "o"), "both": ("-", "o")}


def draw(evidence: Evidence) -> Figure:
    """Draw the panels of a claim's figure."""
    count = len(evidence.panels)
    across = min(count, _ACROSS)
    down = math.ceil(count / across)
    with house_style():
        figure, axes = plt.subplots(
            down, across, figsize=(_WIDTH * across + 0.6, _HEIGHT * down), squeeze=False
        )
        for panel, ax in zip(evidence.panels, axes.flat, strict=False):
            _draw(panel, ax)
        for ax in axes.flat[count:]:
            ax.remove()
    return figure


def _draw(panel: Panel, ax: Axes) -> None:
    for number, line in enumerate(panel.lines):
        _draw_line(line, ax, f"C{number % 7}")
    for name, height in panel.marks.items():
        ax.axhline(height, color="0.35", linestyle="--", linewidth=1, zorder=0)
        ax.annotate(
            name,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.35",
        )
    ax.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    ax.set(xscale=panel.x_scale, yscale=panel.y_scale)
    if panel.ticks:
        slanted = sum(map(len, panel.ticks)) > _LEVEL_LETTERS
        ax.set_xticks(range(len(panel.ticks)), panel.ticks)
        ax.tick_params(axis="x", labelsize=9, rotation=35 if slanted else 0)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right" if slanted else "center")
            label.set_rotation_mode("anchor" if slanted else "default")
        ax.set_xlim(-0.5, len(panel.ticks) - 0.5)
    elif panel.x_scale == "log":
        # Matplotlib names 3 × 10² and 4 × 10² side by side, one over the other.
        values = sorted({x for line in panel.lines for x in line.x})
        if len(values) <= _MOST_TICKS:
            ax.set_xticks(values, [f"{value:,g}" for value in values])
            ax.minorticks_off()
    named = sum(bool(line.label) for line in panel.lines)
    if named >= _LINES_BESIDE:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    elif named:
        ax.legend(fontsize=9)


def _draw_line(line: Line, ax: Axes, colour: str) -> None:
    join, marker = _FORMS[line.style]
    x, y = np.asarray(line.x), np.asarray(line.y)
    label = line.label or None
    if line.low and line.style == "points":
        errors = np.stack([y - np.asarray(line.low), np.asarray(line.high) - y])
        ax.errorbar(x, y, errors, fmt="o", color=colour, markersize=5, capsize=3, label=label)
        return
    if line.low:
        ax.fill_between(x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, y, linestyle=join or "none", marker=marker, markersize=4, color=colour, label=label)
