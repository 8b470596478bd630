"""Figures of the dynamics: exponents, phase portraits, bifurcations, the gradient flow during training."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from jaxrnn import checks
from jaxrnn.analysis import Branch, FixedPoints, FlowHistory, Lyapunov, Trajectory
from jaxrnn.annotations import checked
from jaxrnn.plot.style import COLOURS, TIME, axes_or_new, least_span, one_of


@checked
def lyapunov(
    result: Lyapunov,
    ax: Axes | None = None,
    *,
    sequence: int = 0,
    theory: float | None = None,
    label: str | None = None,
) -> Axes:
    """Draw the Lyapunov spectrum with 95 % intervals; a note counts exponents of −inf.

    Args:
      result: exponents of one or more sequences.
      ax: axes to draw into; by default new ones.
      sequence: index of the sequence in the batch.
      theory: a predicted largest exponent, drawn as a line beside the measurement.
      label: name of the spectrum in the legend.
    """
    ax = axes_or_new(ax)
    count = result.rates.shape[-1]
    values = one_of("sequence", sequence, np.asarray(result.exponents).reshape(-1, count), 0)
    reach = values - np.asarray(result.interval)[..., 0].reshape(-1, count)[sequence]
    there = np.isfinite(values)
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
    ax.set(xlabel="exponent i", ylabel=f"λ (nats a {result.unit})", xlim=(0.5, count + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    least_span(ax, 0.01)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small")
    return ax


@checked
def lyapunov_convergence(
    result: Lyapunov, ax: Axes | None = None, *, sequence: int = 0, leading: int = 4
) -> Axes:
    """Draw the running estimates of the leading exponents by step, with their final 95 % intervals."""
    ax = axes_or_new(ax)
    count = result.rates.shape[-1]
    history = np.asarray(result.history)
    history = one_of("sequence", sequence, history.reshape(len(history), -1, count), 1)
    intervals = np.asarray(result.interval).reshape(-1, count, 2)[sequence]
    steps = np.cumsum(result.block_steps)
    for i in range(min(leading, count)):
        (line,) = ax.plot(steps, history[:, i], label=f"λ{i + 1}")
        if np.isfinite(intervals[i]).all():
            ax.axhspan(*intervals[i], color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set(xscale="log", xlabel="steps", ylabel=f"λ (nats a {result.unit})")
    ax.xaxis.set_minor_formatter(NullFormatter())
    least_span(ax, 0.01)
    ax.legend(fontsize="small")
    return ax


@checked
def flow_history(result: FlowHistory, ax: Axes | None = None) -> Axes:
    """Draw log₁₀ ‖∂L/∂s_t‖ by time step and training step as a heat map: median over the networks."""
    ax = axes_or_new(ax)
    norms = np.median(result.log_norms, axis=1) / np.log(10)
    norms = np.ma.masked_invalid(norms)
    time = np.arange(norms.shape[1] + 1) + 0.5
    image = ax.pcolormesh(
        time, _edges(result.steps), norms, cmap=plt.get_cmap(TIME), rasterized=True
    )
    ax.grid(False)
    ax.set(xlabel="time step t", ylabel="optimiser step")
    ax.figure.colorbar(image, ax=ax, label="log₁₀ ‖∂L/∂s(t)‖")
    return ax


def _edges(steps: Any) -> Any:
    """Return the edges of a heat map's rows [E + 1]: the first step, the midpoints and the last step."""
    steps = np.asarray(steps, np.float64)
    if len(steps) == 1:
        return steps[0] + np.array([-0.5, 0.5])
    return np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])


_KINDS = (
    ("stable", "o", COLOURS[2]),
    ("saddle", "X", COLOURS[1]),
    ("repelling", "s", COLOURS[3]),
    ("neutral", "D", COLOURS[4]),
)


