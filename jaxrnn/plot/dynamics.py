"""Figures of the dynamics: exponents, their convergence, the gradient through training."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from jaxrnn import checks
from jaxrnn.analysis import FlowHistory, Lyapunov
from jaxrnn.plot.style import COLOURS, TIME, axes_or_new


def lyapunov(
    result: Lyapunov,
    ax: Axes | None = None,
    *,
    sequence: int = 0,
    theory: float | None = None,
    label: str | None = None,
) -> Axes:
    """Draw the Lyapunov spectrum, with 95 % intervals; exponents of −inf are counted in a note.

    Args:
      result: exponents of one or more sequences.
      ax: axes to draw into; by default new ones.
      sequence: which sequence of the batch.
      theory: a predicted largest exponent, for a line beside the measurement.
      label: what the legend calls the spectrum.
    """
    ax = axes_or_new(ax)
    count = result.rates.shape[-1]
    values = np.asarray(result.exponents).reshape(-1, count)[sequence]
    reach = values - np.asarray(result.interval)[..., 0].reshape(-1, count)[sequence]
    there = np.isfinite(values)
    if not there.any():
        checks.refuse("result", "no exponent above −inf", "at least one")
    place = np.arange(1, count + 1)
    errors = np.where(np.isfinite(reach), reach, 0)[there]
    ax.errorbar(
        place[there],
        values[there],
        errors,
        fmt="o",
        markersize=3,
        capsize=2,
        elinewidth=1,
        label=label,
    )
    ax.axhline(0, color="0.35", linewidth=1, linestyle="--", zorder=0)
    if theory is not None:
        ax.axhline(theory, color=COLOURS[1], linewidth=1, label=f"theory: λ₁ = {theory:+.4f}")
    if not there.all():
        note = f"{count - there.sum()} of {count} are −inf"
        ax.annotate(note, (0.03, 0.04), xycoords="axes fraction", fontsize="small")
    ax.set(xlabel="exponent i", ylabel=f"λ (nats a {_unit(result)})")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small")
    return ax


def lyapunov_convergence(
    result: Lyapunov, ax: Axes | None = None, *, sequence: int = 0, leading: int = 4
) -> Axes:
    """Draw the leading exponents as they stood after so many steps, with their final 95 % intervals."""
    ax = axes_or_new(ax)
    count = result.rates.shape[-1]
    history = np.asarray(result.history)
    history = history.reshape(len(history), -1, count)[:, sequence]
    intervals = np.asarray(result.interval).reshape(-1, count, 2)[sequence]
    steps = np.cumsum(result.block_steps)
    for i in range(min(leading, count)):
        (line,) = ax.plot(steps, history[:, i], label=f"λ{i + 1}")
        if np.isfinite(intervals[i]).all():
            ax.axhspan(*intervals[i], color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set(xscale="log", xlabel="steps", ylabel=f"λ (nats a {_unit(result)})")
    ax.legend(fontsize="small")
    return ax


def _unit(result: Lyapunov) -> str:
    return "step" if result.time_step == 1 else "unit of time"


def flow_history(result: FlowHistory, ax: Axes | None = None) -> Axes:
    """Draw log₁₀ ‖∂L/∂s_t‖ over time steps and epochs as a heat map: median over the networks."""
    ax = axes_or_new(ax)
    norms = np.median(result.log_norms, axis=1) / np.log(10)
    norms = np.ma.masked_invalid(norms)
    time = np.arange(1, norms.shape[1] + 1)
    image = ax.pcolormesh(
        time, np.asarray(result.epochs), norms, cmap=plt.get_cmap(TIME), rasterized=True
    )
    ax.grid(False)
    ax.set(xlabel="time step t", ylabel="epoch")
    ax.figure.colorbar(image, ax=ax, label="log₁₀ ‖∂L/∂s(t)‖")
    return ax
