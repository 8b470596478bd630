"""The gradient flow through training: measured before it and after every epoch, kept in the run's metrics.

The gradient is that of the task's own loss through the network as it is at that epoch, on the same few
validation sequences all along; the test data stay unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.analysis import FlowHistory, gradient_flow
from jaxrnn.experiments.probe import each, task_loss
from jaxrnn.tasks import SequenceClassification

_SEQUENCES = 16
_COLUMN = "log_gradient_norms"


def flow_observer(task: SequenceClassification) -> Callable[[Any], dict[str, Any]]:
    """Return what measures an ensemble: median log ‖∂L/∂s_t‖ over sequences, one list a seed."""
    inputs = jnp.asarray(np.swapaxes(task.valid.inputs[:_SEQUENCES], 0, 1))
    labels = jnp.asarray(task.valid.labels[:_SEQUENCES])

    def observe(models: Any) -> dict[str, Any]:
        return {_COLUMN: [_medians(model, inputs, task, labels) for model in each(models)]}

    return observe


def _medians(model: Any, inputs: Any, task: SequenceClassification, labels: Any) -> list[float]:
    """Return one network's norms; NaN where it has died, for the others go on training."""
    try:
        flow = gradient_flow(model.cell, inputs, task_loss(model, task, labels))
    except checks.InputError:  # states that are no longer finite, or a gradient of zero
        return [math.nan] * len(inputs)
    return np.median(flow.log_norms, axis=1).tolist()


def flow_history(rows: Iterable[dict[str, Any]]) -> FlowHistory | None:
    """Return the flow through training from a run's metrics; None where it was not measured."""
    rows = [row for row in rows if _COLUMN in row]
    if not rows:
        return None
    return FlowHistory(
        epochs=np.array([row["epoch"] for row in rows]),
        log_norms=np.array([row[_COLUMN] for row in rows]),
    )