@checked
def phase_portrait(
    trajectory: Trajectory, points: FixedPoints, ax: Axes | None = None, *, sequences: int = 8
) -> Axes:
    """Draw trajectories and fixed points in the plane of the states' first two principal components.

    Args:
      trajectory: the states of the network, from `trace`; they span the plane.
      points: fixed points, from `fixed_points`. Shape and colour distinguish stable, saddle, repelling and
        neutral points (eigenvalues on the circle); slow points are drawn with open markers.
      ax: axes to draw into; by default new ones.
      sequences: number of sequences of the batch to draw.
    """
    ax = axes_or_new(ax)
    states = np.asarray(trajectory.states, np.float64)
    states = states.reshape(len(states), -1, states.shape[-1])
    plane, shares, centre = _principal_plane(states.reshape(-1, states.shape[-1]))
    for path in np.moveaxis((states - centre) @ plane, 1, 0)[:sequences]:
        ax.plot(*path.T, color="0.6", linewidth=0.8, zorder=1)
        ax.plot(*path[0], ".", color="0.3", markersize=4, zorder=1)
    places = (np.asarray(points.states, np.float64) - centre) @ plane
    kinds = _kinds(points)
    for kind, (name, marker, colour) in enumerate(_KINDS):
        for slow in (False, True):
            chosen = (kinds == kind) & (np.asarray(points.slow) == slow)
            if chosen.any():
                face = "none" if slow else colour
                label = f"{name}{' (slow)' if slow else ''}: {chosen.sum()}"
                style = {"facecolor": face, "edgecolor": colour, "label": label}
                ax.scatter(*places[chosen].T, s=36, marker=marker, zorder=2, **style)
    names = [f"PC {i + 1} ({100 * share:.0f} % of the variance)" for i, share in enumerate(shares)]
    ax.set(xlabel=names[0], ylabel=names[1])
    if len(points):
        ax.legend(fontsize="small")
    return ax


def _principal_plane(states: Any) -> tuple[Any, Any, Any]:
    """Return the first two principal directions [S, 2], their shares of the variance, and the mean."""
    if states.shape[-1] < 2:
        checks.refuse("trajectory", "states of one entry", "two or more: a plane needs them")
    centre = states.mean(axis=0)
    _, lengths, directions = np.linalg.svd(states - centre, full_matrices=False)
    total = max(float((lengths**2).sum()), np.finfo(float).tiny)
    return directions[:2].T, lengths[:2] ** 2 / total, centre


def _kinds(points: FixedPoints) -> Any:
    """Return the index in `_KINDS` of each point."""
    unstable, stable = np.asarray(points.unstable_dimension), np.asarray(points.stable)
    free = np.where(unstable < points.states.shape[-1], 1, 2)
    return np.where(stable, 0, np.where(unstable == 0, 3, free))


@checked
def bifurcation_diagram(
    result: Branch,
    ax: Axes | None = None,
    *,
    coordinate: int = 0,
    label: str = "μ",
) -> Axes:
    """Draw a branch of fixed points against its parameter: solid if stable, dashed if unstable.

    Args:
      result: the branch, from `continuation`.
      ax: axes to draw into; by default new ones.
      coordinate: index of the entry of the state to show.
      label: name of the parameter.
    """
    ax = axes_or_new(ax)
    parameters = np.asarray(result.parameters)
    states = one_of("coordinate", coordinate, np.asarray(result.states), 1)
    stable = np.asarray(result.stable)
    # A piece shares its last point with the next, so that no gap is left where stability changes.
    cuts = [0, *(np.flatnonzero(np.diff(stable.astype(int))) + 1).tolist(), len(stable)]
    for start, stop in itertools.pairwise(cuts):
        piece = slice(start, min(stop + 1, len(stable)))
        line = "-" if stable[start] else "--"
        ax.plot(parameters[piece], states[piece], line, color=COLOURS[0])
    for i, kind in enumerate(dict.fromkeys(b.kind for b in result.bifurcations)):
        some = [b for b in result.bifurcations if b.kind == kind]
        heights = [float(b.state[coordinate]) for b in some]
        at = [float(b.parameter) for b in some]
        ax.plot(at, heights, "oXs^"[i % 4], color=COLOURS[1], markersize=7, label=kind)
    ax.plot([], [], "-", color=COLOURS[0], label="stable")
    ax.plot([], [], "--", color=COLOURS[0], label="unstable")
    ax.set(xlabel=label, ylabel=f"s[{coordinate}] at the fixed point")
    ax.legend(fontsize="small")
    return ax
