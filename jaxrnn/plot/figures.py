"""Figures of the analyses: each takes a result record and draws it into axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from jaxrnn import checks
from jaxrnn.analysis import GradientFlow, LagContributions, Propagator, Pseudospectrum, Spectrum
from jaxrnn.annotations import checked
from jaxrnn.plot.style import TIME, axes_or_new, least_span, one_of


@checked
def spectrum(
    result: Spectrum, ax: Axes | None = None, *, sequence: int = 0, steps: int = 12
) -> Axes:
    """Draw the eigenvalues of the step Jacobians in the complex plane, coloured by time, and the unit circle.

    Args:
      result: spectra along a trajectory.
      ax: axes to draw into; by default new ones.
      sequence: index of the sequence in the batch.
      steps: number of time steps to draw, evenly spaced; all of them would overlap.
    """
    ax = axes_or_new(ax)
    values = np.asarray(result.eigenvalues)
    values = values.reshape(values.shape[0], -1, values.shape[-1])
    values = one_of("sequence", sequence, values, 1)
    checks.count("steps", steps)
    chosen = np.unique(np.linspace(0, len(values) - 1, min(steps, len(values))).round().astype(int))
    shade = Normalize(1, len(values))
    for t in chosen:
        colour = plt.get_cmap(TIME)(shade(t + 1))
        ax.plot(np.real(values[t]), np.imag(values[t]), ".", color=colour, markersize=4, alpha=0.8)
    angle = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(angle), np.sin(angle), color="0.35", linewidth=1, linestyle="--", zorder=0)
    reach = 1.1 * max(1.0, float(np.abs(values[chosen]).max()))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(xlabel="Re λ of ∂s(t)/∂s(t−1)", ylabel="Im λ")
    ax.figure.colorbar(ScalarMappable(shade, TIME), ax=ax, label="time step t", shrink=0.8)
    return ax


@checked
def pseudospectrum(
    result: Pseudospectrum,
    ax: Axes | None = None,
    *,
    levels: Sequence[float] = (-2, -1.5, -1, -0.5),
) -> Axes:
    """Draw the ε-pseudospectra of a matrix as contours of log₁₀ ε, with the eigenvalues and the unit circle.

    Args:
      result: smallest singular values on a grid.
      ax: axes to draw into; by default new ones.
      levels: log₁₀ ε of the contours.
    """
    ax = axes_or_new(ax)
    if len(levels) < 2:
        checks.refuse("levels", repr(levels), "two or more contours")
    smallest = np.log10(np.maximum(np.asarray(result.smallest), np.finfo(np.float32).tiny))
    real, imaginary = np.asarray(result.real), np.asarray(result.imaginary)
    lines = ax.contour(real, imaginary, smallest, levels=sorted(levels), cmap=TIME, linewidths=1)
    ax.figure.colorbar(lines, ax=ax, label="log₁₀ ε", shrink=0.8)
    values = np.asarray(result.eigenvalues)
    ax.plot(np.real(values), np.imag(values), ".", color="black", markersize=4)
    angle = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(angle), np.sin(angle), color="0.35", linewidth=1, linestyle="--", zorder=0)
    ax.set(xlabel="Re z", ylabel="Im z", aspect="equal")
    return ax


@checked
def lag_contributions(result: LagContributions, ax: Axes | None = None) -> Axes:
    """Draw the share of the parameter gradient from lags up to k, in total and by parameter array."""
    ax = axes_or_new(ax)
    lags = np.asarray(result.lags)
    ax.plot(lags, np.asarray(result.cumulative), color="black", label="all parameters")
    for name, fractions in result.leaf_fractions.items():
        if np.isfinite(fractions).all():
            ax.plot(lags, np.cumsum(fractions), linewidth=1, label=name)
    ax.axhline(1, color="0.35", linewidth=1, linestyle="--", zorder=0)
    ax.set(xlabel="lag k (steps)", ylabel="part of the gradient from lags ≤ k")
    ax.legend(fontsize="small")
    return ax


@checked
def gradient_flow(
    result: GradientFlow, ax: Axes | None = None, *, label: str | None = None, **line: Any
) -> Axes:
    """Draw log₁₀ ‖∂L/∂s_t‖, relative to its last value, against t: median and quartiles over sequences."""
    ax = axes_or_new(ax)
    logs = np.asarray(result.log_norms).reshape(result.log_norms.shape[0], -1)
    return _flow_band(logs, ax, label=label, **line)


@checked
def gradient_flows(
    log_norms: Float[np.ndarray, "N T B"],
    ax: Axes | None = None,
    *,
    label: str | None = None,
    **line: Any,
) -> Axes:
    """Draw the gradient flow of N networks together: median and quartiles over networks and sequences."""
    logs = np.moveaxis(np.asarray(log_norms), 1, 0).reshape(log_norms.shape[1], -1)
    return _flow_band(logs, axes_or_new(ax), label=label, **line)


def _flow_band(logs: Any, ax: Axes, *, label: str | None, **line: Any) -> Axes:
    """Draw median and quartiles over sequences [T, N]; a gradient of zero is −inf and is below the rest."""
    there = np.isfinite(logs)
    if not there.any():
        checks.refuse("result", "no step at which a sequence has a gradient", "at least one")
    logs, there = logs[:, there.any(axis=0)], there[:, there.any(axis=0)]
    last = len(logs) - 1 - np.argmax(there[::-1], axis=0)
    relative = (logs - np.take_along_axis(logs, last[None], axis=0)) / np.log(10)
    ordered = {"axis": 1, "method": "inverted_cdf"}  # do not interpolate between −inf and a number
    quartiles = np.percentile(relative, [25, 50, 75], **ordered)
    low, middle, high = np.where(np.isfinite(quartiles), quartiles, np.nan)
    time = np.arange(1, len(logs) + 1)
    (drawn,) = ax.plot(time, middle, label=label, **line)
    ax.fill_between(time, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    lost = int((~there[: last.max() + 1]).any(axis=0).sum())
    if lost:
        note = f"zero at some steps in {lost} of {there.shape[1]}"
        ax.annotate(note, (0.03, 0.04), xycoords="axes fraction", fontsize="small")
    ax.set(xlabel="time step t", ylabel="log₁₀ ‖∂L/∂s(t)‖, relative to the last")
    least_span(ax, 0.2)
    return ax


@checked
def propagator(
    result: Propagator,
    ax: Axes | None = None,
    *,
    ranks: Sequence[int] = (1, 2, 4, 8, 16),
    fit: bool = True,
    theory: float | None = None,
) -> Axes:
    """Draw singular values of ∂s_T/∂s_{T−k} against the lag k, median over sequences, and the fitted rate.

    Args:
      result: singular values by lag.
      ax: axes to draw into; by default new ones.
      ranks: ranks of the singular values to draw; 1 is the largest.
      fit: whether to draw a line with the fitted rate of the largest one.
      theory: a predicted rate, nats a step, drawn as a line through the first point of the largest one.
    """
    ax = axes_or_new(ax)
    logs = np.asarray(result.log_singular_values) / np.log(10)
    logs = np.median(logs.reshape(logs.shape[0], -1, logs.shape[-1]), axis=1)
    lags = np.asarray(result.lags)
    finite = np.isfinite(logs)
    shown = [rank for rank in ranks if rank <= logs.shape[1] and finite[:, rank - 1].any()]
    marker = "o" if len(lags) == 1 else None
    for i, rank in enumerate(shown):
        shade = plt.get_cmap(TIME)(0.9 * i / max(len(shown) - 1, 1))
        ax.plot(
            lags,
            np.where(finite[:, rank - 1], logs[:, rank - 1], np.nan),
            color=shade,
            marker=marker,
            label=f"σ{rank}" if rank > 1 else "σ1 (largest)",
        )
    rate = result.rate
    if fit and np.isfinite(rate.value):
        slope = float(rate.value) / np.log(10)
        known = finite[:, 0]
        offset = np.mean(logs[known, 0]) - slope * np.mean(lags[known])
        error = f" ± {float(rate.stderr):.3f}" if np.isfinite(rate.stderr) else ""
        text = f"fit: {float(rate.value):+.3f}{error} nats a step"
        ax.plot(lags, offset + slope * lags, "k:", linewidth=1.2, label=text)
    if theory is not None:
        predicted = logs[0, 0] + theory / np.log(10) * (lags - lags[0])
        ax.plot(lags, predicted, "--", color="0.35", label=f"theory: {theory:+.3f} nats a step")
    ax.set(xlabel="lag k (steps)", ylabel="log₁₀ σ of ∂s(T)/∂s(T−k)")
    least_span(ax, 0.2)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small")
    return ax


@checked
def learning_curves(
    history: Sequence[dict[str, Any]],
    metric: str,
    ax: Axes | None = None,
    *,
    label: str | None = None,
    **line: Any,
) -> Axes:
    """Draw a validation score against the optimiser step: mean and range over networks.

    Args:
      history: rows of ``metrics.jsonl``.
      metric: the score's name, as in ``valid_<metric>``.
      ax: axes to draw into; by default new ones.
      label: name of the curve in the legend.
      line: passed on to ``ax.plot``.
    """
    ax = axes_or_new(ax)
    if not history:
        checks.refuse("history", "no rows", "at least one")
    checks.choice("metric", metric, [name[6:] for name in history[0] if name.startswith("valid_")])
    steps = [row["step"] for row in history]
    scores = np.array([row[f"valid_{metric}"] for row in history])
    (drawn,) = ax.plot(steps, scores.mean(axis=1), label=label, **line)
    low, high = scores.min(axis=1), scores.max(axis=1)
    ax.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel="optimiser step", ylabel=f"validation {metric}")
    if metric == "accuracy":
        ax.set_ylim(0, 1)
    return ax


@checked
def attention(
    weights: Float[np.ndarray, "T L"],
    source: Sequence[str],
    target: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Draw the attention weights of the words read for each word written, one row for each word written.

    Args:
      weights: attention weights [T, L]; rows sum to 1.
      source: the L words read.
      target: the T words written.
      ax: axes to draw into; by default new ones.
    """
    if np.shape(weights) != (len(target), len(source)):
        expected = f"[{len(target)}, {len(source)}], a row a written word and a column a read one"
        checks.refuse("weights", checks.describe(weights), expected)
    ax = axes_or_new(ax)
    drawn = ax.imshow(np.asarray(weights), cmap="Greys", vmin=0, vmax=1, aspect="equal")
    ax.grid(visible=False)
    size = "medium" if max(len(source), len(target)) <= 16 else "xx-small"
    ax.set_xticks(range(len(source)), source, rotation=60, ha="right", fontsize=size)
    ax.set_yticks(range(len(target)), target, fontsize=size)
    ax.set(xlabel="read", ylabel="written")
    ax.figure.colorbar(drawn, ax=ax, label="attention weight", shrink=0.8)
    return ax
