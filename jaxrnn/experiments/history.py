"""Gradients and spectra through training: measured at every report, kept in the run's metrics.

The gradient is that of the task's own loss through the network as it is at that step, on the same few
validation sequences all along; the test data stay unseen. The spectral radius is that of the step Jacobians
at a few steps of the first of these sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxrnn import checks
from jaxrnn.analysis import FlowHistory, gradient_flow, jacobians, spectrum_of, trace
from jaxrnn.annotations import checked
from jaxrnn.experiments.probing import each
from jaxrnn.tasks import Task
from jaxrnn.training import View, view, whole_sequences

_SEQUENCES = 16
_JACOBIANS = 4  # an eigenvalue problem each
_FLOW, _RADIUS = "log_gradient_norms", "spectral_radius"


@checked
def probes(task: Task) -> Callable[[Any], dict[str, Any]]:
    """Return what measures an ensemble: log ‖∂L/∂s_t‖, a list a network, and its Jacobians' spectral radius.

    The norms are medians over sequences, the radius is the median over steps. Networks that are not one
    forward layer are not measured.
    """
    batch = whole_sequences(task.valid, _SEQUENCES)

    def observe(models: Any) -> dict[str, Any]:
        views = [view(model, task, batch) for model in each(models)]
        seen = [one for one in views if one is not None]
        if not seen:
            return {}
        return {_FLOW: [_medians(one) for one in seen], _RADIUS: [_radius(one) for one in seen]}

    return observe


def _medians(seen: View) -> list[float]:
    """Return one network's norms; NaN where it has died, for the others go on training."""
    try:
        flow = gradient_flow(seen.cell, seen.xs, seen.loss)
    except checks.InputError:  # states that are no longer finite, or a gradient of zero
        return [math.nan] * len(seen.xs)
    return np.median(flow.log_norms, axis=1).tolist()


def _radius(seen: View) -> float:
    """Return the median spectral radius of one network's Jacobians; NaN where it has died."""
    steps = np.linspace(0, len(seen.xs) - 1, _JACOBIANS).astype(int)
    try:
        path = trace(seen.cell, seen.xs[:, :1])
        # The chosen steps side by side, as a batch that takes one step: no other Jacobian is made.
        starts = jax.tree.map(lambda leaf: leaf[steps, 0], path.before)
        chosen = trace(seen.cell, seen.xs[steps, 0][None], carry=starts)
        found = spectrum_of(jacobians(seen.cell, chosen))
    except checks.InputError:
        return math.nan
    return float(np.median(found.spectral_radius))


@checked
def flow_history(rows: Iterable[dict[str, Any]]) -> FlowHistory | None:
    """Return the flow through training from a run's metrics; None where it was not measured."""
    rows = [row for row in rows if _FLOW in row]
    if not rows:
        return None
    return FlowHistory(
        steps=np.array([row["step"] for row in rows]),
        log_norms=np.array([row[_FLOW] for row in rows]),
    )
