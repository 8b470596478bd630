"""What is added to the loss to keep a network's dynamics in bounds.

    l1, l2       Σ |M|, Σ M²               of the recurrent weights M
    spectral     Σ_i max(σ_i − 1, 0)²      of the singular values of each gate's recurrent weights: none may
                                           stretch a state
    omega        Pascanu's Ω               Σ_t (‖∂L/∂s_t+1 · J_t+1‖ / ‖∂L/∂s_t+1‖ − 1)²: the gradient keeps
                                           its length in the backward pass (Pascanu, Mikolov & Bengio 2013)
    flossing     Σ λ_i²                    of the leading Lyapunov exponents: no direction shrinks or grows
                                           (Engelken 2023, "Gradient flossing")
    gradient     ‖∂L/∂θ‖²                  of the loss's own gradient: a flat place is preferred

Weights are penalised through the map from a state to the gates, so that a weight which is computed from
parameters counts as what it is, and a cell whose gates see the input alone has nothing to penalise.

Weakness: Ω, flossing and the gradient's norm are differentiated through a gradient, which costs several times
what the loss does; flossing takes the exponents of one batch's few steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.analysis import gradient_flow, lyapunov
from jaxrnn.analysis._jacobians import mixing_blocks
from jaxrnn.tasks import Batch, Task
from jaxrnn.training.views import View, view
from jaxrnn.typing import SplitCell

Values = float | tuple[float, ...]
"""One value for all networks of an ensemble, or several, each of which is tried."""

_FLOSSED = 4
_WEIGHTS = ("l1", "l2", "spectral")
_TRAJECTORY = ("omega", "flossing")


@dataclasses.dataclass(frozen=True)
class Penalties:
    """Weights of what is added to the loss; 0 adds nothing, and several are tried side by side.

    Attributes:
      l1: of the sum of the recurrent weights' magnitudes.
      l2: of the sum of their squares.
      spectral: of the squared excess over 1 of each gate's singular values.
      omega: of Pascanu's Ω, mean over sequences.
      flossing: of the sum of the squared leading four Lyapunov exponents, mean over sequences.
      gradient: of the squared norm of the loss's gradient.
    """

    l1: Values = 0.0
    l2: Values = 0.0
    spectral: Values = 0.0
    omega: Values = 0.0
    flossing: Values = 0.0
    gradient: Values = 0.0

    def check(self) -> None:
        """Refuse weights below 0, and those that float32 does not hold."""
        for field in dataclasses.fields(self):
            values = several(getattr(self, field.name))
            if not values:
                checks.refuse(field.name, "no value", "at least one")
            for value in values:
                checks.not_negative_float32(field.name, value)

    @property
    def wanted(self) -> dict[str, tuple[float, ...]]:
        """The weights of the penalties that are in use."""
        given = {
            field.name: several(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        return {name: values for name, values in given.items() if any(values)}


def several(value: Values | None) -> tuple[float, ...]:
    """Return the values of a setting that may have one, several or, as None, no value."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def penalty(
    weights: Mapping[str, Any], model: Any, task: Task, batch: Batch, loss: Callable[[Any], Any]
) -> Any:
    """Return what is to be added to the loss of one network.

    Args:
      weights: how much of each penalty, by its name.
      model: the network.
      task: what it learns.
      batch: what it reads.
      loss: from the network to its loss on this batch.
    """
    total = jnp.zeros(())
    for name, weight in weights.items():
        if name == "gradient":
            value = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(model)))
        else:
            value = _OF_CELL[name](view(model, task, batch))
        total = total + weight * value
    return total


def check_penalties(penalties: Penalties, model: Any, task: Task, batch: Batch) -> None:
    """Refuse penalties that a network or a task does not have a place for."""
    penalties.check()
    named = [name for name in penalties.wanted if name != "gradient"]
    if not named:
        return
    seen = view(model, task, batch)
    if seen is None:
        checks.refuse(named[0], "a network of several layers or directions", "one forward layer")
    if not isinstance(seen.cell, SplitCell) and set(named) & set(_WEIGHTS):
        got = f"a {type(seen.cell).__name__}, whose step is not split"
        checks.refuse(named[0], got, "a cell with recurrent weights apart")
    if batch.lengths is not None and set(named) & set(_TRAJECTORY):
        checks.refuse(named[0], "sequences of many lengths", "sequences of one length")


def _blocks(seen: View) -> Any:
    """Return the recurrent weights, gate by gate, for each leaf that they multiply [G, N, H, H]."""
    zero = seen.cell.initialize_carry((seen.cell.in_features,))
    return jnp.moveaxis(mixing_blocks(seen.cell, zero), 1, 2)


def _spectral(seen: View) -> Any:
    # All of them: the largest alone has no gradient where several are equal, as in an orthogonal matrix.
    stretches = jnp.linalg.svd(_blocks(seen), compute_uv=False)
    return jnp.sum(jnp.maximum(stretches - 1, 0) ** 2)


def _omega(seen: View) -> Any:
    return jnp.mean(gradient_flow(seen.cell, seen.xs, seen.loss).omega)


def _flossing(seen: View) -> Any:
    found = lyapunov(seen.cell, seen.xs, k=_FLOSSED, renorm_every=1)
    return jnp.mean(jnp.sum(found.exponents**2, axis=-1))


_OF_CELL: dict[str, Callable[[Any], Any]] = {
    "l1": lambda seen: jnp.abs(_blocks(seen)).sum(),
    "l2": lambda seen: (_blocks(seen) ** 2).sum(),
    "spectral": _spectral,
    "omega": _omega,
    "flossing": _flossing,
}
